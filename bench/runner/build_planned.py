"""Builds a model as a plan says: untrained, and with or without parameters to train."""

from __future__ import annotations

from torch import nn

from ...models import ModelSpec
from ..config.plan import Plan
from ..data import Data
from ..training.train import build_model


def build_planned(plan: Plan, spec: ModelSpec, data: Data, seed: int) -> nn.Module:
    """Build `spec` from `seed`; see `build_model`. With pretrained weights nothing need be trainable."""
    arguments = plan.arguments(spec)
    return build_model(spec.build, data, arguments, seed, to_be_trained=plan.pretrained is None)
