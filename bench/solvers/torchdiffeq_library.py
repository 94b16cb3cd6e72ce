"""torchdiffeq: ``odeint``, ``odeint_adjoint`` and, through them, ``odeint_event``.

It also solves in the place of other libraries: what they are asked for is translated into its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from types import FunctionType
from typing import Any, cast

import torch
import torchdiffeq
from torch import Tensor
from torchdiffeq._impl.odeint import SOLVERS
from torchdiffeq._impl.solvers import FixedGridODESolver

from ...models import CheckedField, SolverFailure
from ...models.ode.solver import ADAPTIVE
from .recording import CountedField, FunctionCall, SolverFunction
from .solver_call import CannotSolveOtherwise, Derivative, SolverCall, SolverChange, State

_KEPT = {True: ("norm",), False: ("perturb", "interp")}
"""Options that belong to all adaptive methods, and to all on a fixed grid."""
_BACKWARD = "OdeintAdjointMethod."
"""Begins the qualified name of the field that torchdiffeq solves in a backward pass."""


class Odeint(SolverFunction):
    """``odeint``, and ``odeint_adjoint``, which calls it."""

    def solves_adjoint(self, arguments: Mapping[str, Any]) -> bool:
        """Whether torchdiffeq asks itself, in a backward pass."""
        return str(getattr(arguments["func"], "__qualname__", "")).startswith(_BACKWARD)

    def adaptive(self, arguments: Mapping[str, Any]) -> bool:
        """Whether the method is none of those on a fixed grid."""
        return is_adaptive(arguments)

    def state(self, arguments: Mapping[str, Any]) -> State:
        """A tensor or a tuple of them."""
        return cast(State, arguments["y0"])

    def describe(self, arguments: Mapping[str, Any]) -> SolverCall:
        """The call as it is."""
        return described("torchdiffeq", arguments, adjoint="adjoint_params" in arguments)

    def run(self, call: FunctionCall) -> Any:
        """Call it as it was called. The adjoint one needs its field as it is, and calls the other."""
        if "adjoint_params" in call.arguments:
            return call.answer()
        return call.answer(func=CountedField.of(call.arguments["func"], call.evaluations))

    def run_otherwise(self, call: FunctionCall, change: SolverChange) -> Any:
        """See `solve_changed`."""
        return solve_changed(call.arguments, change, adjoint="adjoint_params" in call.arguments)


def functions() -> list[tuple[type[SolverFunction], FunctionType]]:
    """The functions that are intercepted, and how."""
    return [(Odeint, torchdiffeq.odeint), (Odeint, torchdiffeq.odeint_adjoint)]


def is_adaptive(arguments: Mapping[str, Any]) -> bool:
    """Whether ``odeint`` would choose its own step sizes."""
    kind = SOLVERS.get(arguments["method"] or "dopri5")
    return not (isinstance(kind, type) and issubclass(kind, FixedGridODESolver))


def described(library: str, arguments: Mapping[str, Any], **rest: Any) -> SolverCall:
    """The call of ``odeint`` with `arguments`, as one of `library`; `rest` overrides attributes."""
    adaptive, state = is_adaptive(arguments), arguments["y0"]
    tolerances = (
        {name: float(torch.as_tensor(arguments[name]).max()) for name in ("rtol", "atol")} if adaptive else {}
    )
    fixed = not adaptive and arguments["event_fn"] is None
    details: dict[str, Any] = {
        "method": arguments["method"] or "dopri5",
        "adaptive": adaptive,
        "another": another_method(arguments),
        "equivalent": arguments["method"] or "dopri5",
        "grid": _own_grid(arguments).detach().clone() if fixed else None,
        "times": arguments["t"].detach().clone(),
        "state": _detached(state),
        "field": arguments["func"],
        "couples_samples": adaptive,
        **tolerances,
        **rest,
    }
    return SolverCall(library=library, **details)


def solve_changed(arguments: Mapping[str, Any], change: SolverChange, *, adjoint: bool) -> Any:
    """What ``odeint`` returns for `arguments` with another solver.

    `adjoint` says whether gradients come from an adjoint solve where nothing is changed.

    Raises
    ------
    CannotSolveOtherwise
        For a solve until an event on another grid.
    SolverFailure
        When an adaptive method underflows its step size or meets a non-finite state.
    """
    names = ("func", "y0", "t", "rtol", "atol", "method", "options", "event_fn")
    asked = {name: arguments[name] for name in names}
    method = _method(asked, change)
    gridded = change.steps is not None or (change.refine is not None and not is_adaptive(asked))
    if gridded and asked["event_fn"] is not None:
        raise CannotSolveOtherwise("the solve ends at an event: no other grid can be laid over its time")
    if gridded:
        grid = {"grid_constructor": _grid(asked, change)}
        asked["options"] = _kept(asked, method) | grid
    elif method != (asked["method"] or "dopri5"):
        asked["options"] = _kept(asked, method)
    asked["method"] = method
    if method in ADAPTIVE:
        asked["func"] = CheckedField(asked["func"], method)
    for name, tolerance in (("rtol", change.rtol), ("atol", change.atol)):
        if tolerance is not None:
            asked[name] = tolerance
    only_gradients = change.adjoint is None and change == SolverChange(only=change.only)
    function = torchdiffeq.odeint
    if change.adjoint or (only_gradients and adjoint):
        function = torchdiffeq.odeint_adjoint
        asked["adjoint_params"] = ()
    try:
        return function(**asked)
    except AssertionError as error:
        raise SolverFailure(f"{method} failed: {error}") from None


def grid_over(times: Tensor, steps: int) -> Tensor:
    """A grid of about `steps` steps that contains all of `times` (k,), equal ones between two of them."""
    lengths = (times[1:] - times[:-1]).detach().abs()
    shares = (steps * lengths / lengths.sum()).round().clamp_min(1).long().tolist()
    parts = [_between(a, b, n) for a, b, n in zip(times[:-1], times[1:], shares, strict=True)]
    return torch.cat([*parts, times[-1:]])


def _between(start: Tensor, end: Tensor, count: int) -> Tensor:
    """`count` points from `start` to before `end`."""
    return start + (end - start) * torch.arange(count, device=start.device).to(start) / count


def another_method(arguments: Mapping[str, Any]) -> str:
    """A method on a grid that is not the one that is asked for."""
    return "heun3" if arguments["method"] == "rk4" else "rk4"


def _method(asked: Mapping[str, Any], change: SolverChange) -> str:
    own: str = asked["method"] or "dopri5"
    if change.method == "another":
        return another_method(asked)
    return "heun3" if change.method == "ssprk3" else change.method or own


def _kept(asked: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The options that `method` has as well."""
    names = _KEPT[is_adaptive({"method": method})]
    return {name: value for name, value in (asked["options"] or {}).items() if name in names}


