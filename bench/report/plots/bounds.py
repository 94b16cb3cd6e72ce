"""Both bounds on robust accuracy, certified and worst case, at every strength. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ...records.record import Record
from ..certificates import CERTIFICATE, attacked_samples, has_radii, radii
from ..worst_case import WORST_CASE


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Bounds on the robust accuracy of one model in one norm, fractions.

    Attributes
    ----------
    eps, attacked
        Strengths that were attacked, ascending, from 0 on (clean), and the share of samples that no attack
        up to there broke: the upper bound from each strength to the next.
    radii
        Certified radii of the attacked samples over all seeds, ascending; None without a certificate.
    no_answer
        At each of `eps` the share of samples that are broken by no answer of the model alone; None where
        every sample was answered.
    """

    eps: NDArray[np.float64]
    attacked: NDArray[np.float64]
    radii: NDArray[np.float64] | None
    no_answer: NDArray[np.float64] | None = None

    def certified(self, eps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Share of samples with a radius above each eps: the lower bound; 0 without a certificate."""
        if self.radii is None:
            return np.zeros_like(eps)
        return 1.0 - np.searchsorted(self.radii, eps, side="right") / self.radii.size

    def upper(self, eps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Accuracy at the largest attacked strength up to each eps, which bounds that at eps from above."""
        return np.asarray(self.attacked[np.searchsorted(self.eps, eps, side="right") - 1], float)

    def unanswered(self, eps: float) -> float:
        """Share of samples broken by no answer alone, at the largest attacked strength up to `eps`."""
        if self.no_answer is None:
            return 0.0
        return float(self.no_answer[np.searchsorted(self.eps, eps, side="right") - 1])

    def at(self, eps: float) -> tuple[float, float]:
        """Certified and worst-case accuracy at one eps."""
        lower, upper = (side(np.array([eps])) for side in (self.certified, self.upper))
        return float(lower[0]), float(upper[0])


def bounds(
    accuracy: pd.DataFrame,
    records: Mapping[str, Sequence[Record]],
    no_answer: pd.DataFrame | None = None,
) -> dict[str, dict[str, Bounds]]:
    """Collect both bounds, by norm and label.

    Parameters
    ----------
    accuracy
        Rows of the summary with statistic ``accuracy`` and a `label`.
    records
        By label the records that count.
    no_answer
        Rows of the summary with statistic ``no_answer`` and a `label`.
    """
    silent: dict[tuple[str, str, str, float], float] = {}
    if no_answer is not None:
        silent = {_place(row): float(row["value"]) for _, row in no_answer.iterrows()}
    clean = accuracy[accuracy["threat"] == "clean"].drop_duplicates("label").set_index("label")["value"]
    worst = accuracy[(accuracy["threat"] == WORST_CASE) & (accuracy["protocol"] == "pixel")]
    found: dict[str, dict[str, Bounds]] = defaultdict(dict)
    for (norm, label), rows in worst.groupby(["norm", "label"], sort=False):
        if label in clean.index and norm in ("l2", "linf"):
            rows = rows.sort_values("strength")
            places = [(str(label), "clean", "", 0.0), *(_place(row) for _, row in rows.iterrows())]
            shares = np.array([silent.get(place, 0.0) for place in places])
            found[str(norm)][str(label)] = Bounds(
                eps=np.concatenate([[0.0], rows["strength"]]),
                no_answer=shares if shares.any() else None,
                attacked=np.concatenate([[clean.at[label]], rows["value"]]),
                radii=_radii(records.get(str(label), ()), str(norm)),
            )
    return dict(found)


def _place(row: pd.Series) -> tuple[str, str, str, float]:
    """What an accuracy or a share without an answer is of: label, threat, norm and strength."""
    norm = "" if pd.isna(row["norm"]) else str(row["norm"])
    return str(row["label"]), str(row["threat"]), norm, float(row["strength"])


def _radii(records: Sequence[Record], norm: str) -> NDArray[np.float64] | None:
    """Certified radii in `norm` of the samples that were attacked in it, of all seeds, ascending."""
    samples = min(
        (count for (_, name), count in attacked_samples(records).items() if name == norm), default=0
    )
    found = [radii(record, norm)[:samples] for record in records if has_radii(record, CERTIFICATE)]
    return np.sort(np.concatenate(found)) if found else None
