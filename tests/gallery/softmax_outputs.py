"""Probabilities for logits."""

from __future__ import annotations

from robustode.tests.gallery.base import Case, Sin, Wrapped, honest
from torch import Tensor


class Softmax(Wrapped):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).softmax(1)


def sinner(seed: int) -> Case:
    return Case(Softmax(honest(seed)))


def twin(seed: int) -> Case:
    """Logits."""
    return Case(honest(seed), same_as="honest")


SIN = Sin("logits", sinner, twin)
