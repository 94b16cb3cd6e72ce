"""Distances between images in float64, projection onto a ball, and the violation of a budget."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from .types import Norm

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
    """Nearest point to each of `images` (n, C, H, W) in the ball around `center` that lies in the box [0, 1].

    `radius` is one for all samples or one for each of them, in pixel units; `center` lies in the box. The
    nearest point of ball and box together, in l2 too: projecting onto the ball first and clipping then, as
    most attacks do, ends well inside the ball wherever the box is met, on dark images nearly everywhere.
    """
    if norm == "linf":
        return onto_ball(images, center, radius, norm).clamp(0, 1)
    delta = images - center
    return (center + scale_into_ball(delta, center, radius).view(-1, 1, 1, 1) * delta).clamp(0, 1)


def onto_ball(images: Tensor, center: Tensor, radius: Radius, norm: Norm) -> Tensor:
    """Nearest point to each of `images` (n, C, H, W) in the ball around `center`, wherever the box is."""
    delta = images - center
    if norm == "linf":
        bound = radius.view(-1, 1, 1, 1) if isinstance(radius, Tensor) else torch.tensor(radius)
        return center + torch.maximum(torch.minimum(delta, bound), -bound)
    length = torch.linalg.vector_norm(delta.flatten(1), dim=1).clamp_min(torch.finfo(delta.dtype).tiny)
    radius = radius.view(-1) if isinstance(radius, Tensor) else radius
    nearest: Tensor = center + delta * (radius / length).clamp_max(1).view(-1, 1, 1, 1)
    return nearest


def scale_into_ball(delta: Tensor, center: Tensor, radius: Radius, largest: float | Tensor = 1.0) -> Tensor:
    """The largest s <= `largest`, (n,), for which center + s delta, clipped to the box, lies in the l2 ball.

    By the conditions of Karush, Kuhn and Tucker, the nearest point of ball and box to center + delta is of
    that form (`largest` 1), and so is the point of both that is farthest along delta. With the coordinates
    that are clipped at s known, s is the root of a quadratic equation; clipping none at first, each root
    clips more of them and is larger, until none is added.

    Parameters
    ----------
    delta, center
        (n, C, H, W); the centres lie in the box.
    radius
        In pixel units: one for all samples, or one for each.
    largest
        One for all samples, or one for each, (n,).
    """
    moves = delta.flatten(1).abs()
    room = torch.where(delta > 0, 1 - center, center).flatten(1)
    budget = (radius.view(-1) if isinstance(radius, Tensor) else torch.full_like(moves[:, 0], radius)) ** 2
    scale = torch.zeros_like(moves[:, 0])
    while True:
        free = scale[:, None] * moves < room
        rest = (moves * free).square().sum(1)
        spent = room.where(~free, 0).square().sum(1)
        root = ((budget - spent).clamp_min(0) / rest).sqrt().nan_to_num(torch.inf, torch.inf)
        root = root.minimum(largest) if isinstance(largest, Tensor) else root.clamp_max(largest)
        if not bool((root > scale).any()):
            return scale
        scale = torch.maximum(scale, root)


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


def per_image(values: Tensor) -> Tensor:
    """View (N,) as (N, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


def norms_of(images: Tensor, order: float = 2) -> Tensor:
    """The length of each sample in the norm l_order, (N,): positive, and without overflow or underflow."""
    flat = images.flatten(1)
    largest = flat.abs().amax(1, keepdim=True).clamp_min(torch.finfo(images.dtype).tiny)
    length: Tensor = largest[:, 0] * torch.linalg.vector_norm(flat / largest, ord=order, dim=1)
    return length.clamp(torch.finfo(images.dtype).tiny, torch.finfo(images.dtype).max)


def normalise_l2(images: Tensor) -> Tensor:
    """Scale each sample to length 1 in l2."""
    largest = images.abs().flatten(1).amax(1).clamp_min(torch.finfo(images.dtype).tiny)
    images = images / per_image(largest)
    return images / per_image(norms_of(images))
