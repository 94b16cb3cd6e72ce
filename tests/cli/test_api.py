"""robustode from Python: a module evaluated, a trained model loaded."""

from __future__ import annotations

import lzma
import random

import numpy as np
import pandas as pd
import pytest
import robustode
import stubs
import torch
from rich.console import Console
from robustode._errors import CheckpointError, ContractBroken, InvalidArgument, NonFinite, UnknownName
from robustode.attacks import THREATS
from robustode.bench.api import DEFAULT_STRENGTHS
from robustode.bench.config.cells import training_cell
from robustode.bench.config.plan import make_plan
from robustode.bench.config.preset import load_preset
from robustode.bench.data import load_data
from robustode.bench.records.store import Store
from robustode.bench.records.weights_file import compress
from robustode.bench.report.statistics import COLUMNS, wilson
from robustode.bench.runner.run import run_plan
from robustode.bench.runtime import progress
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


def accuracies(table: pd.DataFrame) -> pd.DataFrame:
    """One row per threat, by its name."""
    rows = table[(table["statistic"] == "accuracy") & (table["threat"] != "worst-case")]
    return rows.set_index("threat")


def test_evaluate_gives_the_columns_of_summary(module):
    threats = ["clean", ("gaussian", 0.25), "pgd-linf", ("pgd-linf", 0.2), "pgd-linf", "uniform"]
    table = robustode.evaluate(module, threats=threats, samples=30, draws=3, name="mine")
    assert tuple(table.columns) == COLUMNS
    assert set(table["model"]) == {"mine"}
    assert set(table["seeds"]) == {1}, "a threat that is named twice is asked once"
    found = accuracies(table)
    assert sorted(zip(found.index, found["strength"], strict=True)) == [
        ("clean", 0.0),
        ("gaussian", 0.25),
        ("pgd-linf", 0.1),
        ("pgd-linf", 0.2),
        ("uniform", 0.3),
    ]
    assert (found["samples"] == 30).all()
    assert ((found["low"] <= found["value"]) & (found["value"] <= found["high"])).all()
    worst = table[table["threat"] == "worst-case"]
    assert worst[["norm", "strength"]].to_records(index=False).tolist() == [("linf", 0.1), ("linf", 0.2)]
    attacked = found.loc["pgd-linf"].set_index("strength")["value"]
    assert worst.set_index("strength")["value"].le(attacked + 1e-12).all()


def test_evaluate_counts_right_predictions(module, digits):
    with torch.no_grad():
        right = float((module(digits.test.images).argmax(1) == digits.test.labels).double().mean())
    (row,) = robustode.evaluate(module, threats=["clean"]).to_dict("records")
    assert row["value"] == pytest.approx(right)
    assert row["samples"] == 450
    low, high = wilson(right * 450, 450)
    assert (row["low"], row["high"]) == pytest.approx((float(low), float(high)))


def test_evaluate_takes_threats_of_every_kind(module):
    cheap = {"clean", "gaussian", "salt-pepper", "uniform", "fgsm-linf", "fmn-linf", "fmn-l2", "ddn-l2"}
    found = accuracies(robustode.evaluate(module, threats=sorted(cheap), samples=4))
    assert set(found.index) == cheap
    assert found["value"].between(0, 1).all()


def test_evaluate_repeats_and_follows_its_seed(module):
    def value(seed: int) -> list[float]:
        return robustode.evaluate(module, threats=[("gaussian", 0.6)], draws=5, seed=seed)["value"].tolist()

    assert value(0) == value(0)
    assert value(0) != value(1)


class Careless(stubs.Linear):
    """Uses every global generator in its forward pass."""

    def forward(self, images):
        torch.rand(1), np.random.rand(), random.random()
        return super().forward(images)


