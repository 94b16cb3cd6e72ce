"""A Lipschitz bound a hundred times too small, and every certificate a hundred times too large."""

from __future__ import annotations

import dataclasses

from robustode.models import LipschitzParts
from torch import nn

from .base import Case, Defect, Wrapped, fitted


class States(Wrapped):
    """A model that states `factor` times its flow's bound."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__(model)
        self.factor = factor

    @property
    def flow(self) -> nn.Module:
        return self.model.flow

    def lipschitz_parts(self) -> LipschitzParts:
        parts = self.model.lipschitz_parts()
        return dataclasses.replace(parts, body={**parts.body, "flow": self.factor * parts.body["flow"]})


def defective(seed: int) -> Case:
    return Case(States(fitted("ch-node", seed, steps=16), 0.01))


def control(seed: int) -> Case:
    """The bound as it is proven."""
    return Case(States(fitted("ch-node", seed, steps=16), 1.0))


DEFECT = Defect("lipschitz-bound", defective, control)
