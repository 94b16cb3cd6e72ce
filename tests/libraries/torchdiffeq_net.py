"""A neural ODE as in the MNIST example of torchdiffeq: it counts its calls and never resets the count."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchdiffeq import odeint_adjoint as odeint


class Field(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width + 1, width), nn.Tanh(), nn.Linear(width, width))
        self.nfe = 0

    def forward(self, t: Tensor, state: Tensor) -> Tensor:
        self.nfe += 1
        return self.layers(torch.cat([state, t.expand(len(state), 1)], 1))


class Flow(nn.Module):
    def __init__(self, field: Field) -> None:
        super().__init__()
        self.field = field
        self.integration_time = torch.tensor([0.0, 1.0])

    def forward(self, state: Tensor) -> Tensor:
        times = self.integration_time.type_as(state)
        return odeint(self.field, state, times, method="rk4", options={"step_size": 0.5})[1]

    @property
    def nfe(self) -> int:
        return self.field.nfe


def build(input_shape: tuple[int, int, int], num_classes: int, *, width: int = 24) -> nn.Module:
    channels, height, breadth = input_shape
    stem = nn.Linear(channels * height * breadth, width)
    return nn.Sequential(nn.Flatten(), stem, Flow(Field(width)), nn.Linear(width, num_classes))
