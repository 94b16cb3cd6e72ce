"""Distances between images in float64, projection onto a ball, and the violation of a budget."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from ._types import Norm

Radius: TypeAlias = float | Tensor
"""One radius for all samples, or one for each: float64 (N,), in pixel units."""

BUDGET_TOLERANCE = 1e-6
"""How far a float32 attack may overstep its norm or the box [0, 1]: in pixel units, times eps above 1."""


def distance(images: Tensor, others: Tensor, norm: Norm) -> Tensor:
    """Distance per sample between two batches (N, C, H, W), computed in float64; shape (N,)."""
    difference = (images.double() - others.double()).flatten(1)
    length: Tensor = torch.linalg.vector_norm(difference, ord=torch.inf if norm == "linf" else 2, dim=1)
    return length


def radius_of(radius: Radius, rows: Tensor, images: Tensor) -> Radius:
    """The radii of the samples `rows` (n,), to be multiplied with `images`: a number, or (n, 1, 1, 1)."""
    return radius[rows].view(-1, 1, 1, 1).to(images) if isinstance(radius, Tensor) else radius


def inside(images: Tensor, center: Tensor, radius: Radius, rows: Tensor, norm: Norm) -> Tensor:
    """Which of `images` (n, C, H, W) lie within the radii of the samples `rows`, bool (n,)."""
    return distance(images, center, norm) <= (radius[rows] if isinstance(radius, Tensor) else radius)


def project(images: Tensor, center: Tensor, radius: Radius, norm: Norm) -> Tensor:
    """Nearest point to `images` in the ball around `center` (exact for each norm), then the box.

    `radius` is one for all samples or one for each of them, in pixel units.
    Clipping to [0, 1] after projecting never leaves the ball, because `center` lies in the box.
    """
    delta = images - center
    if norm == "linf":
        bound = radius.view(-1, 1, 1, 1) if isinstance(radius, Tensor) else torch.tensor(radius)
        delta = torch.maximum(torch.minimum(delta, bound), -bound)
    else:
        length = torch.linalg.vector_norm(delta.flatten(1), dim=1).clamp_min(torch.finfo(delta.dtype).tiny)
        radius = radius.view(-1) if isinstance(radius, Tensor) else radius
        delta = delta * (radius / length).clamp_max(1).view(-1, 1, 1, 1)
    return (center + delta).clamp(0, 1)


def violation(
    images: Tensor, center: Tensor, radius: float, norm: Norm | None, box: tuple[float, float] = (0.0, 1.0)
) -> Tensor:
    """How far each sample lies outside its budget and `box`, in float64; shape (N,), 0 inside.

    A non-finite image violates by infinity. With `norm` None only the box counts.
    """
    low, high = (extreme.double() for extreme in images.flatten(1).aminmax(dim=1))
    outside = torch.maximum(box[0] - low, high - box[1]).clamp_min(0)
    if norm is not None:
        outside = torch.maximum(outside, (distance(images, center, norm) - radius).clamp_min(0))
    return torch.where(low.isfinite() & high.isfinite(), outside, torch.inf)
