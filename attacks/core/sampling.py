"""Random numbers for images: each sample draws from a stream of its own, whatever its batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .seeds import per_sample, sample_generators
from .types import Seed


def draw(images: Tensor, seed: Seed, fill: Callable[[np.random.Generator, np.ndarray], object]) -> Tensor:
    """Noise like `images`: ``fill(rng, array)`` for each of them, rng being that image's own stream."""
    noise = np.empty(images.shape, np.float32)
    for rng, array in zip(sample_generators(per_sample(seed, len(images))), noise, strict=True):
        fill(rng, array)
    return torch.from_numpy(noise).to(images, non_blocking=True)


def normal(rng: np.random.Generator, array: np.ndarray) -> None:
    """Fill `array` from N(0, 1)."""
    rng.standard_normal(dtype=np.float32, out=array)


def uniform_unit(rng: np.random.Generator, array: np.ndarray) -> None:
    """Fill `array` from U(0, 1)."""
    rng.random(dtype=np.float32, out=array)
