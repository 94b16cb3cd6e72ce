"""Our own `ODEBlock`: its solver is exchanged for one forward pass, so that compiled steps are used too."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torchdiffeq import odeint_adjoint

from ...models import CheckedField, Field, ODEBlock, Solver
from ...models.ode.solver import derivative_of, field_later
from .recording import FunctionCall, SolverFunction
from .solver_call import CannotSolveOtherwise, SolverCall, SolverChange


class ODEBlockForward(SolverFunction):
    """``ODEBlock.forward(self, state)``."""

    def adaptive(self, arguments: Mapping[str, Any]) -> bool:
        """As the block's solver says."""
        solver: Solver = arguments["self"].solver
        return solver.adaptive

    def state(self, arguments: Mapping[str, Any]) -> Tensor:
        """Samples along the first axis."""
        state: Tensor = arguments["state"]
        return state

    def describe(self, arguments: Mapping[str, Any]) -> SolverCall:
        """The block's solver, its time from 0, and its layers one after the other as one field."""
        block, state = arguments["self"], arguments["state"]
        solver: Solver = block.solver
        layers: list[Field] = list(block.fields())

        def field(time: Tensor, x: Tensor) -> Tensor:
            part = int(float(time) / block.final_time * len(layers))
            part = min(max(part, 0), len(layers) - 1)
            return field_later(layers[part], float(time) - part * block.final_time / len(layers))(x)

        times = torch.tensor([0.0, block.final_time], dtype=state.dtype, device=state.device)
        steps = None if solver.adaptive else block.steps_per_layer() * len(layers)
        return SolverCall(
            library="robustode",
            method=solver.method,
            adaptive=solver.adaptive,
            grid=None if steps is None else torch.linspace(0.0, block.final_time, steps + 1).to(times),
            times=times,
            state=state.detach().clone(),
            field=field,
            couples_samples=solver.adaptive,
            another=another_method(solver.method),
            block=block,
            rtol=solver.rtol if solver.adaptive else None,
            atol=solver.atol if solver.adaptive else None,
        )

    def run(self, call: FunctionCall) -> Any:
        """Solve as the block does; it counts itself, on compiled paths too."""
        final = call.answer()
        call.evaluations.count = call.arguments["self"].nfe
        return final

    def run_otherwise(self, call: FunctionCall, change: SolverChange) -> Any:
        """Solve with the block's solver changed, and put it back."""
        block = call.arguments["self"]
        with _solver_of(block, changed_solver(block, change)):
            if not change.adjoint:
                return self.run(call)
            final = _solve_adjoint(block, call.arguments["state"])
            block.nfe = call.evaluations.count
            return final


def changed_solver(block: ODEBlock, change: SolverChange) -> Solver:
    """The solver of `block` after `change`; steps are rounded up to a multiple of its layers.

    Raises
    ------
    UnknownName, InvalidArgument
        As `Solver`.
    """
    own, layers = block.solver, len(block.layers)
    steps = change.steps
    if steps is None and own.steps == "contractive":
        steps = layers * block.steps_per_layer()
    elif steps is None:
        steps = int(own.steps)
    method = change.method
    if method == "another":
        method = another_method(own.method)
    return dataclasses.replace(
        own,
        method=method or own.method,
        steps=-(-steps // layers) * layers * (change.refine or 1),
        rtol=own.rtol if change.rtol is None else change.rtol,
        atol=own.atol if change.atol is None else change.atol,
    )


def another_method(method: str) -> str:
    """A method on a grid that is not `method`."""
    return "ssprk3" if method == "rk4" else "rk4"


@contextmanager
def _solver_of(block: ODEBlock, solver: Solver) -> Iterator[None]:
    own = block.solver
    block.solver = solver
    try:
        yield
    finally:
        block.solver = own


def _solve_adjoint(block: ODEBlock, state: Tensor) -> Tensor:
    """Solve forwards as `block` does, and the adjoint equation backwards by the same solver."""
    if type(block).integrate is not ODEBlock.integrate:
        raise CannotSolveOtherwise("the block overrides how it is solved")
    if block.solver.method == "ssprk3":
        raise CannotSolveOtherwise("torchdiffeq, which has the adjoint method, has no ssprk3")
    steps = 0 if block.solver.adaptive else block.steps_per_layer()
    for field in block.fields():
        state = _layer(field, state, block.solver, block.final_time / len(block.layers), steps)
    return state


def _layer(field: Field, state: Tensor, solver: Solver, duration: float, steps: int) -> Tensor:
    derivative: Any = derivative_of(field)
    how = {} if solver.adaptive else {"options": {"step_size": duration / steps}}
    ends = torch.tensor([0.0, duration], dtype=state.dtype, device=state.device)
    tolerances = {"rtol": solver.rtol, "atol": solver.atol}
    if solver.adaptive:
        derivative = CheckedField(derivative, solver.method)
    path: Tensor = odeint_adjoint(
        derivative, state, ends, method=solver.method, adjoint_params=(), **tolerances, **how
    )
    return path[-1]
