"""Robust accuracy from below: which samples are certified, from the radii of stored certificates."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ..records.latest import Entry, entry
from ..records.record import Record

CERTIFICATE = "lipschitz"
"""The certificate of the model itself."""
SMOOTHING = "smoothing"
"""That of its vote under noise, which is another classifier."""
NORMS = ("l2", "linf")
"""Norms in which a certificate says something."""


def has_radii(record: Record, certificate: str | None = None) -> bool:
    """Whether a record holds certified radii, of this certificate if one is named."""
    named = certificate is None or record.cell.threat == certificate
    return record.cell.kind == "certificate" and named and "radius" in record.outcomes


def radii(record: Record, norm: str) -> NDArray[np.float64]:
    """Certified radius of each sample in `norm`, shape (samples,), in units of the pixel range.

    Stored radii are in l2; a ball of radius eps in L-infinity lies in one of eps sqrt(pixels) in l2.
    """
    return np.asarray(record.outcomes["radius"], np.float64) / _scale(record, norm)


def certified(record: Record, norm: str, strength: float) -> NDArray[np.bool_]:
    """Which samples no perturbation of this strength can change, shape (samples,)."""
    return np.asarray(record.outcomes["radius"] > strength * _scale(record, norm), np.bool_)


def attacked_samples(records: Iterable[Record]) -> dict[tuple[Entry, str], int]:
    """By row and norm the test samples that every attack of the norm was run on: the first ones.

    A lower bound is taken over the same samples as the upper bound that is reported beside it.
    """
    found: dict[tuple[Entry, str], int] = {}
    for record in records:
        cell = record.cell
        if cell.kind == "accuracy" and cell.norm is not None:
            where = (entry(cell), cell.norm)
            found[where] = min(found.get(where, cell.samples), cell.samples)
    return found


def _scale(record: Record, norm: str) -> float:
    return 1.0 if norm == "l2" else float(np.sqrt(record.measures["pixels"]))
