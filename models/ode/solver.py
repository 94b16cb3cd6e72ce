"""ODE solvers: method, steps and tolerances; torchdiffeq's methods and Shu-Osher steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

from ..._arguments import Count, Positive, check_fields
from ..._errors import InvalidArgument, ModelFailure
from ..._registry import unknown_name
from .lipschitz import CONVEX_COMBINATIONS

Field = Callable[[Tensor], Tensor]
"""An autonomous field: maps a state, any shape, to its derivative, same shape."""

Steps: TypeAlias = Count | Literal["contractive"]
"""Number of solver steps over [0, T], or the smallest number whose steps are contractive."""

FIXED_GRID = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4, "ssprk3": 3}
"""Fixed-grid methods, each with its field evaluations per step; all but ``ssprk3`` are torchdiffeq's."""
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun")
"""Methods of torchdiffeq that choose their own step sizes."""

SHU_OSHER_ALPHAS = {"euler": (0.0,), "heun2": (0.0, 1 / 2), "ssprk3": (0.0, 3 / 4, 1 / 3)}
"""Convex combinations of Euler steps: stage i is alpha_i x + (1 - alpha_i) Euler(stage i - 1); by method."""
SHU_OSHER_TIMES = (0.0, 1.0, 1 / 2)
"""Time of each stage's Euler step, in steps."""


class SolverFailure(ModelFailure):
    """The solver failed (step size underflow, non-finite state), so there is no output."""


@dataclass(frozen=True, kw_only=True)
class Solver:
    """How an ODE block is solved.

    Attributes
    ----------
    method
        On a fixed grid ``euler``, ``midpoint``, ``heun2``, ``heun3``, ``rk4`` or ``ssprk3``; adaptive
        ``dopri5``, ``dopri8``, ``bosh3`` or ``adaptive_heun``. All but ``ssprk3`` (Shu and Osher's
        SSPRK(3,3)) are torchdiffeq's. ``euler``, ``heun2`` (the explicit trapezoid, SSPRK(2,2)) and
        ``ssprk3`` are convex combinations of Euler steps: they are contractive where an Euler step of the
        same size is.
    steps
        Number of steps over the whole of [0, T] on a fixed grid, shared equally by the layers in time; or
        ``"contractive"``, the smallest number for which the flow's own Lipschitz bound of a step is below 1.
    rtol, atol
        Relative and absolute tolerance of an adaptive method. It accepts or rejects a step by one norm over
        the whole batch, so a sample's result depends on the other samples of its batch.

    Raises
    ------
    UnknownName
        For an unknown method.
    InvalidArgument
        For fewer than 1 step, tolerances that are not positive, or ``"contractive"`` with a method that is
        no combination of Euler steps.

    References
    ----------
    Shu, Osher, "Efficient implementation of essentially non-oscillatory shock-capturing schemes",
    J. Comput. Phys. 77, 1988, eq. 2.16 and 2.18.

    Examples
    --------
    >>> str(Solver(method="heun2", steps=8)), str(Solver(method="dopri5", rtol=1e-4))
    ('heun2 8 steps', 'dopri5 rtol=0.0001 atol=0.001')
    """

    method: str = "heun2"
    steps: Steps = 8
    rtol: Positive = 1e-3
    atol: Positive = 1e-3

    def __post_init__(self) -> None:
        if self.method not in FIXED_GRID and self.method not in ADAPTIVE:
            raise unknown_name("solver", str(self.method), [*FIXED_GRID, *ADAPTIVE])
        check_fields(self, f"solver {self.method}")
        if self.steps == "contractive" and self.method not in CONVEX_COMBINATIONS:
            raise InvalidArgument(
                f"solver {self.method}: steps = 'contractive' needs {' or '.join(CONVEX_COMBINATIONS)}"
            )

    @property
    def adaptive(self) -> bool:
        """Whether the method chooses its own step sizes."""
        return self.method in ADAPTIVE

    def __str__(self) -> str:
        if self.adaptive:
            return f"{self.method} rtol={self.rtol:g} atol={self.atol:g}"
        return f"{self.method} {self.steps} steps"


class CheckedField:
    """A field that ends an adaptive solve of torchdiffeq which cannot go on.

    torchdiffeq's own checks are assertions, which ``python -O`` leaves out: a solve would never end. This one
    asks before each step, as torchdiffeq's callback.

    Raises
    ------
    SolverFailure
        When the step size underflows or the state is not finite.
    """

    def __init__(self, field: Callable[..., Any], method: str) -> None:
        self._field, self._method = field, method

    def __call__(self, *args: Any) -> Any:
        """Evaluate the field."""
        return self._field(*args)

    def callback_step(self, time: Tensor, state: Any, step: Tensor) -> None:
        """Called before each step, of this length, from `state`, a tensor or a tuple of them."""
        own = getattr(self._field, "callback_step", None)
        if own is not None:
            own(time, state, step)
        parts = (state,) if isinstance(state, Tensor) else state
        finite = torch.stack([part.isfinite().all() for part in parts]).all()
        if bool((time + step > time) & finite):
            return
        why = f"underflow in dt {step.item()}" if finite else "non-finite values in state `y`"
        raise SolverFailure(f"{self._method} failed: {why}")

    callback_step_adjoint = callback_step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._field, name)


