"""robustode from Python: a module evaluated, a trained model loaded."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import robustode
import stubs
import torch
from robustode._errors import CheckpointError, ContractBroken, InvalidArgument, NonFinite, UnknownName
from robustode.attacks import THREATS
from robustode.bench.api import DEFAULT_STRENGTHS
from robustode.bench.data import load_data
from robustode.bench.plan import make_plan
from robustode.bench.preset import load_preset
from robustode.bench.run import run_plan
from robustode.bench.stats import wilson
from robustode.bench.store import Store
from robustode.bench.work import checkpoint_path
from robustode.models import MODELS


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A results folder with a trained resnet, and its plan."""
    folder = tmp_path_factory.mktemp("api")
    plan = make_plan(load_preset(str(stubs.preset_file(folder))))
    assert run_plan(plan, load_data("digits"), Store(folder / "out"), device=stubs.CPU).failures == []
    return folder / "out", plan


@pytest.fixture
def module() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return stubs.Linear((1, 8, 8), 10)


def test_every_threat_has_a_default_strength_that_it_takes():
    assert set(DEFAULT_STRENGTHS) == set(THREATS.names())
    for name, strength in DEFAULT_STRENGTHS.items():
        assert THREATS.get(name).check_strength(strength) == strength


def test_evaluate_gives_one_row_a_threat(module):
    threats = ["clean", ("gaussian", 0.25), "pgd-linf"]
    table = robustode.evaluate(module, threats=threats, samples=30, draws=3)
    assert list(table.columns) == [
        "threat", "norm", "strength", "accuracy", "low", "high", "samples", "draws", "seconds",
    ]  # fmt: skip
    assert table["threat"].tolist() == ["clean", "gaussian", "pgd-linf"]
    assert table["strength"].tolist() == [0.0, 0.25, 0.1]
    assert table["draws"].tolist() == [1, 3, 1]
    assert (table["samples"] == 30).all()
    assert [None if pd.isna(norm) else norm for norm in table["norm"]] == [None, None, "linf"]
    assert ((table["low"] <= table["accuracy"]) & (table["accuracy"] <= table["high"])).all()
    assert table["accuracy"][2] <= table["accuracy"][0]


def test_evaluate_counts_right_predictions(module, digits):
    with torch.no_grad():
        right = float((module(digits.test.images).argmax(1) == digits.test.labels).double().mean())
    (row,) = robustode.evaluate(module, threats=["clean"]).to_dict("records")
    assert row["accuracy"] == pytest.approx(right)
    assert row["samples"] == 450
    low, high = wilson(right * 450, 450)
    assert (row["low"], row["high"]) == pytest.approx((float(low), float(high)))


def test_evaluate_repeats_and_follows_its_seed(module):
    def accuracies(seed: int) -> list[float]:
        table = robustode.evaluate(module, threats=[("gaussian", 0.6)], draws=5, seed=seed)
        return table["accuracy"].tolist()

    assert accuracies(0) == accuracies(0)
    assert accuracies(0) != accuracies(1)


