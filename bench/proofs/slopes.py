"""Slopes of a network's logits, measured at real images, as fractions of what a stated bound allows."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...models import LipschitzParts

ROUNDING = 1e-9
"""Fractions above 1 by no more than this are rounding, in float64."""


def slopes_over_bound(
    model: nn.Module, images: Tensor, parts: LipschitzParts, *, ascents: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return |d(z_i - z_j)| / (|w_i - w_j| L |dx|), the largest over pairs of classes, by kind of pair.

    Pairs are test images, random neighbours, and infinitesimal steps along the gradient: at test images, and
    after ascending the slope itself by power iteration on the Jacobian between two classes. A value above 1
    contradicts the bound.

    Parameters
    ----------
    model
        In float64 and eval mode.
    images
        Shape (N, C, H, W), float64.
    ascents
        Steps of the ascent.
    """
    head = parts.head.to(images)
    product = math.prod(parts.body.values())
    scale = torch.cdist(head, head, compute_mode="donot_use_mm_for_euclid_dist") * product
    with torch.no_grad():
        logits, others = model(images), model(images.roll(1, 0))
    return {
        "test images": _pairs(logits, others, images, images.roll(1, 0), scale),
        "neighbours": _neighbours(generator, model, images, scale),
        "gradients": _slopes(model, images, scale, 0, len(head)),
        "steepest images": _slopes(model, images, scale, ascents, len(head)),
    }


def _ratio(change: Tensor, scale: Tensor) -> Tensor:
    """Largest |change_i - change_j| / scale_ij over pairs of classes, (N,); change (N, K) a unit."""
    apart = (change[:, :, None] - change[:, None, :]).abs()
    return _over(apart, scale).amax(1)


def _over(slopes: Tensor, scale: Tensor) -> Tensor:
    """`slopes` (N, K, K) over `scale` (K, K), as (N, K K); above a bound of 0 only rounding is no slope."""
    none = slopes > ROUNDING * slopes.amax().clamp_min(1.0)
    zero = torch.where(none, torch.inf, 0.0).to(slopes)
    return torch.where(scale > 0, slopes / scale.clamp_min(1e-300), zero).flatten(1)


@torch.no_grad()
def _pairs(z: Tensor, other: Tensor, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    distance = (x - y).flatten(1).norm(dim=1)
    apart = distance > 0
    if not bool(apart.any()):
        return torch.zeros(1)
    return _ratio((z - other)[apart] / distance[apart, None], scale)


@torch.no_grad()
def _neighbours(generator: torch.Generator, model: nn.Module, images: Tensor, scale: Tensor) -> Tensor:
    found = []
    for size in (1e-2, 0.3):
        noise = torch.randn(images.shape, generator=generator, dtype=torch.float64).to(images)
        other = images + size * noise
        found.append(_pairs(model(images), model(other), images, other, scale))
    return torch.cat(found)


def _slopes(model: nn.Module, images: Tensor, scale: Tensor, ascents: int, classes: int) -> Tensor:
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
        ratios = _over(slopes, scale)
        best = torch.maximum(best, ratios.amax(1))
        if ascent == ascents:
            break
        steepest = ratios.argmax(1)
        i, j = steepest // classes, steepest % classes
        direction = (jacobian[torch.arange(len(x)), i] - jacobian[torch.arange(len(x)), j]).reshape(x.shape)
        # Along its own gradient a logit difference is steepest: a step there finds where it is steeper still.
        length = direction.flatten(1).norm(dim=1).clamp_min(1e-300).view(-1, 1, 1, 1)
        sign = 1.0 if ascent % 2 else -1.0
        x = (x + sign * 0.3 * (1 + ascent // 2) * direction / length).clamp(0, 1)
    return best.detach()