@dataclass(frozen=True, kw_only=True)
class TimedField:
    """A field that depends on time, from `start` on: maps a state and the time since then to a derivative."""

    layer: Callable[[Tensor, Tensor], Tensor]
    start: float = 0.0

    def __call__(self, state: Tensor, time: Tensor | float = 0.0) -> Tensor:
        """The derivative at `state`, any shape, `time` after `start`; same shape."""
        return self.layer(torch.as_tensor(self.start + time, dtype=state.dtype, device=state.device), state)

    def later(self, time: float) -> TimedField:
        """The same field from `time` after `start` on."""
        return TimedField(layer=self.layer, start=self.start + time)


def field_later(field: Field, time: float) -> Field:
    """`field` from `time` on, which is the field itself where it is autonomous."""
    return field.later(time) if isinstance(field, TimedField) else field


def derivative_of(field: Field) -> Callable[[Tensor, Tensor], Tensor]:
    """`field` as torchdiffeq asks it, by time and state."""
    if isinstance(field, TimedField):
        return lambda time, state: field(state, time)
    return lambda _time, state: field(state)


@dataclass(frozen=True, kw_only=True)
class StepMap:
    """One step of a solver inside one layer.

    Attributes
    ----------
    layer
        The layer whose field is solved.
    duration
        Length of the step, in the model's own time.
    map
        Maps a state (n, M) to the state one step later, same shape.
    """

    layer: nn.Module
    duration: float
    map: Field

    def __call__(self, state: Tensor) -> Tensor:
        """Return the state one step after `state`, shape (n, M)."""
        return self.map(state)


def shu_osher(field: Field, state: Tensor, *, method: str, h: float, steps: int) -> Tensor:
    """Solve by `steps` steps of a method of `SHU_OSHER_ALPHAS`, each a convex combination of Euler steps.

    References
    ----------
    Shu, Osher, "Efficient implementation of essentially non-oscillatory shock-capturing schemes",
    J. Comput. Phys. 77, 1988, eq. 2.1, with the coefficients of 2.16 and 2.18.
    """
    for step in range(steps):
        stage = state
        for alpha, time in zip(SHU_OSHER_ALPHAS[method], SHU_OSHER_TIMES, strict=False):
            stage = alpha * state + (1 - alpha) * (stage + h * field_later(field, (step + time) * h)(stage))
        state = stage
    return state


def solve(
    field: Field,
    state: Tensor,
    *,
    solver: Solver,
    duration: float,
    steps: int,
    adjoint: Sequence[Tensor] | None = None,
) -> Tensor:
    """Return the state after `duration` of x' = field(x), by torchdiffeq or, for ``ssprk3``, `shu_osher`.

    Parameters
    ----------
    field
        Maps a state to its derivative, same shape.
    state
        Initial state, any shape.
    duration
        In the model's own time.
    steps
        Steps of a method on a fixed grid; an adaptive method ignores it.
    adjoint
        The parameters of the field, where gradients are to come from the adjoint equation, solved backwards
        by the same solver; None to differentiate through the steps.

    Raises
    ------
    SolverFailure
        When an adaptive method underflows its step size or meets a non-finite state.
    """
    if solver.method == "ssprk3":  # torchdiffeq has none
        return shu_osher(field, state, method="ssprk3", h=duration / steps, steps=steps)

    derivative: Any = derivative_of(field)
    interval = torch.tensor([0.0, duration], dtype=state.dtype, device=state.device)
    how: dict[str, Any] = {"method": solver.method}
    if solver.adaptive:
        derivative = CheckedField(derivative, solver.method)
        how |= {"rtol": solver.rtol, "atol": solver.atol}
    else:
        grid = torch.linspace(0.0, duration, steps + 1, dtype=state.dtype)
        grid = grid.to(state.device)
        grid[-1] = interval[-1]
        how["options"] = {"grid_constructor": lambda *_: grid}
        if adjoint is not None:
            how["adjoint_options"] = {"grid_constructor": lambda *_: grid.flip(0)}
    if adjoint is None:
        path = odeint(derivative, state, interval, **how)
    else:
        path = odeint_adjoint(derivative, state, interval, adjoint_params=tuple(adjoint), **how)
    final: Tensor = path[-1]
    return final
