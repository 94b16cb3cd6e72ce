"""Adaptive path: the Dormand-Prince 5(4) tableau, its interpolant, and its rows for the compiled loops."""

from __future__ import annotations

import numpy as np

STAGES = np.zeros((7, 7))
"""Weights of the stages before it in each stage's input; the last is y1, the next step's first."""
STAGES[1, :1] = 1 / 5
STAGES[2, :2] = 3 / 40, 9 / 40
STAGES[3, :3] = 44 / 45, -56 / 15, 32 / 9
STAGES[4, :4] = 19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729
STAGES[5, :5] = 9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656
STAGES[6, :6] = 35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84

ERROR = STAGES[6] - np.array([1951 / 21600, 0, 22642 / 50085, 451 / 720, -12231 / 42400, 649 / 6300, 1 / 60])
"""Weights of the fifth-order solution less those of the fourth-order one beside it."""

MIDDLE = np.array(
    [
        6025192743 / 30085553152,
        0,
        51252292925 / 65400821598,
        -2691868925 / 45128329728,
        187940372067 / 1594534317056,
        -1776094331 / 19743644256,
        11237099 / 235043384,
    ]
)
"""Weights of the solution in the middle of the step, twice."""

_FIRST, _LAST = np.eye(7)[0], np.eye(7)[6]
QUARTIC = np.stack(
    [
        _FIRST,
        _LAST - 4 * _FIRST - 5 * STAGES[6] + 8 * MIDDLE,
        5 * _FIRST - 3 * _LAST + 14 * STAGES[6] - 16 * MIDDLE,
        2 * (_LAST - _FIRST) - 8 * STAGES[6] + 8 * MIDDLE,
    ]
)
"""Weights of the interpolant at x, by the power of x from 1 to 4."""


def interpolant(x: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights w of the stages, over h, at `x` in a step, and their derivatives by x."""
    x = float(np.float32(x))
    powers = x ** np.arange(5.0)
    return powers[1:] @ QUARTIC, (np.arange(1, 5) * powers[:4]) @ QUARTIC


def row(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """The nonzero `weights` of up to six stages, as `dopri5_loops._combine` takes them."""
    index, value, count = rows(np.atleast_2d(weights))
    return index[0], value[0], int(count[0])


def rows(tableau: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each row is not zero, its weights there, how many; filled up with the row's own first stage."""
    index = np.zeros((len(tableau), 6), np.int64)
    value = np.zeros((len(tableau), 6), np.float32)
    for line, i, v in zip(tableau, index, value, strict=True):
        found = np.flatnonzero(line)
        if len(found):
            i[:] = found[0]
            i[: len(found)], v[: len(found)] = found, line[found]
    return index, value, np.count_nonzero(tableau, axis=1)
