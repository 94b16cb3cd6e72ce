"""Logits rounded to halves: the class stays, the gradient is gone."""

from __future__ import annotations

from robustode.tests.gallery.base import Case, Sin, Wrapped, honest
from torch import Tensor


class Rounded(Wrapped):
    def forward(self, images: Tensor) -> Tensor:
        return (2 * super().forward(images)).round() / 2


def sinner(seed: int) -> Case:
    return Case(Rounded(honest(seed)))


def twin(seed: int) -> Case:
    """Not rounded."""
    return Case(honest(seed), same_as="honest")


SIN = Sin("zero-gradients", sinner, twin)
