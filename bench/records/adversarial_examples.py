"""Adversarial examples as they are kept: perturbations in whole steps of 1/65535 of a pixel. No torch.

Rounding a perturbation towards zero, pixel by pixel, shrinks every norm of it and leaves the image between
the clean one and the attacked one, so neither the budget nor the box can be left. A grid for the images
themselves could not promise that: a clean pixel of k/16 does not lie on it and would be moved.
"""

from __future__ import annotations

import io
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..._errors import RecordError

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


def pack(breaks: AdversarialExamples) -> bytes:
    """Write `breaks` as a compressed ``.npz``; equal breaks give equal bytes."""
    narrow = np.abs(breaks.steps).max(initial=0) <= np.iinfo(np.int16).max
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        index=breaks.index.astype("<i8"),
        label=breaks.label.astype("<i8"),
        steps=breaks.steps.astype("<i2" if narrow else "<i4"),
    )
    return buffer.getvalue()


def unpack(data: bytes) -> AdversarialExamples:
    """Read what `pack` wrote; raises `RecordError` for anything else, pickles included."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            index, label, steps = (file[name] for name in ("index", "label", "steps"))
    except Exception as error:  # a damaged archive raises whatever its decoder happens to meet
        raise RecordError(f"not a file of adversarial examples ({type(error).__name__}: {error})") from None
    whole = all(np.issubdtype(array.dtype, np.integer) for array in (index, label, steps))
    if not whole or index.shape != label.shape or index.shape != steps.shape[:1] or steps.ndim != 4:
        raise RecordError("its arrays are not integers index (k,), label (k,), steps (k, c, h, w)")
    return AdversarialExamples(
        index=index.astype(np.int64), label=label.astype(np.int64), steps=steps.astype(np.int32)
    )
