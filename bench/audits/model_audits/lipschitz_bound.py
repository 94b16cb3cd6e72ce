"""Is the Lipschitz bound of the certificate above every slope that is measured?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ....models import NoCertificate
from ..context import Context
from ..differences import off_kinks
from ..measures import array, in_float64
from ..registry import AuditResult, measured, not_applicable, register_audit

ROUNDING = 1e-9
SAMPLES, ASCENTS = 32, 10


@register_audit(
    "lipschitz-bound",
    title="no pair of images exceeds the Lipschitz bound",
    needs="model",
    cost="32 images in float64: one backward pass per class, 10 ascents of the slope, 4 forward passes",
    fast=True,
    untrained=True,
    remedy="Compute the bound from the weights in use, with no factor left out.",
    reference="Tsuzuku, Sato, Sugiyama, NeurIPS 2018, arXiv 1802.04034, eq. 6",
    version=2,
)
def check(context: Context) -> AuditResult:
    """Largest |d(z_i - z_j)| / (|w_i - w_j| L |dx|) over pairs of images and of classes: above 1 flags.

    Pairs are test images, random neighbours, and infinitesimal steps along the gradient: at test images, and
    after ascending the slope itself by power iteration on the Jacobian between two classes. Images are moved
    off kinks, see `differences`: at a kink backpropagation may return what is no slope of the model.
    """
    generator = context.generator("lipschitz-bound")
    images = off_kinks(context.images[:SAMPLES].double(), generator)
    with in_float64(context.model, context.images) as double:
        state = getattr(double, "lipschitz_parts", None)
        if not callable(state):
            return not_applicable("The model states no Lipschitz bound.")
        try:
            parts = state()
        except NoCertificate as reason:
            return not_applicable(f"The model states no Lipschitz bound: {reason}.")
        head = parts.head.to(images)
        product = math.prod(parts.body.values())
        scale = torch.cdist(head, head, compute_mode="donot_use_mm_for_euclid_dist") * product
        seen = {
            "test images": _pairs(
                double(images), double(images.roll(1, 0)), images, images.roll(1, 0), scale
            ),
            "neighbours": _neighbours(generator, double, images, scale),
            "gradients": _slopes(double, images, scale, 0, context.num_classes),
            "steepest images": _slopes(double, images, scale, ASCENTS, context.num_classes),
        }
    value = max(float(each.max()) for each in seen.values())
    sentence = f"The largest measured slope is {value:.3g} of what the model's Lipschitz bound allows"
    sentence += ": the bound is wrong, and so is every certificate." if value > 1 + ROUNDING else "."
    return measured(
        value,
        1.0,
        sentence,
        flagged=not value <= 1 + ROUNDING,
        unit="of the bound",
        arrays={
            "x": array(torch.arange(len(seen))),
            "largest slope over the bound": array([float(each.max()) for each in seen.values()]),
        },
        axes=(", ".join(seen), "fraction of the claimed bound"),
    )


def _ratio(change: Tensor, scale: Tensor) -> Tensor:
    """Largest |change_i - change_j| / scale_ij over pairs of classes, (N,); change (N, K) a unit."""
    apart = (change[:, :, None] - change[:, None, :]).abs()
    return torch.where(scale > 0, apart / scale.clamp_min(1e-300), 0.0).flatten(1).amax(1)


@torch.no_grad()
def _pairs(z: Tensor, other: Tensor, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    distance = (x - y).flatten(1).norm(dim=1)
    apart = distance > 0
    if not bool(apart.any()):
        return torch.zeros(1)
    return _ratio((z - other)[apart] / distance[apart, None], scale)


@torch.no_grad()
def _neighbours(generator: torch.Generator, model: torch.nn.Module, images: Tensor, scale: Tensor) -> Tensor:
    found = []
    for size in (1e-2, 0.3):
        noise = torch.randn(images.shape, generator=generator, dtype=torch.float64).to(images)
        other = images + size * noise
        found.append(_pairs(model(images), model(other), images, other, scale))
    return torch.cat(found)


def _slopes(model: torch.nn.Module, images: Tensor, scale: Tensor, ascents: int, classes: int) -> Tensor:
    """Slopes between classes over the bound, (N,), at images that ascend the slope of their steepest pair."""
    x = images.clone()
    steepest, best = None, torch.zeros(len(images), dtype=images.dtype, device=images.device)
    for ascent in range(ascents + 1):
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = model(x)
            rows = [torch.autograd.grad(logits[:, k].sum(), x, retain_graph=True)[0] for k in range(classes)]
        jacobian = torch.stack(rows, 1).flatten(2)
        gram = jacobian @ jacobian.mT
        squares = gram.diagonal(dim1=1, dim2=2)
        slopes = (squares[:, :, None] + squares[:, None, :] - 2 * gram).clamp_min(0).sqrt()
        ratios = torch.where(scale > 0, slopes / scale.clamp_min(1e-300), 0.0).flatten(1)
        best = torch.maximum(best, ratios.amax(1))
        if ascent == ascents:
            break
        steepest = ratios.argmax(1)
        i, j = steepest // classes, steepest % classes
        direction = (jacobian[torch.arange(len(x)), i] - jacobian[torch.arange(len(x)), j]).view(x.shape)
        # Along its own gradient a logit difference is steepest: a step there finds where it is steeper still.
        length = direction.flatten(1).norm(dim=1).clamp_min(1e-300).view(-1, 1, 1, 1)
        sign = 1.0 if ascent % 2 else -1.0
        x = (x + sign * 0.3 * (1 + ascent // 2) * direction / length).clamp(0, 1)
    return best.detach()
