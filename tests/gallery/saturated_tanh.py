"""Features pushed so far into tanh that its derivative rounds to zero."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .base import Case, Defect, fit, sound_model


class Saturated(nn.Module):
    """head(tanh(gain * flow)) on the stem and flow of another model."""

    def __init__(self, model: nn.Module, gain: float) -> None:
        super().__init__()
        self.model, self.gain = copy.deepcopy(model), gain
        self.head = nn.Linear(model.head.in_features, model.head.out_features)
        self.model.head = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.tanh(self.gain * self.model(images)))


def _make(seed: int, gain: float) -> Case:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Saturated(sound_model(seed), gain).eval()
    fit(model, model.head)
    return Case(model.requires_grad_(False))


def defective(seed: int) -> Case:
    return _make(seed, 1e5)


def control(seed: int) -> Case:
    """The same network with a gain that leaves tanh its slope."""
    return _make(seed, 0.5)


DEFECT = Defect("zero-gradients", defective, control)
