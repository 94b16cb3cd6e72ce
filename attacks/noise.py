"""Random noise in pixel space, clipped to [0, 1]: Gaussian, salt-and-pepper, uniform.

Each sample draws from a stream of its own, so its noise depends neither on the batch nor on the order;
the same stream serves every strength, so that a curve over strengths compares like with like.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .core.sampling import draw, normal, uniform_unit
from .core.types import Model, Seed
from .registry import register_threat


@register_threat(
    "gaussian",
    family="noise",
    strength_name="sigma",
    stochastic=True,
    reference="Hendrycks, Dietterich, ICLR 2019, arXiv 1903.12261",
)
def gaussian(model: Model, images: Tensor, labels: Tensor, strength: float, seed: Seed) -> Tensor:
    """Add N(0, strength^2) to every pixel value and clip to [0, 1]."""
    noise = draw(images, seed, normal)
    return (images + strength * noise).clamp(0, 1)


@register_threat(
    "salt-pepper",
    family="noise",
    strength_name="amount",
    max_strength=1.0,
    stochastic=True,
    reference="Hendrycks, Dietterich, ICLR 2019, arXiv 1903.12261 (impulse noise)",
)
def salt_pepper(model: Model, images: Tensor, labels: Tensor, strength: float, seed: Seed) -> Tensor:
    """Replace each pixel value with probability `strength`: half of them by 1, half by 0."""
    u = draw(images, seed, uniform_unit)
    noisy = torch.where(u < strength / 2, torch.ones_like(images), images)
    return torch.where(u >= 1 - strength / 2, torch.zeros_like(images), noisy)


@register_threat(
    "uniform",
    family="noise",
    norm="linf",
    strength_name="radius",
    stochastic=True,
    reference="Rauber, Brendel, Bethge, arXiv 1707.04131 (additive uniform noise)",
)
def uniform(model: Model, images: Tensor, labels: Tensor, strength: float, seed: Seed) -> Tensor:
    """Add U(-strength, strength) to every pixel value and clip to [0, 1]; inside the L-infinity ball."""
    noise = draw(images, seed, uniform_unit)
    return (images + strength * (2 * noise - 1)).clamp(0, 1)
