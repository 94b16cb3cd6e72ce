"""Pixels rounded to a few levels and detached: what is classified has no gradient to the image."""

from __future__ import annotations

from robustode.tests.gallery.base import Case, Sin, Wrapped, honest
from torch import Tensor


class Quantised(Wrapped):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward((8 * images).round().detach() / 8)


def sinner(seed: int) -> Case:
    return Case(Quantised(honest(seed)))


def twin(seed: int) -> Case:
    """The image as it is."""
    return Case(honest(seed), same_as="honest")


SIN = Sin("zero-gradients", sinner, twin)
