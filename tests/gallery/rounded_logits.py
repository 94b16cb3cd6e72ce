"""Logits rounded to halves: the class stays, the gradient is gone."""

from __future__ import annotations

from torch import Tensor

from .base import Case, Defect, Wrapped, sound_model


class Rounded(Wrapped):
    def forward(self, images: Tensor) -> Tensor:
        return (2 * super().forward(images)).round() / 2


def defective(seed: int) -> Case:
    return Case(Rounded(sound_model(seed)))


def control(seed: int) -> Case:
    """Not rounded."""
    return Case(sound_model(seed), same_as="sound model")


DEFECT = Defect("zero-gradients", defective, control)
