"""Probabilities for logits."""

from __future__ import annotations

from torch import Tensor

from .base import Case, Defect, Wrapped, sound_model


class Softmax(Wrapped):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).softmax(1)


def defective(seed: int) -> Case:
    return Case(Softmax(sound_model(seed)))


def control(seed: int) -> Case:
    """Logits."""
    return Case(sound_model(seed), same_as="sound model")


DEFECT = Defect("logits", defective, control)
