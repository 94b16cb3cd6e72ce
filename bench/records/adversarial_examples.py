"""Adversarial examples as they are stored: perturbations in whole steps of 1/65535 of a pixel. No torch.

Rounding a perturbation towards zero, pixel by pixel, shrinks every norm of it and leaves the image between
the clean one and the attacked one, so neither the budget nor the box can be left. A grid for the images
themselves could not promise that: a clean pixel of k/16 does not lie on it and would be moved.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STEPS = 65535
"""Steps from black to white: every difference of two 8-bit or 16-bit pixels is a whole number of them."""


@dataclass(frozen=True, kw_only=True)
class AdversarialExamples:
    """The samples that one attack broke, and with what.

    Attributes
    ----------
    index
        int64 (k,), each sample's number in its source (``Data.test.indices``), each once.
    label
        int64 (k,), what the dataset calls it.
    steps
        int32 (k, c, h, w), the perturbation in steps of 1/65535.
    """

    index: NDArray[np.int64]
    label: NDArray[np.int64]
    steps: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.index)

    def of(self, wanted: Collection[int]) -> AdversarialExamples:
        """Those of the samples whose numbers are `wanted`."""
        mine = np.isin(self.index, np.fromiter(wanted, np.int64, len(wanted)))
        return AdversarialExamples(index=self.index[mine], label=self.label[mine], steps=self.steps[mine])


def perturbation_steps(perturbed: NDArray[np.floating], clean: NDArray[np.floating]) -> NDArray[np.int32]:
    """The perturbation in whole steps, rounded towards zero; both finite, in [0, 1], of one shape."""
    return np.trunc((perturbed.astype(np.float64) - clean.astype(np.float64)) * STEPS).astype(np.int32)


def add_steps(clean: NDArray[np.floating], steps: NDArray[np.integer]) -> NDArray[np.float32]:
    """The adversarial images, float32 of the shape of `clean`: what was predicted, bit for bit."""
    return (clean.astype(np.float64) + steps / STEPS).astype(np.float32)
