"""NaN for bright images: comparisons with NaN are false, and false passes for robust."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Case, Defect, Wrapped, sound_model


class Root(Wrapped):
    """Takes the root of a quantity that is negative for an image with a mean above 0.45."""

    def forward(self, images: Tensor) -> Tensor:
        room = 0.45 - images.flatten(1).mean(1)
        return super().forward(images) * torch.where(room < 0, torch.nan, 1.0)[:, None]


def defective(seed: int) -> Case:
    return Case(Root(sound_model(seed)))


def control(seed: int) -> Case:
    """No root."""
    return Case(sound_model(seed), same_as="sound model")


DEFECT = Defect("finite", defective, control)
