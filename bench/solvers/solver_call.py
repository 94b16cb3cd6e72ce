"""One solve of an ODE that a model asked for, and what can be changed of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor

from ..._errors import ModelFailure

State: TypeAlias = Tensor | tuple[Tensor, ...]
"""The state of an ODE, any shape; several tensors where a library takes them."""

Derivative: TypeAlias = Callable[..., Any]
"""The field: maps a time, a scalar tensor, and a `State` to its derivative, same shape."""


class CannotSolveOtherwise(ModelFailure):
    """The solve is of a kind that no other solver can do in its place; says why."""


@dataclass(frozen=True, kw_only=True)
class SolverCall:
    """One solve, as a library was asked for it.

    Attributes
    ----------
    library
        ``robustode``, ``torchdiffeq``, ``torchdyn`` or ``torchode``.
    method
        As the library calls it.
    adaptive
        Whether the method chooses its own step sizes.
    rtol, atol
        Relative and absolute tolerance, the largest where there are several; None on a fixed grid.
    grid
        Times (steps + 1,) of a fixed grid; None where the method or an event chooses the steps.
    times
        When the solution is asked for, (k,): the first is the start. For torchode 0 to 1, its samples having
        times of their own.
    state
        The initial state, detached.
    field
        The field; it may hold on to values of the forward pass that it was called in.
    adjoint
        Whether gradients come from an adjoint solve instead of backpropagation through the steps.
    couples_samples
        Whether one step size is chosen for all samples of a batch.
    evaluations
        How often the field was evaluated.
    another
        A method of order 3 or 4 on a grid that is not this one, for a comparison.
    equivalent
        The method of torchdiffeq that is the same, or of about the same order.
    block
        The `ODEBlock` of robustode that solves it; None for another library.
    """

    library: str
    method: str
    adaptive: bool
    rtol: float | None = None
    atol: float | None = None
    grid: Tensor | None = None
    times: Tensor
    state: State
    field: Derivative
    adjoint: bool = False
    couples_samples: bool = False
    evaluations: int = 0
    another: str = "rk4"
    equivalent: str = "rk4"
    block: Any = None

    @property
    def steps(self) -> int | None:
        """Steps of a fixed grid over the whole time; None where there is none."""
        return None if self.grid is None else len(self.grid) - 1

    def __str__(self) -> str:
        """``torchdiffeq dopri5 rtol=0.001 atol=0.001``, ``torchdyn euler 10 steps``."""
        return f"{self.name} {self.steps} steps" if self.steps else self.name

    @property
    def name(self) -> str:
        """What of it the model's code says, whatever its weights and images: all but the number of steps."""
        name = self.method if self.library == "robustode" else f"{self.library} {self.method}"
        name += ", adjoint" if self.adjoint else ""
        return f"{name} rtol={self.rtol:g} atol={self.atol:g}" if self.adaptive else name


@dataclass(frozen=True, kw_only=True)
class SolverChange:
    """Another solver for the solves of a forward pass; what is None stays as it is.

    Gradients go through the steps of another method, grid or tolerance, unless `adjoint` says otherwise.

    Attributes
    ----------
    method
        A method of `robustode.models.Solver`, or ``another``: one of order 3 or 4 that is not the solve's
        own.
    steps
        Of a fixed grid over the whole time of each solve.
    refine
        Each step of a fixed grid becomes so many.
    rtol, atol
        Of an adaptive method.
    adjoint
        Gradients by the adjoint equation, solved by the same method and grid, to the state alone, or by
        backpropagation.
    only
        Whether solves on fixed grids alone are changed, or those by adaptive methods alone.
    """

    method: str | None = None
    steps: int | None = None
    refine: int | None = None
    rtol: float | None = None
    atol: float | None = None
    adjoint: bool | None = None
    only: Literal["fixed", "adaptive"] | None = None

    def concerns(self, *, adaptive: bool) -> bool:
        """Whether a solve is changed whose method is `adaptive`."""
        return self.only is None or (self.only == "adaptive") == adaptive
