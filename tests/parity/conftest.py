"""One trained model for every comparison with the code of others."""

from __future__ import annotations

import importlib
import os
import sys
import types
import warnings

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


@pytest.fixture(scope="session")
def adv_lib() -> types.ModuleType:
    """The package adv-lib; where ROBUSTODE_PARITY is "required", as in tox, its absence is an error.

    It imports visdom, which only its plots use and which often cannot be installed.
    """
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses distutils
        patch.setitem(sys.modules, "visdom", sys.modules.get("visdom", types.ModuleType("visdom")))
        try:
            return importlib.import_module("adv_lib.attacks")
        except ModuleNotFoundError:
            if os.environ.get("ROBUSTODE_PARITY") == "required":
                raise
            pytest.skip("adv-lib is not installed: pip install --no-deps adv-lib==0.2.8")
