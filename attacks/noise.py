"""Random noise in pixel space, clipped to [0, 1]: Gaussian, salt-and-pepper, uniform.

Each sample draws from a stream of its own, so its noise depends neither on the batch nor on the order;
the same stream serves every strength, so that a curve over strengths compares like with like.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ._seeds import per_sample, sample_generator
from .registry import Model, Seed, register_threat


def draw(
    images: Tensor, seed: Seed, sample: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
) -> Tensor:
    """One array ``sample(rng, (C, H, W))`` for each image, from that image's own stream; like `images`."""
    shape = tuple(images.shape[1:])
    noise = np.stack([sample(sample_generator(s), shape) for s in per_sample(seed, len(images))])
    return torch.from_numpy(noise).to(images)


@register_threat(
    "gaussian",
    family="noise",
    strength_name="sigma",
    stochastic=True,
    reference="Hendrycks, Dietterich, ICLR 2019, arXiv 1903.12261",
)
def gaussian(model: Model, images: Tensor, labels: Tensor, strength: float, seed: Seed) -> Tensor:
    """Add N(0, strength^2) to every pixel value and clip to [0, 1]."""
    noise = draw(images, seed, lambda rng, shape: rng.standard_normal(shape, dtype=np.float32))
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
    u = draw(images, seed, lambda rng, shape: rng.random(shape, dtype=np.float32))
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
    noise = draw(images, seed, lambda rng, shape: rng.random(shape, dtype=np.float32))
    return (images + strength * (2 * noise - 1)).clamp(0, 1)
