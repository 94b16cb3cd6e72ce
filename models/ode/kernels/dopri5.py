"""Adaptive Dormand-Prince flows of tanh fields on a CPU: the decisions of torchdiffeq 0.2.5, compiled steps.

Steps are accepted, rejected and resized by one norm of the error over the whole state, and the last one goes
past the end, where the state is read off its interpolant. All of y0, k_1, ..., k_7 cancels in that quartic
but y0 + h sum_i w_i k_i with w_i a polynomial of where the end lies in the step, so it costs no evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import dopri5_loops
from .initial_step import FirstStep, first_step, pull_first_step, rms
from .operands import Operands, Totals
from .tableau import ERROR, STAGES, interpolant, row, rows

_loops: Any = dopri5_loops  # compiled: they have no Python types

SAFETY, LARGEST_FACTOR, LEAST_FACTOR, ORDER = 0.9, 10.0, 0.2, 5


class GaveUp(ArithmeticError):
    """There is no further step."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """An accepted step, as its gradient needs it.

    Attributes
    ----------
    y0
        The state before it, (n, M).
    h
        Its size.
    end
        Where the layer's end lies in it, in (0, 1]; None for a step that is followed by another.
    size
        What the size was made of, on a layer's first step: None where a rejection made it a constant.
    timed
        Whether the layer's first size has a gradient that this step contributes to.
    """

    y0: np.ndarray
    layer: int
    h: float
    end: float | None
    size: FirstStep | None
    timed: bool


def solve(
    y0: np.ndarray,
    field: Operands,
    layer: int,
    *,
    duration: float,
    count: Callable[[int], None],
    keep: bool,
) -> tuple[np.ndarray, list[Step]]:
    """Carry `y0` over [0, `duration`] in `layer`; the state there, and with `keep` the accepted steps.

    Parameters
    ----------
    count
        Called with each number of evaluations of the field.

    Raises
    ------
    GaveUp
        When the step size underflows or the state is not finite, in torchdiffeq's words.

    References
    ----------
    Dormand, Prince, "A family of embedded Runge-Kutta formulae", J. Comput. Appl. Math. 6, 1980.
    Shampine, "Some practical Runge-Kutta formulas", Math. Comp. 46, 1986, for the interpolant.
    Hairer, Norsett, Wanner, "Solving ordinary differential equations I", 2nd edition, 1993, II.4.
    """
    finish = float(np.float32(duration))
    f0, y1, f1 = (np.empty_like(y0) for _ in range(3))
    count(2)
    size = first_step(y0, f0, field, layer)
    steps: list[Step] = []
    finite, t, h, constant = size.finite, 0.0, size.h, False
    moved = False  # whether a step was accepted, constant: whether the first trial was not
    while True:
        if not math.isfinite(h):
            h = 0.0
        if not t + h > t:
            raise GaveUp(f"underflow in dt {h}")
        if not finite:
            raise GaveUp("non-finite values in state `y`")
        end = (finish - t) / (t + h - t) if t + h >= finish else None
        count(6)
        ratio, finite_after = _trial(y0, f0, y1, f1, field, layer, h=h, end=end)
        if ratio <= 1:
            if keep:
                first = None if constant or moved else size
                timed = not constant and (end is not None or not moved)
                steps.append(Step(y0=y0, layer=layer, h=h, end=end, size=first, timed=timed))
            if end is not None:
                return y1, steps
            t, finite, moved = t + h, finite_after, True
            y0, f0, y1, f1 = y1, f1, np.empty_like(y0), f0
        elif not moved:
            constant = True
        h = next_size(h, ratio)


def next_size(h: float, ratio: float) -> float:
    """The size to try after `h`, by the error over the tolerance; NaN where that is."""
    if ratio == 0:
        return h * LARGEST_FACTOR
    factor = np.float64(SAFETY) / np.float64(ratio) ** (1 / ORDER)
    factor = np.maximum(factor, 1.0 if ratio < 1 else LEAST_FACTOR)  # either keeps NaN, unlike Python's own
    return float(h * np.minimum(factor, LARGEST_FACTOR))


def solve_all(
    state: np.ndarray,
    field: Operands,
    layers: int,
    *,
    duration: float,
    count: Callable[[int], None],
    keep: bool,
) -> tuple[np.ndarray, list[Step]]:
    """`solve` one layer after the other."""
    steps: list[Step] = []
    with np.errstate(all="ignore"):  # a norm may overflow, or be NaN: the step then underflows
        for layer in range(layers):
            state, more = solve(state, field, layer, duration=duration, count=count, keep=keep)
            steps += more
    return state, steps


def pull(step: Step, g: np.ndarray, field: Operands, totals: Totals) -> float:
    """Take the gradient `g`, in place, from after a step to before it; the derivative by its layer's first h.

    What `step.size` does to the gradient is left to the caller, who knows the sum of these derivatives.
    """
    weights, slope, shift = step.h * STAGES[6], STAGES[6], 1 / step.h
    stages = 6
    if step.end is not None:
        along, by_x = interpolant(step.end)
        weights, stages = step.h * along, 7
        if step.size is None:
            slope, shift = -by_x, 0.0
        else:
            slope = along - step.end * by_x
    tableau = np.float32(step.h) * STAGES.astype(np.float32)
    sums = field.sums(g, 1)
    lower, upper = rows(tableau), rows(tableau[:stages, :stages].T)
    rest = weights.astype(np.float32), stages, row(slope), np.float32(shift), step.timed
    field.pull(
        lambda wants, parts, low, high: _loops.pull_step(
            step.y0, g, field.forward, field.transposed, step.layer, lower, upper, *rest, wants, parts, sums,
            low, high,
        ),
        g,
        totals,
    )  # fmt: skip
    return float(sums.sum())


def pull_all(steps: list[Step], g: np.ndarray, field: Operands) -> Totals:
    """Take the gradient `g`, in place, through all of `steps`; returns the matrices' gradients."""
    totals, by_h = field.totals(), 0.0
    for step in reversed(steps):
        by_h += pull(step, g, field, totals)
        if step.size is not None:
            pull_first_step(step.size, by_h, step.y0, g, field, step.layer, totals)
            by_h = 0.0
    return totals


def _trial(
    y0: np.ndarray,
    f0: np.ndarray,
    y1: np.ndarray,
    f1: np.ndarray,
    field: Operands,
    layer: int,
    *,
    h: float,
    end: float | None,
) -> tuple[float, bool]:
    """Write y1 and f1 after a step, or with an `end` the state there; the error, and whether y1 is finite."""
    single = np.float32(h)
    stages = rows(single * STAGES.astype(np.float32))
    error = row(single * ERROR.astype(np.float32))
    last = row(STAGES[6] if end is None else h * interpolant(end)[0])
    sums = field.sums(y0, 2)
    rest = stages, error, last, end is not None, field.tolerance, sums
    field.run(
        lambda low, high: _loops.trial(y0, f0, y1, f1, field.forward, layer, *rest, low, high),
        y0,
    )
    return float(rms(sums[:, 0], y0)), not sums[:, 1].any()
