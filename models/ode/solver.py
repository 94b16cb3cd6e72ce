"""How a flow is solved: methods, steps, tolerances, and convex combinations of Euler steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from ..._errors import InvalidArgument, ModelFailure
from ..._registry import unknown_name
from .kernels.fixed_step import STAGES
from .lipschitz import CONVEX_COMBINATIONS

Field = Callable[[Tensor], Tensor]
"""An autonomous field: a state of any shape to its derivative."""

Steps: TypeAlias = int | Literal["contractive"]
"""Solver steps over [0, T], or the fewest that contract."""

FIXED_GRID = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4, "ssprk3": 3}
"""Fixed-grid methods, each with its field evaluations per step; all but ``ssprk3`` are torchdiffeq's."""
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun")


class SolverFailure(ModelFailure):
    """The solver gave up (step size underflow, non-finite state); its output is not an answer."""


@dataclass(frozen=True, kw_only=True)
class Solver:
    """How a flow is solved.

    Attributes
    ----------
    method
        A torchdiffeq method, or ``ssprk3``, Shu and Osher's SSPRK(3,3). ``euler``, ``heun2`` (the explicit
        trapezoid, SSPRK(2,2)) and ``ssprk3`` are convex combinations of Euler steps, so they contract
        where an Euler step of the same size does.
    steps
        Steps over the whole of [0, T] on a fixed grid, shared equally by the layers in time; or
        ``"contractive"``, the fewest for which the flow's own bound of a step is below 1.
    rtol, atol
        Tolerances of an adaptive method. It accepts or rejects a step by one norm over the whole
        batch, so a sample's result depends on the samples beside it.
    """

    method: str = "heun2"
    steps: Steps = 8
    rtol: float = 1e-3
    atol: float = 1e-3

    def __post_init__(self) -> None:
        if self.method not in FIXED_GRID and self.method not in ADAPTIVE:
            raise unknown_name("solver", self.method, [*FIXED_GRID, *ADAPTIVE])
        if self.steps == "contractive":
            if self.method not in CONVEX_COMBINATIONS:
                raise InvalidArgument(
                    f"solver {self.method}: steps = 'contractive' needs {' or '.join(CONVEX_COMBINATIONS)}"
                )
        elif isinstance(self.steps, str) or self.steps < 1:
            raise InvalidArgument(
                f"solver {self.method}: steps must be at least 1 or 'contractive', not {self.steps!r}"
            )

    @property
    def adaptive(self) -> bool:
        """Whether the method chooses its own steps."""
        return self.method in ADAPTIVE

    def __str__(self) -> str:
        if self.adaptive:
            return f"{self.method} rtol={self.rtol:g} atol={self.atol:g}"
        return f"{self.method} {self.steps} steps"


def shu_osher(field: Field, state: Tensor, *, method: str, h: float, steps: int) -> Tensor:
    """Carry `state` by `steps` steps of a method of `STAGES`, each a convex combination of Euler steps.

    References
    ----------
    Shu, Osher, "Efficient implementation of essentially non-oscillatory shock-capturing schemes",
    J. Comput. Phys. 77, 1988, eq. 2.1, with the coefficients of 2.16 and 2.18.
    """
    for _ in range(steps):
        stage = state
        for alpha in STAGES[method]:
            stage = alpha * state + (1 - alpha) * (stage + h * field(stage))
        state = stage
    return state
