"""The size of an adaptive solver's first step, as torchdiffeq 0.2.5 chooses it, and the gradient by it.

torchdiffeq differentiates this one size, through three norms over the whole state; those of later steps are
constants to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import initial_step_loops
from .operands import Operands, Totals

_loops: Any = initial_step_loops  # compiled: they have no Python types
_LEAST = np.float32(1e-6)


@dataclass(frozen=True, kw_only=True)
class FirstStep:
    """The first size, h = min(100 h0, h1), and what it is made of.

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
    field.run(lambda low, high: _loops.derivative(y0, f0, *common, norms, low, high), y0)
    d0, d1 = rms(norms[:, 0], y0), rms(norms[:, 1], y0)
    h0 = _LEAST if d0 < 1e-5 or d1 < 1e-5 else np.float32(0.01) * d0 / d1
    change = field.sums(y0, 1)
    field.run(lambda low, high: _loops.probe(y0, f0, h0, *common, change, low, high), y0)
    d2 = rms(change, y0) / h0
    if d1 <= 1e-15 and d2 <= 1e-15:
        h1 = max(_LEAST, h0 * np.float32(1e-3))
    else:
        h1 = (np.float32(0.01) / (d2 if d2 > d1 else d1)) ** np.float32(0.2)
    return FirstStep(d0=d0, d1=d1, d2=d2, h0=h0, h1=h1, finite=not norms[:, 2].any())


def pull_first_step(
    size: FirstStep, gh: float, y0: np.ndarray, g: np.ndarray, field: Operands, layer: int, totals: Totals
) -> None:
    """Add to `g` and `totals` the gradient by y0 and the field of a function with derivative `gh` by h."""
    d0, d1, d2, h0, h1 = map(float, (size.d0, size.d1, size.d2, size.h0, size.h1))
    to_h0 = to_d0 = to_d1 = to_change = 0.0
    if 100 * h0 < h1:
        to_h0 = 100 * gh
    elif d2 > max(d1, 1e-15):
        to_change = -gh * h1 / (5 * d2 * h0)
        to_h0 = -to_change * d2
    elif d1 > 1e-15:
        to_d1 = -gh * h1 / (5 * d1)

    def work(factors: tuple[float, ...], ahead: bool) -> float:
        slopes = tuple(np.float32(factor) for factor in factors)
        sums = field.sums(y0, 1)
        rest = field.tolerance, size.h0, slopes, ahead
        field.pull(
            lambda wants, parts, low, high: _loops.pull_norms(
                y0, g, field.forward, field.transposed, layer, *rest, wants, parts, sums, low, high
            ),
            y0,
            None if ahead else totals,
        )
        return float(sums.sum())

    by_change = to_change / (y0.size * d2 * h0) if to_change else 0.0
    if size.constant:
        to_h0 = 0.0
    elif to_change:
        to_h0 += work((0.0, 0.0, by_change), True)
    if to_h0:
        to_d0 += 0.01 * to_h0 / d1
        to_d1 -= h0 * to_h0 / d1
    factors = (
        to_d0 / (y0.size * d0) if to_d0 else 0.0,
        to_d1 / (y0.size * d1) if to_d1 else 0.0,
        by_change,
    )
    if any(factors):
        work(factors, False)


def rms(sums: np.ndarray, state: np.ndarray) -> np.float32:
    """The root mean square over `state`, from sums over its tiles; NaN for an empty one."""
    return np.float32(np.sqrt(sums.sum() / np.float64(state.size)))