def test_evaluate_leaves_the_module_alone(module):
    module.train()
    module.head.bias.requires_grad_(False)
    state = torch.get_rng_state()
    robustode.evaluate(module, samples=10)
    assert module.training
    assert [p.requires_grad for p in module.parameters()] == [True, False]
    assert all(p.grad is None for p in module.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threats": ["gausian"]}, "did you mean gaussian"),
        ({"threats": [("gaussian", -1.0)]}, "sigma must be at least 0"),
        ({"threats": ["clean", ("salt-pepper", 2.0)]}, "at most 1"),
        ({"dataset": "digit"}, "did you mean digits"),
        ({"samples": 0}, "samples must be at least 1, not 0"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_computed(options, message):
    def never(logits, images):
        raise AssertionError("asked")

    with pytest.raises(InvalidArgument, match=message):
        robustode.evaluate(stubs.Faulty((1, 8, 8), 10, never), **options)


@pytest.mark.usefixtures("registries")
def test_a_threat_without_a_default_strength_asks_for_one(module):
    @robustode.register_threat("darken", family="noise", norm="linf", strength_name="eps")
    def darken(model, images, labels, strength, seed):
        return (images - strength).clamp(0, 1)

    with pytest.raises(InvalidArgument, match=r"threat darken: give its strength, as \('darken', eps\)"):
        robustode.evaluate(module, threats=["darken"])
    assert robustode.evaluate(module, threats=[("darken", 0.1)], samples=5)["strength"].tolist() == [0.1]


def test_a_broken_module_raises_and_gives_no_number():
    with pytest.raises(NonFinite):
        robustode.evaluate(stubs.Faulty((1, 8, 8), 10, lambda z, x: z * torch.nan), samples=5)
    with pytest.raises(ContractBroken):
        robustode.evaluate(stubs.Linear((1, 8, 8), 9), samples=5)


def test_a_module_without_parameters_is_evaluated():
    class Constant(torch.nn.Module):
        def forward(self, images):
            return torch.eye(10)[torch.zeros(len(images), dtype=torch.long)]

    table = robustode.evaluate(Constant(), threats=["clean"])
    assert 0.05 < table["accuracy"][0] < 0.15


def test_a_trained_model_gives_the_stored_predictions(trained, digits):
    folder, _ = trained
    model = robustode.load_model(folder, "resnet")
    assert not model.training
    records, _ = Store(folder).load()
    clean = next(r for r in records if r.cell.threat == "clean")
    with torch.no_grad():
        predicted = model(digits.test.first(40).images).argmax(1)
    np.testing.assert_array_equal(clean.outcomes["prediction"][0], predicted)
    assert clean.accuracy > 0.5
    table = robustode.evaluate(model, threats=["clean"], samples=40)
    assert table["accuracy"][0] == pytest.approx(clean.accuracy)


def test_loading_does_not_depend_on_todays_defaults(trained, monkeypatch):
    """The hyperparameters come from the record."""
    folder, _ = trained
    before = robustode.load_model(folder, "resnet").state_dict()
    spec = MODELS.get("resnet")
    monkeypatch.setitem(
        MODELS._items, "resnet", stubs.spec("resnet", spec.build, hyperparameters={"width": 4})
    )
    after = robustode.load_model(str(folder), "resnet").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_is_not_there_is_one_line(trained, tmp_path):
    folder, _ = trained
    with pytest.raises(UnknownName, match="did you mean resnet"):
        robustode.load_model(folder, "resnt")
    with pytest.raises(InvalidArgument, match="holds no trained node with seed 0"):
        robustode.load_model(folder, "node")
    with pytest.raises(InvalidArgument, match="holds no trained resnet with seed 3"):
        robustode.load_model(folder, "resnet", seed=3)
    with pytest.raises(InvalidArgument, match="holds no trained resnet"):
        robustode.load_model(tmp_path / "none", "resnet")


def test_weights_that_are_not_those_of_the_record_are_refused(trained, digits):
    folder, plan = trained
    path = checkpoint_path(Store(folder), plan.training_cell(plan.specs[0], 0, digits))
    data = path.read_bytes()
    try:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(CheckpointError, match="does not match its record"):
            robustode.load_model(folder, "resnet")
        path.unlink()
        with pytest.raises(CheckpointError, match="cannot be read"):
            robustode.load_model(folder, "resnet")
    finally:
        path.write_bytes(data)


@pytest.mark.usefixtures("registries")
def test_a_model_from_a_file_is_loaded_with_its_file(tmp_path, few):
    path = tmp_path / "net.py"
    path.write_text(
        "from torch import nn\n"
        "def flat(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))\n"
    )
    from robustode.bench.external import load_external

    plan = make_plan(load_preset(str(stubs.preset_file(tmp_path))), models=[load_external(f"{path}:flat")])
    assert run_plan(plan, few, Store(tmp_path / "out"), device=stubs.CPU).failures == []
    model = robustode.load_model(tmp_path / "out", "flat", model=f"{path}:flat")
    assert isinstance(model, torch.nn.Sequential)
    with pytest.raises(UnknownName):
        robustode.load_model(tmp_path / "out", "flat")
