"""Is the input gradient nonzero? A gradient of exactly zero stops every gradient attack."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...._errors import ModelFailure, NotAsked
from ....attacks.core.model_call import ask_model
from ...runtime.checked_model import answered_rows
from ...runtime.float64 import in_float64
from ..context import Context
from ..differences import off_kinks
from ..measures import array, fraction
from ..registry import AuditResult, measured, register_audit

LIMIT = 0.01
VANISHING = 1e-30
"""Below this a float32 gradient's squares, and with them its direction, are lost even after scaling."""


@register_audit(
    "zero-gradients",
    title="the gradient of the loss reaches the input",
    needs="model",
    cost="5 forward and 3 backward passes per image",
    fast=True,
    untrained=True,
    remedy="Do not detach, round or threshold the image, and keep activations away from saturation.",
    reference="Carlini, Wagner, arXiv 1608.04644, VI; Athalye, Carlini, Wagner, ICML 2018, section 3.1",
    version=2,
)
def check(context: Context) -> AuditResult:
    """Share of samples whose cross-entropy has an exactly zero or vanishing input gradient: at most 1%.

    Measured in the model's own precision, as attacks do; and, to find the reason, in float64 and after the
    logits are divided by their largest magnitude. A sample counts if the gradient is zero at its image moved
    off kinks too, see `differences`: at a kink, such as a black image is for ReLU without biases, zero may be
    all that backpropagation can say.
    """
    moved = off_kinks(context.images, context.generator("zero-gradients"))
    rows = context.answered(moved)
    context, moved = context.take(rows), moved[rows]
    images = context.images
    plain, rescaled = (
        torch.maximum(_sizes(context, images, rescale=scale), _sizes(context, moved, rescale=scale))
        for scale in (False, True)
    )
    try:
        with in_float64(context.model, images) as double:
            some = answered_rows(double, moved.double(), context.num_classes)
            exact = _sizes(context.take(some), moved[some].double())
    except (NotAsked, ModelFailure):
        exact = torch.zeros_like(plain)
    parts = [fraction(sizes <= VANISHING) for sizes in (plain, exact, rescaled)]
    value = parts[0]
    if value <= LIMIT:
        sentence = f"The input gradient is zero for {value:.1%} of the samples."
    else:
        cause = (
            "it is nonzero when the logits are divided by their size: their scale hides it"
            if parts[2] <= LIMIT
            else "it is nonzero in float64: rounding hides it"
            if parts[1] <= LIMIT
            else "it is zero in float64 and with smaller logits too: the model has no useful gradient"
        )
        sentence = f"The input gradient is exactly zero for {value:.1%} of the samples; {cause}."
    order = torch.sort(plain.double().clamp_min(1e-45).log10()).values
    rest = torch.sort(rescaled.double().clamp_min(1e-45).log10()).values
    return measured(
        value,
        LIMIT,
        sentence,
        unit="share",
        arrays={
            "x": array(torch.arange(len(order))),
            "original logits": array(order),
            "logits rescaled": array(rest),
        },
        axes=("sample, sorted", "log10 of the largest gradient entry"),
    )


def _sizes(context: Context, images: Tensor, *, rescale: bool = False) -> Tensor:
    """Largest entry of each sample's input gradient, (N,); 0 where no gradient reaches the input."""
    x = images.clone().requires_grad_(True)
    with torch.enable_grad():
        logits = ask_model(context.model, x, context.num_classes)
        if rescale:
            logits = logits / logits.detach().abs().amax(1, keepdim=True).clamp_min(1e-30)
        loss = F.cross_entropy(logits, context.labels, reduction="sum")
    gradient = None
    if loss.requires_grad:
        (gradient,) = torch.autograd.grad(loss, x, allow_unused=True)
    if gradient is None:
        return torch.zeros(len(images), device=images.device, dtype=images.dtype)
    return gradient.flatten(1).abs().amax(1)
