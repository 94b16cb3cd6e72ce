"""Which models can be told apart, sample by sample, and the ranks that follow. Pure; no torch.

Two models are compared by the exact McNemar test (McNemar, Psychometrika 12, 1947; advised for two trained
classifiers on one test set by Dietterich, Neural Computation 10, 1998): only the samples that one of them
gets right and the other wrong count, and where the models are equally good these fall on either side like
a fair coin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr

ALPHA = 0.05
"""Models whose p-value is below this are told apart."""


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What one row of the leaderboard did on each test sample.

    Attributes
    ----------
    share
        Shape (draws, samples): the share of training seeds that are right on this sample under this draw, in
        [0, 1]. Of a worst case there is one draw.
    index
        Names the list of test samples; only rows of one list can be paired.
    """

    share: NDArray[np.float64]
    index: str = ""


def mcnemar(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Two-sided p-value of the exact McNemar test.

    Parameters
    ----------
    first, second
        Samples that only the one and only the other gets right; they broadcast. Fractions are means over
        repetitions: the larger is rounded down and the smaller up, which never lowers the p-value.

    Returns
    -------
    p
        min(1, 2 P(X <= smaller)) for X binomial with n = first + second and probability 1/2; 1 where n = 0.
    """
    counts = np.stack(np.broadcast_arrays(np.asarray(first, float), np.asarray(second, float)))
    # A sum of shares such as 1/3 misses a whole number by rounding alone.
    large, small = np.floor(counts.max(0) + 1e-9), np.ceil(counts.min(0) - 1e-9)
    small = np.minimum(small, large)
    return np.asarray(np.minimum(1.0, 2.0 * bdtr(small, (large + small).astype(int), 0.5)), float)


def discordant(first: Outcomes, second: Outcomes) -> tuple[float, float]:
    """Count the samples that only `first` and that only `second` gets right.

    Over training seeds it is the mean over every seed of the one against every seed of the other: seed 0 of
    one model has nothing in common with seed 0 of another, and models may have different numbers of them.
    Over draws it is the mean, draw by draw: a draw adds the same noise to a sample whoever the model is.
    Means, not sums: repetitions do not make more test samples. With d the mean difference on a sample, the
    counts have the difference sum(d) and a sum of at least sum(abs(d)) >= sum(d^2), so the test is never
    surer than one on the samples' mean differences. It speaks of the networks that were trained; how far
    other seeds would land is what the spread beside a value says.
    """
    draws = min(first.share.shape[0], second.share.shape[0])
    samples = min(first.share.shape[1], second.share.shape[1])
    a, b = (each.share[:draws, :samples] for each in (first, second))
    both = float(np.vdot(a, b))
    return (float(a.sum()) - both) / draws, (float(b.sum()) - both) / draws


def p_value(first: Outcomes | None, second: Outcomes | None) -> float:
    """P-value of `first` against `second` on their common samples; NaN where they cannot be paired."""
    if first is None or second is None or first.index != second.index:
        return float("nan")
    if not min(first.share.size, second.share.size):
        return float("nan")
    return float(mcnemar(*discordant(first, second)))


def p_values(rows: Sequence[Outcomes | None]) -> NDArray[np.float64]:
    """P-values of each pair, shape (rows, rows): symmetric, 1 on the diagonal, NaN where not paired."""
    table = np.eye(len(rows))
    for i, first in enumerate(rows):
        for j in range(i):
            table[i, j] = table[j, i] = p_value(first, rows[j])
    return table


def ranks(
    values: Sequence[float], below: Sequence[object], rows: Sequence[Outcomes | None]
) -> tuple[list[int], list[float], list[float]]:
    """Rank rows that are in order, best first; rows that cannot be told apart share a rank.

    A row opens a new rank, its position, when it differs (p < `ALPHA`) from the row that opened the current
    one, or when its `below` is another. Rows that cannot be paired share a rank only when their values are
    equal or both missing. Each row is compared with the opener alone and p-values are not corrected for the
    number of rows. Being indistinguishable is not transitive: two rows of one rank may differ from
    each other, and a row may not differ from the last row of the rank above.

    Parameters
    ----------
    values, below, rows
        Of each row the value it was ordered by (NaN if missing), the class it was ordered by before that,
        such as whether it is complete, and its outcomes.

    Returns
    -------
    ranks, against_opener, against_above
        From 1; p-values against the row that had opened the rank it was held against, so below `ALPHA`
        where that opened a new rank, and against the row just above; NaN for the first row, where
        `below` differs, and where there is no pair.
    """
    found: list[int] = []
    against_opener: list[float] = []
    against_above: list[float] = []
    opener = 0
    for i, value in enumerate(values):
        same = i > 0 and below[i] == below[opener]
        p = p_value(rows[opener], rows[i]) if same else float("nan")
        against_opener.append(p)
        against_above.append(
            p if opener == i - 1 else p_value(rows[i - 1], rows[i]) if same else float("nan")
        )
        shares = p >= ALPHA if not np.isnan(p) else same and _equal(values[opener], value)
        if not shares:
            opener = i
        found.append(opener + 1)
    return found, against_opener, against_above


def alike(p: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Longest runs of neighbours no two of which can be told apart, as (first, last), two rows at least.

    Parameters
    ----------
    p
        `p_values` of rows in order. A pair that could not be tested counts as told apart.
    """
    runs: list[tuple[int, int]] = []
    for first in range(len(p)):
        last = first
        while last + 1 < len(p) and bool((p[last + 1, first : last + 1] >= ALPHA).all()):
            last += 1
        if last > first and (not runs or last > runs[-1][1]):
            runs.append((first, last))
    return runs


def _equal(a: float, b: float) -> bool:
    return bool(abs(a - b) < 5e-10) or bool(np.isnan(a) and np.isnan(b))
