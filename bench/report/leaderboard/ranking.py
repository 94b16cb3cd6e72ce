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
    """What the trained networks of one row of the leaderboard did on each test sample.

    Attributes
    ----------
    correct
        Shape (training seeds, draws, samples). Of a worst case or a certificate there is one draw.
    index
        Names the list of test samples; only rows of one list can be paired.
    """

    correct: NDArray[np.bool_]
    index: str = ""


def mcnemar(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Two-sided p-value of the exact McNemar test.

    Parameters
    ----------
    first, second
        Samples that only the one and only the other gets right; they broadcast. Fractions are means over
        draws: the larger is rounded down and the smaller up, which never lowers the p-value.

    Returns
    -------
    p
        min(1, 2 P(X <= smaller)) for X binomial with n = first + second and probability 1/2; 1 where n = 0.
    """
    counts = np.stack(np.broadcast_arrays(np.asarray(first, float), np.asarray(second, float)))
    # A mean such as 6.000000000000001 misses a whole number by rounding alone.
    large, small = np.floor(counts.max(0) + 1e-9), np.ceil(counts.min(0) - 1e-9)
    small = np.minimum(small, large)
    return np.asarray(np.minimum(1.0, 2.0 * bdtr(small, (large + small).astype(int), 0.5)), float)


def discordant(first: Outcomes, second: Outcomes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Count the samples that only `first` and that only `second` gets right.

    Returns
    -------
    only_first, only_second
        Each of shape (seeds of first, seeds of second): every trained network of the one against every one
        of the other, since seed 0 of one model has nothing in common with seed 0 of another. Over draws it
        is the mean, draw by draw: a draw adds the same noise to a sample whoever the model is, and more
        draws do not make more test samples.
    """
    draws, samples = (min(first.correct.shape[k], second.correct.shape[k]) for k in (1, 2))
    a, b = (
        each.correct[:, :draws, :samples].reshape(len(each.correct), -1).astype(np.float64)
        for each in (first, second)
    )
    both = a @ b.T
    return (a.sum(1)[:, None] - both) / draws, (b.sum(1)[None, :] - both) / draws


def p_value(first: Outcomes | None, second: Outcomes | None) -> float:
    """P-value of `first` against `second` on their common samples; NaN where they cannot be paired.

    With one training seed each it is McNemar's. With several it is the largest over all pairs of their
    trained networks, and 1 where two pairs differ in opposite directions: models are told apart only when
    each network of the one differs from each network of the other in the same direction. That is the
    intersection-union test (Berger, Technometrics 24, 1982), so the level holds without a correction, and
    models whose seeds overlap share a rank. A single seed says nothing about other seeds.
    """
    if first is None or second is None or first.index != second.index:
        return float("nan")
    if not min(first.correct.size, second.correct.size):
        return float("nan")
    only_first, only_second = discordant(first, second)
    signs = np.sign(only_first - only_second)
    if signs.min() != signs.max():
        return 1.0
    return float(mcnemar(only_first, only_second).max())


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