def _grid(asked: Mapping[str, Any], change: SolverChange) -> Callable[..., Tensor]:
    """The grid constructor of a change; torchdiffeq hands it the times as the model gave them."""
    own, options = asked["func"], asked["options"] or {}

    def construct(func: Derivative, y0: State, t: Tensor) -> Tensor:
        if change.steps is not None:
            return grid_over(t, change.steps)
        grid = _own_grid({"func": own, "y0": y0, "t": t, "options": options})
        parts = [_between(a, b, change.refine or 1) for a, b in pairwise(grid)]
        return torch.cat([*parts, grid[-1:]])

    return construct


def _own_grid(arguments: Mapping[str, Any]) -> Tensor:
    """The grid (steps + 1,) of a fixed-grid method, as torchdiffeq lays it."""
    options, t = arguments["options"] or {}, arguments["t"]
    constructor, size = options.get("grid_constructor"), options.get("step_size")
    if constructor is not None:
        return cast(Tensor, constructor(arguments["func"], arguments["y0"], t))
    if size is None:
        return cast(Tensor, t)
    start, end = t[0].detach(), t[-1].detach()
    count = int(torch.ceil((end - start).abs() / size + 1).item())
    grid: Tensor = start + torch.sign(end - start) * size * torch.arange(count, device=t.device).to(t)
    grid[-1] = end
    return grid


def _detached(state: Any) -> State:
    if isinstance(state, Tensor):
        return state.detach().clone()
    return tuple(part.detach().clone() for part in state)
