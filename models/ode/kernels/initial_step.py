"""Adaptive path on a CPU: the size of the first step, as torchdiffeq 0.2.5 chooses it, and its gradient.

torchdiffeq differentiates this one size, through three norms over the whole state; those of later steps are
constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import initial_step_loops
from .operands import Operands, Totals

_loops: Any = initial_step_loops  # compiled: they have no Python types
_MIN_STEP_SIZE = np.float32(1e-6)


@dataclass(frozen=True, kw_only=True)
class FirstStep:
    """The first step size, h = min(100 h0, h1), and the values it is computed from.

    Attributes
    ----------
    d0, d1, d2
        Root mean squares over the tolerance of y0, of f0 = f(y0) and of (f(y0 + h0 f0) - f0) / h0.
    h0
        0.01 d0 / d1, or 1e-6 where either is below 1e-5.
    h1
        (0.01 / max(d1, d2))^(1/5).
    finite
        Whether y0 is.

    References
    ----------
    Hairer, Norsett, Wanner, "Solving ordinary differential equations I", 2nd edition, 1993, II.4,
    with an order of 4.
    """

    d0: np.float32
    d1: np.float32
    d2: np.float32
    h0: np.float32
    h1: np.float32
    finite: bool

    @property
    def h(self) -> float:
        """The size."""
        return float(np.minimum(np.float32(100) * self.h0, self.h1))

    @property
    def constant(self) -> bool:
        """Whether h0 is 1e-6 instead of a ratio of norms."""
        return bool(self.d0 < 1e-5 or self.d1 < 1e-5)


def first_step(y0: np.ndarray, f0: np.ndarray, field: Operands, layer: int) -> FirstStep:
    """Choose the size in `layer` from `y0`; f(y0) is written to `f0`. Two evaluations of the field."""
    norms = field.sums(y0, 3)
    common = field.forward, layer, field.tolerance
    field.run(lambda low, high: _loops.initial_norms(y0, f0, *common, norms, low, high), y0)
    d0, d1 = rms(norms[:, 0], y0), rms(norms[:, 1], y0)
    h0 = _MIN_STEP_SIZE if d0 < 1e-5 or d1 < 1e-5 else np.float32(0.01) * d0 / d1
    change = field.sums(y0, 1)
    field.run(lambda low, high: _loops.second_norm(y0, f0, h0, *common, change, low, high), y0)
    d2 = rms(change, y0) / h0
    if d1 <= 1e-15 and d2 <= 1e-15:
        h1 = max(_MIN_STEP_SIZE, h0 * np.float32(1e-3))
    else:
        h1 = (np.float32(0.01) / (d2 if d2 > d1 else d1)) ** np.float32(0.2)
    return FirstStep(d0=d0, d1=d1, d2=d2, h0=h0, h1=h1, finite=not norms[:, 2].any())


def vjp_first_step(
    size: FirstStep, grad_h: float, y0: np.ndarray, g: np.ndarray, field: Operands, layer: int, totals: Totals
) -> None:
    """Add the gradients through the first step size to `g` and `totals`; `grad_h` is the gradient by it."""
    d0, d1, d2, h0, h1 = map(float, (size.d0, size.d1, size.d2, size.h0, size.h1))
    grad_h0 = grad_d0 = grad_d1 = grad_d2_change = 0.0
    if 100 * h0 < h1:
        grad_h0 = 100 * grad_h
    elif d2 > max(d1, 1e-15):
        grad_d2_change = -grad_h * h1 / (5 * d2 * h0)
        grad_h0 = -grad_d2_change * d2
    elif d1 > 1e-15:
        grad_d1 = -grad_h * h1 / (5 * d1)

    def accumulate(factors: tuple[float, ...], only_h0_gradient: bool) -> float:
        slopes = tuple(np.float32(factor) for factor in factors)
        sums = field.sums(y0, 1)
        rest = field.tolerance, size.h0, slopes, only_h0_gradient
        field.run_vjp(
            lambda needs_grad, parts, low, high: _loops.vjp_norms(
                y0, g, field.forward, field.transposed, layer, *rest, needs_grad, parts, sums, low, high
            ),
            y0,
            None if only_h0_gradient else totals,
        )
        return float(sums.sum())

    grad_change = grad_d2_change / (y0.size * d2 * h0) if grad_d2_change else 0.0
    if size.constant:
        grad_h0 = 0.0
    elif grad_d2_change:
        grad_h0 += accumulate((0.0, 0.0, grad_change), True)
    if grad_h0:
        grad_d0 += 0.01 * grad_h0 / d1
        grad_d1 -= h0 * grad_h0 / d1
    factors = (
        grad_d0 / (y0.size * d0) if grad_d0 else 0.0,
        grad_d1 / (y0.size * d1) if grad_d1 else 0.0,
        grad_change,
    )
    if any(factors):
        accumulate(factors, False)


def rms(sums: np.ndarray, state: np.ndarray) -> np.float32:
    """The root mean square over `state`, from sums over its tiles; NaN for an empty one."""
    return np.float32(np.sqrt(sums.sum() / np.float64(state.size)))
