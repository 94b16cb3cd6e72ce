"""Does the input gradient exist? A gradient of exactly zero stops every attack that follows it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..context import Context, array, in_double, share
from ..registry import Verdict, judged, register_audit

LIMIT = 0.01
VANISHING = 1e-30
"""Below this a float32 gradient's squares, and with them its direction, are lost even after scaling."""


@register_audit(
    "zero-gradients",
    title="the gradient of the loss reaches the input",
    needs="model",
    cost="3 forwards and 3 backwards an image",
    fast=True,
    untrained=True,
    remedy="Do not detach, round or threshold the image, and keep activations away from saturation.",
    reference="Carlini, Wagner, arXiv 1608.04644, VI; Athalye, Carlini, Wagner, ICML 2018, section 3.1",
)
def check(context: Context) -> Verdict:
    """Share of samples whose cross-entropy has an exactly zero or vanishing input gradient: at most 1%.

    Asked in float32 as attacks do it, and to find the reason in float64 and after the logits are divided by
    their largest magnitude.
    """
    images, labels = context.images, context.labels
    plain = _sizes(context.model, images, labels)
    rescaled = _sizes(context.model, images, labels, rescale=True)
    with in_double(context.model) as double:
        exact = _sizes(double, images.double(), labels)
    shares = [share(sizes <= VANISHING) for sizes in (plain, exact, rescaled)]
    value = shares[0]
    if value <= LIMIT:
        sentence = f"The input gradient is zero for {value:.1%} of the samples."
    else:
        cause = (
            "dividing the logits by their size brings it back: their scale hides it"
            if shares[2] <= LIMIT
            else "float64 brings it back: rounding hides it"
            if shares[1] <= LIMIT
            else "neither float64 nor smaller logits bring it back: the model has no useful gradient"
        )
        sentence = f"The input gradient is exactly zero for {value:.1%} of the samples; {cause}."
    order = torch.sort(plain.double().clamp_min(1e-45).log10()).values
    rest = torch.sort(rescaled.double().clamp_min(1e-45).log10()).values
    return judged(
        value,
        LIMIT,
        sentence,
        unit="share",
        arrays={
            "x": array(torch.arange(len(order))),
            "as it is": array(order),
            "logits rescaled": array(rest),
        },
        axes=("sample, sorted", "log10 of the largest gradient entry"),
    )


def _sizes(model: nn.Module, images: Tensor, labels: Tensor, *, rescale: bool = False) -> Tensor:
    """Largest entry of each sample's input gradient, (N,); 0 where no gradient reaches the input."""
    x = images.clone().requires_grad_(True)
    with torch.enable_grad():
        logits = model(x)
        if rescale:
            logits = logits / logits.detach().abs().amax(1, keepdim=True).clamp_min(1e-30)
        loss = F.cross_entropy(logits, labels, reduction="sum")
    gradient = None
    if loss.requires_grad:
        (gradient,) = torch.autograd.grad(loss, x, allow_unused=True)
    if gradient is None:
        return torch.zeros(len(images), device=images.device, dtype=images.dtype)
    return gradient.flatten(1).abs().amax(1)
