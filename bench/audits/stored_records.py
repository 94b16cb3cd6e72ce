"""The stored records of one model and training seed, as audits need them. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..records.record import SUBMISSION, Record


@dataclass(frozen=True, kw_only=True)
class StoredRecords:
    """The stored records of one model and training seed.

    Attributes
    ----------
    records
        Those that count, of one row of the leaderboard and one training seed.
    reported
        The strength that the leaderboard reports, by norm or noise.
    """

    records: tuple[Record, ...] = ()
    reported: Mapping[str, float] = field(default_factory=dict)

    @property
    def training(self) -> Record | None:
        """The record of the training; None where it is not stored or failed."""
        return next((r for r in self._sound() if r.cell.kind == "training"), None)

    @property
    def clean(self) -> Record | None:
        """The record of the unperturbed test samples."""
        return next((r for r in self._sound() if r.cell.family == "clean"), None)

    @property
    def certificate(self) -> Record | None:
        """The deterministic certificate, if the model has one."""
        return next(
            (r for r in self._sound() if r.cell.threat == "lipschitz" and "radius" in r.outcomes), None
        )

    def attacks(self, norm: str | None = None, *, submitted: bool = False) -> list[Record]:
        """Attacks in pixel space by rising strength, with replays, and submissions if `submitted`."""
        left_out = ("clean", "noise") if submitted else ("clean", "noise", SUBMISSION)
        found = [
            r
            for r in self._sound()
            if r.cell.kind == "accuracy"
            and r.cell.norm is not None
            and r.cell.family not in left_out
            and r.cell.protocol == "pixel"
            and norm in (None, r.cell.norm)
        ]
        return sorted(found, key=lambda r: (r.cell.strength, r.cell.threat))

    def noise(self) -> list[Record]:
        """Noise in pixel space, by rising strength."""
        found = [r for r in self._sound() if r.cell.family == "noise" and r.cell.protocol == "pixel"]
        return sorted(found, key=lambda r: (r.cell.strength, r.cell.threat))

    def broken(self, norm: str, strength: float) -> NDArray[np.bool_] | None:
        """Which samples (n,) are misclassified, clean or under any stored attack within `strength`.

        Of the first samples that all of these records cover; None without an attack at `strength`.
        """
        ours = [r for r in self.attacks(norm) if r.cell.strength <= strength + 1e-9]
        if not any(abs(r.cell.strength - strength) < 1e-9 for r in ours):
            return None
        arrays = [r.outcomes["correct"] for r in [*ours, *([self.clean] if self.clean else [])]]
        count = min(array.shape[1] for array in arrays)
        survived = np.ones(count, bool)
        for array in arrays:
            survived &= array[:, :count].all(0)
        return ~survived

    def _sound(self) -> Iterator[Record]:
        return (record for record in self.records if record.status == "ok")
