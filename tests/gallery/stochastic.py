"""Noise of its own in every pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import Case, Defect, Wrapped, sound_model


class Noisy(Wrapped):
    """Adds Gaussian noise to the image, from a generator that it draws on, or always the same noise."""

    def __init__(self, model: nn.Module, *, fixed: bool) -> None:
        super().__init__(model)
        self.fixed = fixed
        self.register_buffer("pattern", torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)))

    def forward(self, images: Tensor) -> Tensor:
        noise = self.pattern if self.fixed else torch.randn_like(images)
        return super().forward(images + 0.05 * noise.to(images))


def defective(seed: int) -> Case:
    return Case(Noisy(sound_model(seed), fixed=False))


def control(seed: int) -> Case:
    """The same pattern is added every time."""
    return Case(Noisy(sound_model(seed), fixed=True))


DEFECT = Defect("determinism", defective, control)
