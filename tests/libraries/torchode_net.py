"""torchode's adaptive solver, which steps each sample on its own, between two linear layers."""

from __future__ import annotations

import torch
import torchode
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self, pixels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Linear(pixels, width)
        self.field = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
        term = torchode.ODETerm(lambda t, state: self.field(state))
        controller = torchode.IntegralController(atol=1e-3, rtol=1e-3, term=term)
        self.solver = torchode.AutoDiffAdjoint(torchode.Heun(term), controller)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        state = self.stem(images.flatten(1))
        start = torch.zeros(len(state), dtype=state.dtype, device=state.device)
        problem = torchode.InitialValueProblem(y0=state, t_start=start, t_end=start + 1)
        return self.head(self.solver.solve(problem).ys[:, -1])


def build(input_shape: tuple[int, int, int], num_classes: int, *, width: int = 24) -> nn.Module:
    channels, height, breadth = input_shape
    return Net(channels * height * breadth, width, num_classes)
