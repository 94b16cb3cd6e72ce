"""The ODE block: layers in time, a solver, the number of field evaluations, failure as an error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torchdiffeq import odeint

from ..._errors import InvalidArgument
from .kernels.adaptive import METHOD, adaptive_flow, adaptive_supported
from .kernels.fixed_step import STAGES, flow_implementation, fused_flow, supported
from .lipschitz import CONVEX_COMBINATIONS, LARGEST_STATE, NONNEGATIVE_TABLEAUS, NoCertificate, TanhForm
from .solver import Field, Solver, SolverFailure, shu_osher
from .tanh_field import TanhField, states_field


@dataclass(frozen=True, kw_only=True)
class StepMap:
    """One step of a solver inside one layer: a map of states (n, M), of some duration."""

    layer: nn.Module
    duration: float
    map: Field

    def __call__(self, state: Tensor) -> Tensor:
        """The state one step later."""
        return self.map(state)


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
        if not solver.adaptive and solver.steps != "contractive" and solver.steps % len(layers):
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
        if self._compiled(state):
            steps = self.steps_per_layer()
            h = self.final_time / len(self.layers) / steps
            self.nfe = len(self.layers) * steps * len(STAGES[self.solver.method])
            return fused_flow(state, self.tanh_fields(), h=h, steps=steps, method=self.solver.method)
        if self._compiled(state, adaptive=True):
            return self._adapt(state)
        steps = 0 if self.solver.adaptive else self.steps_per_layer()
        for field in self.fields():
            state = self._solve(field, state, duration=self.final_time / len(self.layers), steps=steps)
        return state

    def _adapt(self, state: Tensor) -> Tensor:
        def count(evaluations: int) -> None:
            self.nfe += evaluations

        solver, duration = self.solver, self.final_time / len(self.layers)
        settings = {"rtol": solver.rtol, "atol": solver.atol}
        try:
            return adaptive_flow(state, self.tanh_fields(), duration=duration, count=count, **settings)
        except ArithmeticError as error:
            raise SolverFailure(f"{solver.method} gave up: {error}") from None

    def fields(self) -> Sequence[Field]:
        """One field per part of [0, T]: the layers, given what they share."""
        shared = self.shared()
        return [partial(layer, **shared) for layer in self.layers] if shared else list(self.layers)

    def shared(self) -> dict[str, Tensor]:
        """What all layers share, by keyword; computed once per forward pass."""
        return {}

    def steps_per_layer(self) -> int:
        """Solver steps in each part of [0, T], on a fixed grid.

        Raises
        ------
        InvalidArgument
            For ``steps="contractive"`` on a flow that has no bound of its own.
        """
        if self.solver.steps == "contractive":
            raise InvalidArgument(
                "steps = 'contractive' needs a flow that contracts by design, such as ch-node: give a number"
            )
        return self.solver.steps // len(self.layers)

    def step_maps(self) -> list[StepMap]:
        """The solver's steps in order; for an adaptive solver its map over each of 8 parts of a layer."""
        duration = self.final_time / len(self.layers)
        count = 8 if self.solver.adaptive else self.steps_per_layer()
        h, method = duration / count, self.solver.method

        def step(field: Field) -> Field:
            if method in STAGES:
                return partial(shu_osher, field, method=method, h=h, steps=1)
            return partial(self._solve, field, duration=h, steps=1)

        return [
            StepMap(layer=layer, duration=h, map=step(field))
            for layer, field in zip(self.layers, self.fields(), strict=True)
            for _ in range(count)
        ]

    def bounds(self) -> dict[str, float]:
        """Constants of the exact flow that its design guarantees, by name; none in general."""
        return {}

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
        known = self.solver.method in STAGES or (adaptive and device.type == "cpu")
        if not known or not self.has_tanh_fields():
            return "eager"
        B = self.tanh_fields()[0].B
        taken = self._compiled(B.new_empty(len(B), 0, device=device), adaptive=adaptive)
        return flow_implementation(device) if taken else "eager"

    def _compiled(self, state: Tensor, *, adaptive: bool = False) -> bool:
        """Whether a fast path carries `state`: it never does where it could differ from the layers."""
        hooked = any(layer._forward_hooks or layer._forward_pre_hooks for layer in self.layers)
        takes = adaptive_supported if adaptive else supported
        if hooked or not takes(state, self.solver.method) or not self.has_tanh_fields():
            return False
        return {parameter.dtype for parameter in self.parameters()} == {state.dtype}

    def has_tanh_fields(self) -> bool:
        """Whether every layer states the matrices of its field, see `TanhField`, and nothing changes them."""
        ours = type(self).fields is ODEBlock.fields and type(self)._solve is ODEBlock._solve
        return ours and all(states_field(layer) for layer in self.layers)

    def tanh_fields(self) -> list[TanhField]:
        """The matrices of each layer's field; raises `AttributeError` when a layer has no ``tanh_field``."""
        shared = self.shared()
        return [layer.tanh_field(**shared) for layer in self.layers]  # type: ignore[operator]

    @torch.no_grad()
    def tanh_forms(self) -> list[TanhForm]:
        """What `tanh_fields` gives, detached, in float64 and without the offsets."""
        return [field.form() for field in self.tanh_fields()]

    @torch.no_grad()
    def lipschitz_bounds(self) -> dict[str, float]:
        """Sound l2 Lipschitz bounds of the exact flow and of the solver's map, from its layers' tanh forms.

        Returns
        -------
        dict
            ``exact_flow``, the bound exp(sum_j mu_2(j) T / N); and on a fixed grid with a known bound
            ``solver``, the product of the bounds of its steps, and ``worst_step``, the largest of these.

        Raises
        ------
        AttributeError
            When a layer has no ``tanh_field``.
        """
        forms = self.tanh_forms()
        duration = self.final_time / len(forms)
        bounds = {"exact_flow": _exp(sum(duration * form.logarithmic_norm() for form in forms))}
        if self.solver.method in CONVEX_COMBINATIONS or self.solver.method in NONNEGATIVE_TABLEAUS:
            steps = self.steps_per_layer()
            each = [form.step_bound(duration / steps, self.solver.method) for form in forms]
            bounds |= {"solver": _exp(steps * sum(map(math.log, each))), "worst_step": max(each)}
        return bounds

    def solver_bound(self) -> float:
        """Lipschitz bound of the map that runs: the product of its steps' bounds.

        Raises
        ------
        NoCertificate
            For an adaptive solver, whose error would have to be added, and where no bound is known.
        """
        if self.solver.adaptive:
            raise NoCertificate("an adaptive solver's error is not bounded by its tolerance")
        if not self.has_tanh_fields():
            raise NoCertificate("the flow's layers state no tanh_field")
        if any(len(form.B) > LARGEST_STATE for form in self.tanh_forms()):
            raise NoCertificate(f"a state of more than {LARGEST_STATE} channels is not enumerated")
        bounds = self.lipschitz_bounds()
        if "solver" not in bounds:
            raise NoCertificate(f"no Lipschitz bound is known for a step of {self.solver.method}")
        return bounds["solver"]

    def _solve(self, field: Field, state: Tensor, *, duration: float, steps: int) -> Tensor:
        def derivative(_time: Tensor, x: Tensor) -> Tensor:
            self.nfe += 1
            return field(x)

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
            if self.solver.method == "ssprk3":  # torchdiffeq has none
                return shu_osher(
                    lambda x: derivative(interval, x), state, method="ssprk3", h=duration / steps, steps=steps
                )
            grid = torch.linspace(0.0, duration, steps + 1, dtype=state.dtype)
            grid = grid.to(state.device)
            grid[-1] = interval[-1]
            options = {"grid_constructor": lambda *_: grid}
            path = odeint(derivative, state, interval, method=self.solver.method, options=options)
        final: Tensor = path[-1]
        return final

    def extra_repr(self) -> str:
        """Show T and the solver in the module's repr."""
        return f"final_time={self.final_time:g}, solver={self.solver}"


def _exp(exponent: float) -> float:
    return math.exp(exponent) if exponent < 700 else math.inf


def count_nfe(model: nn.Module) -> int | None:
    """Field evaluations of the model's last forward pass; None for a model that does not count.

    Every submodule with an integer attribute ``nfe`` counts.
    """
    counting = (m for m in model.modules() if "nfe" in m.__dict__ or hasattr(type(m), "nfe"))
    found = (module.nfe for module in counting)
    counts = [nfe for nfe in found if isinstance(nfe, int)]
    return sum(counts) if counts else None
