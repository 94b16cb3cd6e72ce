"""A 1-Lipschitz network of deel-torchlip: spectral normalisation and GroupSort."""

from __future__ import annotations

from deel import torchlip
from torch import nn


def build(input_shape: tuple[int, int, int], num_classes: int, *, width: int = 32) -> nn.Module:
    channels, height, breadth = input_shape
    return nn.Sequential(
        nn.Flatten(),
        torchlip.SpectralLinear(channels * height * breadth, width),
        torchlip.FullSort(),
        torchlip.SpectralLinear(width, width),
        torchlip.FullSort(),
        torchlip.FrobeniusLinear(width, num_classes),
    )
