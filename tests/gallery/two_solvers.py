"""A model that is attacked through one solver and scored through another."""

from __future__ import annotations

import torch
from robustode.models import ODEBlock, Solver
from torch import Tensor, nn

from .base import Case, Defect, Wrapped, sound_model


class TwoSolvers(Wrapped):
    """Four Euler steps over six times the time, whenever gradients are recorded."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        flow = model.flow
        assert isinstance(flow, ODEBlock)
        self.coarse = ODEBlock(list(flow.layers), final_time=6.0, solver=Solver(method="euler", steps=4))

    def forward(self, images: Tensor) -> Tensor:
        flow = self.model.flow
        if torch.is_grad_enabled():
            self.model.flow = self.coarse
        try:
            return self.model(images)
        finally:
            self.model.flow = flow


def defective(seed: int) -> Case:
    import copy

    return Case(TwoSolvers(copy.deepcopy(sound_model(seed))))


def control(seed: int) -> Case:
    """Attacked and scored through the same solver."""
    return Case(sound_model(seed), same_as="sound model")


DEFECT = Defect("solver-transfer", defective, control)
