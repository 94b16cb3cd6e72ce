"""Pixels rounded to a few levels and detached: what is classified has no gradient to the image."""

from __future__ import annotations

from torch import Tensor

from .base import Case, Defect, Wrapped, sound_model


class Quantised(Wrapped):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward((8 * images).round().detach() / 8)


def defective(seed: int) -> Case:
    return Case(Quantised(sound_model(seed)))


def control(seed: int) -> Case:
    """The image as it is."""
    return Case(sound_model(seed), same_as="sound model")


DEFECT = Defect("zero-gradients", defective, control)
