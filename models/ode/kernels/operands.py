"""Adaptive path on a CPU: the matrices of a flow's fields in the form that the compiled loops take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from .cpu import matrix_operand, padded_array, run_on_threads
from .cpu_tiles import TILE

Totals: TypeAlias = list[np.ndarray]
"""Gradients of B, b, A, C, stacked over the layers and padded as in `cpu.padded_array`."""


class Operands:
    """B, b, A, C of A tanh(B x + b) + C x, stacked over the layers, with the tolerance of a step.

    Attributes
    ----------
    forward, transposed
        F and T of `dopri5_loops`.
    tolerance
        rtol and atol in float32.
    """

    def __init__(
        self,
        matrices: Sequence[Tensor],
        *,
        linear: bool,
        rtol: float,
        atol: float,
        needs_grad: Sequence[bool] = (False,) * 4,
    ) -> None:
        B, b, A, C = matrices
        self.forward = padded_array(B), padded_array(b), matrix_operand(A), matrix_operand(C), linear
        self.transposed = padded_array(B.mT), matrix_operand(A.mT), matrix_operand(C.mT)
        self.tolerance = np.float32(rtol), np.float32(atol)
        self._needs_grad = needs_grad[0] or needs_grad[1], needs_grad[2], needs_grad[3] and linear
        self._shapes = [padded_array(matrix).shape for matrix in matrices]

    def totals(self) -> Totals:
        """Zeros that gradients are added to."""
        return [np.zeros(shape, np.float32) for shape in self._shapes]

    @staticmethod
    def sums(state: np.ndarray, count: int) -> np.ndarray:
        """Room for `count` sums over each tile of `state`."""
        return np.zeros((-(-state.shape[1] // TILE), count))

    @staticmethod
    def run(work: Callable[[int, int], Any], state: np.ndarray) -> None:
        """``work(low, high)`` on all columns of `state`, by torch's number of threads."""
        run_on_threads(work, state)

    def run_vjp(self, work: Any, state: np.ndarray, totals: Totals | None) -> None:
        """As `run`, with ``work(needs_grad, parts, low, high)``; all `parts` are added to `totals`."""
        needs_grad = (False,) * 3 if totals is None else self._needs_grad

        def part(low: int, high: int) -> Totals:
            sums = self.totals()
            work(needs_grad, tuple(sums), low, high)
            return sums

        parts = run_on_threads(part, state)
        for sums in parts if any(needs_grad) and totals is not None else []:
            for total, more in zip(totals or [], sums, strict=True):
                total += more
