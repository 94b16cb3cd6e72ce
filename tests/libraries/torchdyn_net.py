"""torchdyn's NeuralODE between two linear layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchdyn.core import NeuralODE


class Net(nn.Module):
    def __init__(self, pixels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Linear(pixels, width)
        field = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
        self.flow = NeuralODE(field, sensitivity="autograd", solver="rk4", return_t_eval=False)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        times = torch.linspace(0.0, 1.0, 3, device=images.device)
        return self.head(self.flow(self.stem(images.flatten(1)), times)[-1])


def build(input_shape: tuple[int, int, int], num_classes: int, *, width: int = 24) -> nn.Module:
    channels, height, breadth = input_shape
    return Net(channels * height * breadth, width, num_classes)