def test_evaluate_leaves_the_module_and_all_random_numbers_alone():
    module = Careless((1, 8, 8), 10)
    module.sub = torch.nn.Dropout().eval()
    module.train()
    module.sub.eval()
    module.head.bias.requires_grad_(False)
    module.head.weight.grad = torch.full_like(module.head.weight, 0.5)
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    for device in (None, "cpu"):
        robustode.evaluate(
            module, samples=10, threats=["clean", "gaussian", "pgd-linf", "fmn-l2"], device=device
        )
    assert (module.training, module.sub.training) == (True, False)
    assert [p.requires_grad for p in module.parameters()] == [True, False]
    assert module.head.bias.grad is None
    assert bool((module.head.weight.grad == 0.5).all())
    assert all(torch.equal(weights[name], tensor) for name, tensor in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


def test_everything_is_put_back_after_a_failure_too():
    module = stubs.Faulty((1, 8, 8), 10, lambda z, x: z * torch.nan).train()
    state = torch.get_rng_state()
    with pytest.raises(NonFinite):
        robustode.evaluate(module, samples=5)
    assert module.training
    assert all(p.requires_grad for p in module.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_is_shown_where_it_is_asked_for(module, capsys):
    robustode.evaluate(module, threats=["clean"], samples=5)
    assert capsys.readouterr() == ("", "")
    table = robustode.evaluate(module, threats=["clean", ("gaussian", 0.2)], samples=5, progress=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("] ")[1].split(":")[0] for line in lines] == ["module · clean", "module · gaussian"]
    assert lines[1].startswith("[100%")
    assert f"{accuracies(table).loc['gaussian', 'value']:.1%}" in lines[1]


@pytest.mark.parametrize(("widgets", "bar"), [(True, True), (False, False)])
def test_progress_is_shown_in_a_notebook(monkeypatch, capsys, widgets, bar):
    """Where rich can draw a bar, a bar; plain lines otherwise."""
    notebook = Console(force_jupyter=True)
    monkeypatch.setattr(progress, "Console", lambda: notebook)
    monkeypatch.setattr(progress, "find_spec", lambda name: "there" if widgets else None)
    reporter = progress.reporter_for_call()
    assert isinstance(reporter, progress.Terminal)
    assert (reporter._bar is not None) is bar
    if not bar:
        with reporter:
            reporter.start(1.0)
            reporter.line("one curve")
        assert "one curve" in capsys.readouterr().out
    assert not isinstance(progress.reporter_for_call(False), progress.Terminal)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threats": ["gausian"]}, "did you mean gaussian"),
        ({"threats": [("gaussian", -1.0)]}, "sigma must be at least 0"),
        ({"threats": ["clean", ("salt-pepper", 2.0)]}, "at most 1"),
        ({"threats": [("pgd-l2", "a")]}, "threat pgd-l2: eps must be a number, not 'a'"),
        ({"threats": [("pgd-l2", [0.1, 0.5])]}, r"eps must be a number, not \[0.1, 0.5\]"),
        ({"threats": [("pgd-l2", 0.1, 3)]}, r"a name, a pair .*, not \('pgd-l2', 0.1, 3\)"),
        ({"threats": [("pgd-l2", 0.1, {"step": 3})]}, "'step': did you mean steps"),
        ({"threats": [("pgd-l2", 0.1), ("pgd-l2", 0.1, {"steps": 3})]}, "pgd-l2 at 0.1: .* two ways"),
        ({"threats": [3]}, "a name, a pair .*, not 3"),
        ({"dataset": "digit"}, "did you mean digits"),
        ({"samples": 451}, "digits has 450 test samples, not 451"),
        ({"threats": [("pgd-linf", 8.0)]}, "8/255 is 0.0314"),
        ({"samples": 0}, "samples must be at least 1, not 0"),
        ({"threats": []}, "names no threat"),
        ({"device": "tpu9"}, "device 'tpu9' cannot be used"),
        ({"device": "meta"}, "which holds no numbers"),
        ({"name": "A B"}, "model name 'A B' is not allowed"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_computed(options, message):
    def never(logits, images):
        raise AssertionError("asked")

    with pytest.raises(InvalidArgument, match=message):
        robustode.evaluate(stubs.Faulty((1, 8, 8), 10, never), **options)


def test_what_is_no_module_is_refused():
    with pytest.raises(InvalidArgument, match="module must be a Module, not function"):
        robustode.evaluate(stubs.linear)


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
    assert 0.05 < table["value"][0] < 0.15


def test_a_trained_model_gives_the_stored_predictions(trained, digits):
    folder, _ = trained
    model = robustode.load_model(folder, "resnet")
    assert not model.training
    records, _ = Store(folder).load()
    clean = next(r for r in records if r.cell.threat == "clean")
    with torch.no_grad():
        predicted = model(digits.test.first(40).images).argmax(1)
    np.testing.assert_array_equal(stubs.predicted(clean, digits.test)[0], predicted)
    assert clean.accuracy > 0.5
    table = robustode.evaluate(model, threats=["clean"], samples=40)
    assert table["value"][0] == pytest.approx(clean.accuracy)


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
    path = Store(folder).checkpoint_path(training_cell(plan, plan.specs[0], 0, digits))
    data = path.read_bytes()
    try:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(CheckpointError, match=f"{path.name} is damaged"):
            robustode.load_model(folder, "resnet")
        plain = lzma.decompress(data)
        path.write_bytes(compress(plain[:-1] + bytes([plain[-1] ^ 1])))
        with pytest.raises(CheckpointError, match=f"{path.name} does not match its record"):
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
    from robustode.bench.plugins.model_file import load_external

    plan = make_plan(load_preset(str(stubs.preset_file(tmp_path))), models=[load_external(f"{path}:flat")])
    assert run_plan(plan, few, Store(tmp_path / "out"), device=stubs.CPU).failures == []
    model = robustode.load_model(tmp_path / "out", "flat", model=f"{path}:flat")
    assert isinstance(model, torch.nn.Sequential)
    assert isinstance(robustode.load_model(tmp_path / "out", "flat"), torch.nn.Sequential)
    path.unlink()
    with pytest.raises(UnknownName, match=r"net\.py is not there any more, .* model='FOLDER/net\.py:flat'"):
        robustode.load_model(tmp_path / "out", "flat")


def test_a_module_in_double_precision_is_evaluated_as_it_is(module):
    threats = ["clean", ("gaussian", 0.25), "pgd-linf", "fmn-l2"]
    single = accuracies(robustode.evaluate(module, threats=threats, samples=20))
    double = accuracies(robustode.evaluate(module.double(), threats=threats, samples=20))
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float64}
    assert (single["value"] - double["value"]).abs().max() <= 0.05 + 1e-9
