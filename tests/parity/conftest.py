"""One trained model for every comparison with the code of others."""

from __future__ import annotations

import pytest
import stubs
import torch
from robustode.bench.config.preset import Recipe
from robustode.bench.data import Split
from robustode.bench.training.train import build_model, train
from robustode.models import MODELS
from torch import nn

COUNT = 100
"""Test images that are attacked, all classified correctly."""


@pytest.fixture(scope="session")
def trained(digits, tmp_path_factory) -> nn.Module:
    """A NODE that classifies over 90% of the digits, frozen."""
    spec = MODELS.get("node")
    model = build_model(spec.build, digits, spec.resolve({}), 0)
    path = tmp_path_factory.mktemp("parity") / "node.safetensors"
    recipe = Recipe(epochs=8, batch_size=64, learning_rate=0.02, decay=0.85)
    train(model, digits, recipe, seed=0, path=path, facts={"cell": {}}, device=stubs.CPU)
    return model.requires_grad_(False)


@pytest.fixture(scope="session")
def attacked(trained, digits) -> Split:
    """The first `COUNT` test images that the model classifies correctly."""
    with torch.no_grad():
        right = trained(digits.test.images).argmax(1) == digits.test.labels
    assert float(right.double().mean()) > 0.9
    chosen = right.nonzero()[:COUNT, 0]
    assert len(chosen) == COUNT
    return stubs.split_of(digits.test.images[chosen], digits.test.labels[chosen])
