"""Adaptive dopri5 path on a CPU: step size control as in torchdiffeq 0.2.5 around compiled steps.

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
from .initial_step import FirstStep, first_step, rms, vjp_first_step
from .operands import Operands, Totals
from .tableau import ERROR, STAGES, interpolant, row, rows

_loops: Any = dopri5_loops  # compiled: they have no Python types

SAFETY, MAX_FACTOR, MIN_FACTOR, ORDER = 0.9, 10.0, 0.2, 5


class IntegrationError(ArithmeticError):
    """The step size underflowed, or the state is not finite."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """An accepted step, with what its gradient needs.

    Attributes
    ----------
    y0
        The state before it, (n, M).
    h
        Its size.
    end
        Where the layer's end lies in it, in (0, 1]; None for a step that is followed by another.
    size
        How the size was chosen, on a layer's first step: None where a rejection made it a constant.
    size_gradient
        Whether the layer's first size has a gradient that this step contributes to.
    """

    y0: np.ndarray
    layer: int
    h: float
    end: float | None
    size: FirstStep | None
    size_gradient: bool


def solve(
    y0: np.ndarray,
    field: Operands,
    layer: int,
    *,
    duration: float,
    count: Callable[[int], None],
    save: bool,
) -> tuple[np.ndarray, list[Step]]:
    """Solve from `y0` over [0, `duration`] in `layer`; the final state, and with `save` the accepted steps.

    Parameters
    ----------
    count
        Called with each number of evaluations of the field.

    Raises
    ------
    IntegrationError
        When the step size underflows or the state is not finite; messages as in torchdiffeq.

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
    finite, t, h, first_trial_rejected = size.finite, 0.0, size.h, False
    any_accepted = False
    while True:
        if not math.isfinite(h):
            h = 0.0
        if not t + h > t:
            raise IntegrationError(f"underflow in dt {h}")
        if not finite:
            raise IntegrationError("non-finite values in state `y`")
        end = (finish - t) / (t + h - t) if t + h >= finish else None
        count(6)
        ratio, next_finite = _trial(y0, f0, y1, f1, field, layer, h=h, end=end)
        if ratio <= 1:
            if save:
                first = None if first_trial_rejected or any_accepted else size
                size_gradient = not first_trial_rejected and (end is not None or not any_accepted)
                steps.append(Step(y0=y0, layer=layer, h=h, end=end, size=first, size_gradient=size_gradient))
            if end is not None:
                return y1, steps
            t, finite, any_accepted = t + h, next_finite, True
            y0, f0, y1, f1 = y1, f1, np.empty_like(y0), f0
        elif not any_accepted:
            first_trial_rejected = True
        h = next_size(h, ratio)


def next_size(h: float, ratio: float) -> float:
    """The size to try after `h`, from the ratio of error to tolerance; NaN for a NaN ratio."""
    if ratio == 0:
        return h * MAX_FACTOR
    factor = np.float64(SAFETY) / np.float64(ratio) ** (1 / ORDER)
    factor = np.maximum(factor, 1.0 if ratio < 1 else MIN_FACTOR)  # propagates NaN, unlike Python's max
    return float(h * np.minimum(factor, MAX_FACTOR))


def solve_all(
    state: np.ndarray,
    field: Operands,
    layers: int,
    *,
    duration: float,
    count: Callable[[int], None],
    save: bool,
) -> tuple[np.ndarray, list[Step]]:
    """`solve` one layer after the other."""
    steps: list[Step] = []
    with np.errstate(all="ignore"):  # a norm may overflow, or be NaN: the step then underflows
        for layer in range(layers):
            state, more = solve(state, field, layer, duration=duration, count=count, save=save)
            steps += more
    return state, steps


def vjp(step: Step, g: np.ndarray, field: Operands, totals: Totals) -> float:
    """Replace `g`, the gradient after a step, by that before it; return the gradient by its layer's first h.

    The gradient through `step.size` is added by the caller, which knows the sum of these values.
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
    rest = weights.astype(np.float32), stages, row(slope), np.float32(shift), step.size_gradient
    field.run_vjp(
        lambda needs_grad, parts, low, high: _loops.vjp_step(
            step.y0, g, field.forward, field.transposed, step.layer, lower, upper, *rest, needs_grad, parts,
            sums, low, high,
        ),
        g,
        totals,
    )  # fmt: skip
    return float(sums.sum())


def vjp_all_steps(steps: list[Step], g: np.ndarray, field: Operands) -> Totals:
    """Replace `g`, the gradient after all `steps`, by that before them; return the matrices' gradients."""
    totals, grad_h = field.totals(), 0.0
    for step in reversed(steps):
        grad_h += vjp(step, g, field, totals)
        if step.size is not None:
            vjp_first_step(step.size, grad_h, step.y0, g, field, step.layer, totals)
            grad_h = 0.0
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
