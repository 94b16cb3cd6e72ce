"""The ODE block: layers in time, a solver, the number of field evaluations, failure as an error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchdiffeq import odeint

from .._errors import InvalidArgument, ModelFailure
from .._registry import unknown_name

Field = Callable[[Tensor], Tensor]
"""An autonomous field: a state of any shape to its derivative."""

FIXED_GRID = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
"""torchdiffeq's fixed-grid methods, each with its field evaluations per step."""
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun")


class SolverFailure(ModelFailure):
    """The solver gave up (step size underflow, non-finite state); its output is not an answer."""


@dataclass(frozen=True, kw_only=True)
class Solver:
    """How a flow is solved.

    Attributes
    ----------
    method
        A torchdiffeq method; ``heun2`` is the explicit trapezoid, SSPRK(2,2).
    steps
        Steps over the whole of [0, T] on a fixed grid, shared equally by the layers in time.
    rtol, atol
        Tolerances of an adaptive method. It accepts or rejects a step by one norm over the whole
        batch, so a sample's result depends on the samples beside it.
    """

    method: str = "heun2"
    steps: int = 8
    rtol: float = 1e-3
    atol: float = 1e-3

    def __post_init__(self) -> None:
        if self.method not in FIXED_GRID and self.method not in ADAPTIVE:
            raise unknown_name("solver", self.method, [*FIXED_GRID, *ADAPTIVE])
        if self.steps < 1:
            raise InvalidArgument(f"solver {self.method}: steps must be at least 1, not {self.steps}")

    @property
    def adaptive(self) -> bool:
        """Whether the method chooses its own steps."""
        return self.method in ADAPTIVE

    def __str__(self) -> str:
        if self.adaptive:
            return f"{self.method} rtol={self.rtol:g} atol={self.atol:g}"
        return f"{self.method} {self.steps} steps"


class ODEBlock(nn.Module):
    """x(T) of x' = f_j(x), f_j constant in time over the j-th of equal parts of [0, T].

    Parameters
    ----------
    layers
        One autonomous field per part; each maps a state, any shape, to its derivative.
    final_time
        T, in units of the model's own time.
    solver
        On a fixed grid every layer takes ``solver.steps / len(layers)`` steps.

    Attributes
    ----------
    nfe
        Field evaluations of the last forward pass, summed over the layers.

    References
    ----------
    Chen, Rubanova, Bettencourt, Duvenaud, "Neural ordinary differential equations", NeurIPS 2018.
    """

    def __init__(self, layers: Sequence[nn.Module], *, final_time: float, solver: Solver) -> None:
        super().__init__()
        if not solver.adaptive and solver.steps % len(layers):
            raise InvalidArgument(
                f"{solver.steps} solver steps cannot be shared equally by {len(layers)} layers: "
                f"choose a multiple of {len(layers)}"
            )
        if not final_time > 0:
            raise InvalidArgument(f"final_time must be positive, not {final_time}")
        self.layers = nn.ModuleList(layers)
        self.final_time = final_time
        self.solver = solver
        self.nfe = 0

    def forward(self, state: Tensor) -> Tensor:
        """Carry `state` from time 0 to T; same shape out.

        Raises
        ------
        SolverFailure
            When an adaptive solver underflows its step size.
        """
        self.nfe = 0
        for field in self.fields():
            state = self._solve(field, state)
        return state

    def fields(self) -> Sequence[Field]:
        """One field per part of [0, T]; what the layers share is computed here, once per pass."""
        return list(self.layers)

    def _solve(self, field: Field, state: Tensor) -> Tensor:
        def derivative(_time: Tensor, x: Tensor) -> Tensor:
            self.nfe += 1
            return field(x)

        duration = self.final_time / len(self.layers)
        interval = torch.tensor([0.0, duration], dtype=state.dtype, device=state.device)
        if self.solver.adaptive:
            try:
                path = odeint(
                    derivative,
                    state,
                    interval,
                    method=self.solver.method,
                    rtol=self.solver.rtol,
                    atol=self.solver.atol,
                )
            except AssertionError as error:
                raise SolverFailure(f"{self.solver.method} gave up: {error}") from None
        else:
            grid = torch.linspace(0.0, duration, self.solver.steps // len(self.layers) + 1, dtype=state.dtype)
            grid = grid.to(state.device)
            grid[-1] = interval[-1]
            options = {"grid_constructor": lambda *_: grid}
            path = odeint(derivative, state, interval, method=self.solver.method, options=options)
        final: Tensor = path[-1]
        return final

    def extra_repr(self) -> str:
        """Show T and the solver in the module's repr."""
        return f"final_time={self.final_time:g}, solver={self.solver}"


def count_nfe(model: nn.Module) -> int | None:
    """Field evaluations of the model's last forward pass; None for a model that does not count.

    Every submodule with an integer attribute ``nfe`` counts.
    """
    found = (getattr(module, "nfe", None) for module in model.modules())
    counts = [nfe for nfe in found if isinstance(nfe, int)]
    return sum(counts) if counts else None
