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
    """

    eps: NDArray[np.float64]
    attacked: NDArray[np.float64]
    radii: NDArray[np.float64] | None

    def certified(self, eps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Share of samples with a radius above each eps: the lower bound; 0 without a certificate."""
        if self.radii is None:
            return np.zeros_like(eps)
        return 1.0 - np.searchsorted(self.radii, eps, side="right") / self.radii.size

    def upper(self, eps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Accuracy at the largest attacked strength up to each eps, which bounds that at eps from above."""
        return np.asarray(self.attacked[np.searchsorted(self.eps, eps, side="right") - 1], float)

    def at(self, eps: float) -> tuple[float, float]:
        """Certified and worst-case accuracy at one eps."""
        lower, upper = (side(np.array([eps])) for side in (self.certified, self.upper))
        return float(lower[0]), float(upper[0])


def bounds(accuracy: pd.DataFrame, records: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, Bounds]]:
    """Collect both bounds, by norm and label.

    Parameters
    ----------
    accuracy
        Rows of the summary with statistic ``accuracy`` and a `label`.
    records
        By label the records that count.
    """
    clean = accuracy[accuracy["threat"] == "clean"].drop_duplicates("label").set_index("label")["value"]
    worst = accuracy[(accuracy["threat"] == WORST_CASE) & (accuracy["protocol"] == "pixel")]
    found: dict[str, dict[str, Bounds]] = defaultdict(dict)
    for (norm, label), rows in worst.groupby(["norm", "label"], sort=False):
        if label in clean.index and norm in ("l2", "linf"):
            rows = rows.sort_values("strength")
            found[str(norm)][str(label)] = Bounds(
                eps=np.concatenate([[0.0], rows["strength"]]),
                attacked=np.concatenate([[clean.at[label]], rows["value"]]),
                radii=_radii(records.get(str(label), ()), str(norm)),
            )
    return dict(found)


def _radii(records: Sequence[Record], norm: str) -> NDArray[np.float64] | None:
    """Certified radii in `norm` of the samples that were attacked in it, of all seeds, ascending."""
    samples = min(
        (count for (_, name), count in attacked_samples(records).items() if name == norm), default=0
    )
    found = [radii(record, norm)[:samples] for record in records if has_radii(record, CERTIFICATE)]
    return np.sort(np.concatenate(found)) if found else None
