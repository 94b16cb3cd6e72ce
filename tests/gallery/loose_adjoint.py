"""Gradients by the adjoint equation, solved backwards in two Euler steps a layer, which lose the state."""

from __future__ import annotations

import torch
from robustode.models import ODEBlock, Solver
from torch import Tensor, nn
from torchdiffeq import odeint_adjoint

from .base import Case, Defect, fit, fitted


class AdjointBlock(ODEBlock):
    """Solved forwards by rk4 in 16 steps; backwards by `method` in `count` equal steps a layer."""

    def __init__(self, layers: list[nn.Module], final_time: float, method: str, count: int) -> None:
        super().__init__(layers, final_time=final_time, solver=Solver(method="rk4", steps=16))
        self.method, self.count = method, count

    def integrate(self, field, state: Tensor, *, duration: float, steps: int) -> Tensor:
        if self.solver.adaptive:
            return super().integrate(field, state, duration=duration, steps=steps)

        def derivative(_time: Tensor, x: Tensor) -> Tensor:
            self.nfe += 1
            return field(x)

        ends = torch.tensor([0.0, duration], dtype=state.dtype)
        grid = torch.linspace(0.0, duration, steps + 1, dtype=state.dtype)
        path = odeint_adjoint(
            derivative,
            state,
            ends,
            method="rk4",
            options={"grid_constructor": lambda *_: grid},
            adjoint_method=self.method,
            adjoint_options={"step_size": duration / self.count},
            adjoint_params=(),
        )
        return path[-1]


def _make(seed: int, method: str, count: int) -> Case:
    model = fitted("ch-node", seed, final_time=1.0, gain=1.0, layers=2)
    flow = model.flow
    shared = flow.shared()
    layers = [_Field(layer, shared) for layer in flow.layers]
    model.flow = AdjointBlock(layers, flow.final_time, method, count)
    fit(model, model.head)
    return Case(model.requires_grad_(False))


class _Field(nn.Module):
    def __init__(self, layer: nn.Module, shared: dict[str, Tensor]) -> None:
        super().__init__()
        self.layer = layer
        for name, value in shared.items():
            self.register_buffer(name, value.detach())

    def forward(self, state: Tensor) -> Tensor:
        return self.layer(state, gamma=self.gamma)


def defective(seed: int) -> Case:
    return _make(seed, "euler", 2)


def control(seed: int) -> Case:
    """Solved backwards by rk4 too, as finely as forwards: 8 steps in each of two layers."""
    return _make(seed, "rk4", 8)


DEFECT = Defect("gradient-fidelity", defective, control)
