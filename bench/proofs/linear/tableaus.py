"""Butcher tableaus of the explicit methods on a fixed grid."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# a by rows below the diagonal, then b: stage i is x + h sum_j a_ij f(stage j); a step has b_j for a_ij.
_TABLEAUS: Mapping[str, tuple[list[list[float]], list[float]]] = {
    "euler": ([[]], [1]),
    "midpoint": ([[], [1 / 2]], [0, 1]),
    "heun2": ([[], [1]], [1 / 2, 1 / 2]),
    "heun3": ([[], [1 / 3], [0, 2 / 3]], [1 / 4, 0, 3 / 4]),
    "ssprk3": ([[], [1], [1 / 4, 1 / 4]], [1 / 6, 1 / 6, 2 / 3]),
    # torchdiffeq's rk4 is Kutta's 3/8 rule.
    "rk4": ([[], [1 / 3], [-1 / 3, 1], [1, -1, 1]], [1 / 8, 3 / 8, 3 / 8, 1 / 8]),
}


def tableau(method: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a, shape (stages, stages), zero on and above the diagonal, and b, shape (stages,), in float64.

    Raises
    ------
    KeyError
        For a method without a fixed grid.

    References
    ----------
    Hairer, Norsett, Wanner, "Solving ordinary differential equations I", 1993, section II.1.
    """
    rows, weights = _TABLEAUS[method]
    a = np.zeros((len(weights), len(weights)))
    for i, row in enumerate(rows):
        a[i, : len(row)] = row
    return a, np.array(weights, np.float64)
