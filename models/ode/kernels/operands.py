"""The matrices of a flow's fields as the compiled loops of adaptive steps take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from .cpu import _array, _on_all_threads, _operand
from .cpu_loops import TILE

Totals: TypeAlias = list[np.ndarray]
"""Gradients of B, b, A, C, stacked over the layers and padded as the kernels want them."""


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
        wants: Sequence[bool] = (False,) * 4,
    ) -> None:
        B, b, A, C = matrices
        self.forward = _array(B), _array(b), _operand(A), _operand(C), linear
        self.transposed = _array(B.mT), _operand(A.mT), _operand(C.mT)
        self.tolerance = np.float32(rtol), np.float32(atol)
        self._wants = wants[0] or wants[1], wants[2], wants[3] and linear
        self._shapes = [_array(matrix).shape for matrix in matrices]

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
        _on_all_threads(work, state)

    def pull(self, work: Any, state: np.ndarray, totals: Totals | None) -> None:
        """As `run`, ``work(wants, parts, low, high)`` with gradients of its own, then added to `totals`."""
        wants = (False,) * 3 if totals is None else self._wants

        def part(low: int, high: int) -> Totals:
            sums = self.totals()
            work(wants, tuple(sums), low, high)
            return sums

        parts = _on_all_threads(part, state)
        for sums in parts if any(wants) and totals is not None else []:
            for total, more in zip(totals or [], sums, strict=True):
                total += more
