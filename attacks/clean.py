"""No perturbation: the reference point of every curve."""

from __future__ import annotations

from torch import Tensor

from .core.types import Model, Seed
from .registry import register_threat


@register_threat("clean", family="clean", max_strength=0.0)
def clean(model: Model, images: Tensor, labels: Tensor, strength: float, seed: Seed) -> Tensor:
    """Return the images as they are."""
    return images.clone()
