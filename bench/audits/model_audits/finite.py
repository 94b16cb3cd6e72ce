"""Are logits and gradients finite at every image that an attack may try?"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ....attacks.core.losses import answered
from ....attacks.core.model_call import ask_model
from ....attacks.core.sample_answers import may_concern_a_sample
from ...evaluation.accuracy import frozen
from ..context import Context
from ..registry import AuditResult, measured, register_audit


@register_audit(
    "finite",
    title="logits and gradients are finite numbers",
    needs="model",
    cost="7 forward and 7 backward passes per image",
    fast=True,
    untrained=True,
    every_sample=True,
    remedy="Let no operation divide by zero or take the root or logarithm of a negative number.",
    reference="a comparison with NaN is false and the sign of NaN counts as 0: either scores as robust",
)
def check(context: Context) -> AuditResult:
    """Share of probes without finite logits and a finite input gradient: any flags.

    Probes are the test images, these pushed to the corners of their ball and of the box, noise, and flat,
    black and white images.
    """
    bad = total = 0
    where: list[str] = []
    failures: list[Exception] = []
    with frozen(context.model):
        for name, images in _probes(context):
            count = sum(int(_broken(context, x, failures).sum()) for x in images.split(context.batch_size))
            bad, total = bad + count, total + len(images)
            if count:
                where.append(f"{count} of {len(images)} {name}")
    if failures and bad == total:
        raise failures[0]
    sentence = (
        f"Logits or gradients are missing, NaN or infinite for {', '.join(where)}."
        if bad
        else f"All of {total} probes, corners of the pixel box among them, gave finite logits and gradients."
    )
    return measured(bad / total, 0.0, sentence, unit="share")


def _probes(context: Context) -> Iterator[tuple[str, Tensor]]:
    images = context.images
    generator = context.generator("finite")
    noise = torch.rand(images.shape, generator=generator).to(images)
    levels = torch.linspace(0, 1, min(len(images), 16)).to(images)
    yield "test images", images
    yield "images in corners of their ball", (images + context.eps * (2 * noise.round() - 1)).clamp(0, 1)
    yield "negatives", 1 - images
    yield "images in corners of the box", noise.round()
    yield "images of noise", noise
    yield "brightened images", (images + noise).clamp(0, 1)
    yield "flat images", levels.view(-1, 1, 1, 1).expand(-1, *images.shape[1:]).clone()


def _broken(context: Context, images: Tensor, failures: list[Exception]) -> Tensor:
    """Which of `images` have no finite logits or no finite gradient, bool (n,).

    A batch at which the model raises is asked again in halves, down to single images, whose errors are added
    to `failures`.
    """
    try:
        return _nonfinite(context, images)
    except Exception as error:
        if not may_concern_a_sample(error):
            raise
        if len(images) == 1:
            failures.append(error)
            return torch.ones(1, dtype=torch.bool, device=images.device)
    half = len(images) // 2
    return torch.cat([_broken(context, part, failures) for part in (images[:half], images[half:])])


def _nonfinite(context: Context, images: Tensor) -> Tensor:
    x = images.clone().requires_grad_(True)
    with torch.enable_grad():
        logits = ask_model(context.model, x, context.num_classes)
        loss = F.cross_entropy(logits, logits.detach().argmax(1), reduction="sum")
    wrong = ~answered(logits.detach())
    if loss.requires_grad:
        (gradient,) = torch.autograd.grad(loss, x, allow_unused=True)
        if gradient is not None:
            # Samples do not mix: a NaN elsewhere in the batch leaves a sample's own gradient alone.
            wrong |= ~gradient.isfinite().flatten(1).all(1)
    return wrong
