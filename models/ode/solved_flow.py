"""A flow that is solved layer by layer, by compiled steps or by torchdiffeq, and counts field evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated

import torch
from pydantic import Field as Limits
from torch import Tensor, nn

from ..._arguments import Flag, Positive, check_value
from ..._errors import InvalidArgument
from .kernels.adaptive import METHOD, adaptive_flow, supports_adaptive
from .kernels.fixed_step import fixed_step_flow, flow_implementation, supports
from .solver import (
    SHU_OSHER_ALPHAS,
    Field,
    Solver,
    SolverFailure,
    StepMap,
    TimedField,
    field_later,
    shu_osher,
    solve,
)
from .statement import statement_of
from .tanh_field import TanhField


class SolvedFlow(nn.Module):
    """Maps x(0) to x(T), and knows no bound of that map: the part of an `ODEBlock` that solves."""

    def __init__(
        self,
        layers: Sequence[nn.Module],
        *,
        final_time: float,
        solver: Solver,
        time_dependent: bool = False,
        adjoint: bool = False,
    ) -> None:
        super().__init__()
        layers = list(layers) if isinstance(layers, Iterable) else layers
        check_value("layers", layers, Annotated[list[nn.Module], Limits(min_length=1)])
        final_time = check_value("final_time", final_time, Positive)
        check_value("solver", solver, Solver)
        time_dependent = check_value("time_dependent", time_dependent, Flag)
        adjoint = check_value("adjoint", adjoint, Flag)
        if not solver.adaptive and solver.steps != "contractive" and solver.steps % len(layers):
            raise InvalidArgument(
                f"{solver.steps} solver steps cannot be shared equally by {len(layers)} layers: "
                f"choose a multiple of {len(layers)}"
            )
        if time_dependent and (stating := [layer for layer in layers if statement_of(layer) != "forward"]):
            raise InvalidArgument(
                f"{type(stating[0]).__name__} states matrices, which do not depend on time: give a "
                "time-dependent field as forward(time, state) alone"
            )
        if adjoint and solver.method == "ssprk3":
            raise InvalidArgument("ssprk3 has no adjoint solve: choose another method, or adjoint=False")
        self.layers = nn.ModuleList(layers)
        self.time_dependent = time_dependent
        self.adjoint = adjoint
        self.final_time = final_time
        self.solver = solver
        self.nfe = 0

    def forward(self, state: Tensor) -> Tensor:
        """Return x(T) for x(0) = `state`, any shape that the layers take; same shape out.

        Raises
        ------
        SolverFailure
            When an adaptive method underflows its step size or meets a non-finite state.
        """
        self.nfe = 0
        if self._supports_compiled(state):
            steps = self.steps_per_layer()
            h = self.final_time / len(self.layers) / steps
            self.nfe = len(self.layers) * steps * len(SHU_OSHER_ALPHAS[self.solver.method])
            return fixed_step_flow(state, self.tanh_fields(), h=h, steps=steps, method=self.solver.method)
        if self._supports_compiled(state, adaptive=True):
            return self._solve_adaptive(state)
        return self._solve_layers(state)

    def _solve_layers(self, state: Tensor) -> Tensor:
        """Solve layer by layer through `integrate`; what it evaluates in a backward pass is not counted."""
        steps = 0 if self.solver.adaptive else self.steps_per_layer()
        duration, evaluations = self.final_time / len(self.layers), 0

        def counted(*where: Tensor, field: Callable[..., Tensor]) -> Tensor:
            nonlocal evaluations
            evaluations += 1
            return field(*where)

        try:
            for field in self.fields():
                if isinstance(field, TimedField):
                    each: Field = replace(field, layer=partial(counted, field=field.layer))
                else:
                    each = partial(counted, field=field)
                state = self.integrate(each, state, duration=duration, steps=steps)
        finally:
            self.nfe = evaluations
        return state

    def _solve_adaptive(self, state: Tensor) -> Tensor:
        def count(evaluations: int) -> None:
            self.nfe += evaluations

        solver, duration = self.solver, self.final_time / len(self.layers)
        settings = {"rtol": solver.rtol, "atol": solver.atol}
        try:
            return adaptive_flow(state, self.tanh_fields(), duration=duration, count=count, **settings)
        except ArithmeticError as error:
            raise SolverFailure(f"{solver.method} failed: {error}") from None

    def fields(self) -> Sequence[Field]:
        """Return one field per part of [0, T], with the tensors of `shared`.

        A layer that states its matrices is their `TanhField`, evaluated once; another is called as it is. One
        that depends on time is a `TimedField` from the start of its part.
        """
        shared = self.shared()
        if self.time_dependent:
            part = self.final_time / len(self.layers)
            return [
                TimedField(layer=partial(layer, **shared), start=i * part)
                for i, layer in enumerate(self.layers)
            ]
        return [
            layer.tanh_field(**shared)  # type: ignore[operator]
            if statement_of(layer) == "matrices"
            else partial(layer, **shared)
            for layer in self.layers
        ]

    def shared(self) -> dict[str, Tensor]:
        """Return tensors that every layer takes as keyword arguments; computed once per forward pass."""
        return {}

    def steps_per_layer(self) -> int:
        """Return the number of solver steps in each part of [0, T], on a fixed grid.

        Raises
        ------
        InvalidArgument
            For ``steps="contractive"`` on a flow without a known contraction rate.
        """
        if self.solver.steps == "contractive":
            raise InvalidArgument(
                "steps = 'contractive' needs a flow that contracts by design, such as ch-node: use a number"
            )
        return self.solver.steps // len(self.layers)

    def step_maps(self) -> list[StepMap]:
        """Return the solver's steps in order; an adaptive method counts as 8 steps in each layer."""
        duration = self.final_time / len(self.layers)
        count = 8 if self.solver.adaptive else self.steps_per_layer()
        h, method = duration / count, self.solver.method

        def step(field: Field) -> Field:
            if method in SHU_OSHER_ALPHAS:
                return partial(shu_osher, field, method=method, h=h, steps=1)
            return partial(self.integrate, field, duration=h, steps=1)

        return [
            StepMap(layer=layer, duration=h, map=step(field_later(field, i * h)))
            for layer, field in zip(self.layers, self.fields(), strict=True)
            for i in range(count)
        ]

    @torch.no_grad()
    def implementation(self, device: torch.device) -> str:
        """Which implementation solves this flow on `device`.

        Parameters
        ----------
        device
            Where the state lies.

        Returns
        -------
        str
            ``numba`` or ``triton`` for compiled steps, ``eager`` for torchdiffeq. It holds for states of the
            parameters' dtype under reverse-mode differentiation; others always take torchdiffeq.
        """
        adaptive = self.solver.method == METHOD
        known = self.solver.method in SHU_OSHER_ALPHAS or (adaptive and device.type == "cpu")
        if not known or not self.has_tanh_fields():
            return "eager"
        B = self.tanh_fields()[0].B
        taken = self._supports_compiled(B.new_empty(len(B), 0, device=device), adaptive=adaptive)
        return flow_implementation(device) if taken else "eager"

    def _supports_compiled(self, state: Tensor, *, adaptive: bool = False) -> bool:
        """Whether compiled steps can solve from `state`: never where they could differ from the layers."""
        supports_state = supports_adaptive if adaptive else supports
        if not supports_state(state, self.solver.method) or not self.has_tanh_fields():
            return False
        return {parameter.dtype for parameter in self.parameters()} == {state.dtype}

    def has_tanh_fields(self) -> bool:
        """Whether every layer states its matrices, and nothing overrides how the block uses them."""
        if self.time_dependent or self.adjoint:
            return False
        if any(statement_of(layer) == "forward" for layer in self.layers):
            return False
        used = ("fields", "integrate", "tanh_fields")
        return all(getattr(type(self), name) is getattr(SolvedFlow, name) for name in used) and not (
            {*used} & vars(self).keys()
        )

    def tanh_fields(self) -> list[TanhField]:
        """Return the `TanhField` of each layer.

        Raises
        ------
        AttributeError
            When a layer has no ``tanh_field``.
        """
        shared = self.shared()
        return [layer.tanh_field(**shared) for layer in self.layers]  # type: ignore[operator]

    def integrate(self, field: Field, state: Tensor, *, duration: float, steps: int) -> Tensor:
        """Solve x' = field(x) by torchdiffeq; a subclass may override it, and is then never compiled.

        Parameters
        ----------
        field
            Maps a state to its derivative, same shape.
        state
            Initial state, any shape.
        duration
            Length of the time interval, in the model's own time.
        steps
            Steps of a method on a fixed grid; an adaptive method ignores it.

        Returns
        -------
        Tensor
            Final state, same shape. `forward` counts how often it evaluates `field`.

        Raises
        ------
        SolverFailure
            When an adaptive method underflows its step size or meets a non-finite state.
        """
        adjoint = None
        if self.adjoint:
            shared = [tensor for tensor in self.shared().values() if tensor.requires_grad]
            if shared:
                raise InvalidArgument("layers that share computed tensors have no adjoint: adjoint=False")
            adjoint = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return solve(field, state, solver=self.solver, duration=duration, steps=steps, adjoint=adjoint)

    def extra_repr(self) -> str:
        """Show T and the solver in the module's repr."""
        return f"final_time={self.final_time:g}, solver={self.solver}"
