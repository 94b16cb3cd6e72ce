"""Rows of a preset that are registered models with other hyperparameters: named, planned, trained, loaded."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import robustode
import stubs
import torch
from hypothesis import given
from hypothesis import strategies as st
from robustode._errors import InvalidArgument, UnknownName
from robustode.bench.cli import run as run_command
from robustode.bench.cli.main import main
from robustode.bench.config.cells import training_cell
from robustode.bench.config.model_selection import select_models, variant_specs
from robustode.bench.config.plan import Plan, make_plan
from robustode.bench.config.preset import Preset, Recipe, Sweep, load_preset
from robustode.bench.data import load_data
from robustode.bench.records.store import Store
from robustode.bench.runner.run import run_plan
from robustode.bench.training.partial_training import History
from robustode.bench.training.train import build_model, train
from robustode.models import MODELS

ROWS = """
[variants.resnet-2]
model = "resnet"
hyperparameters = { layers = 2, width = 4 }

[variants.resnet-3]
model = "resnet"
hyperparameters = { layers = 3 }
recipe = { weight_decay = 0.25, epochs = 1 }

[variants.spare]
model = "node"
"""
SWEEP = """
[[sweeps]]
model = "ch-node"
hyperparameter = "final_time"
values = [0.5, 1.0, 1e-3]
hyperparameters = { steps = 4 }
recipe = { weight_decay = 0.5 }
"""


NAMES = '["resnet-2", "resnet-3", "spare"]'


def preset(folder: Path, more: str = ROWS, models: str = NAMES) -> Preset:
    text = stubs.PRESET.replace('["resnet"]', models) + more
    return load_preset(str(stubs.preset_file(folder, text)))


def chosen(preset: Preset, *names: str) -> list[str]:
    return [spec.name for spec in select_models(preset, names)]


# --- rows ---------------------------------------------------------------------------------------


def test_a_variant_differs_from_its_model_in_what_it_says_alone(tmp_path):
    plan = make_plan(preset(tmp_path))
    two, three, spare = plan.specs
    base = MODELS.get("resnet")
    assert [spec.name for spec in plan.specs] == ["resnet-2", "resnet-3", "spare"]
    assert [spec.architecture for spec in plan.specs] == ["resnet", "resnet", "node"]
    assert plan.hyperparameters(spare) == MODELS.get("node").resolve()
    assert plan.hyperparameters(two) == {**base.resolve(), "layers": 2, "width": 4}
    assert plan.hyperparameters(three) == {**base.resolve(), "layers": 3}
    assert plan.recipe(two).weight_decay == base.recipe["weight_decay"]
    assert plan.recipe(two).epochs == 2
    assert (plan.recipe(three).weight_decay, plan.recipe(three).epochs) == (0.25, 1)
    assert plan.recipe(three).learning_rate == 0.02
    assert two.build is base.build
    assert (two.claims, two.reference, two.full_version) == (base.claims, base.reference, base.full_version)
    assert "resnet-2" not in MODELS


def test_a_variant_is_other_work_than_its_model(tmp_path, few):
    plan = make_plan(preset(tmp_path, models='["resnet", "resnet-2", "resnet-3", "spare"]'))
    cells = [training_cell(plan, spec, 0, few) for spec in plan.specs]
    assert [cell.model for cell in cells] == ["resnet", "resnet-2", "resnet-3", "spare"]
    assert len({cell.key() for cell in cells}) == len({cell.variant() for cell in cells}) == 4


def test_a_variant_of_a_variant_has_the_architecture_of_the_first():
    base = MODELS.get("node-dopri5")
    one = base.variant("one", {"layers": 2}, {"epochs": 3})
    two = one.variant("two", {"width": 4}, {"epochs": 5})
    assert two.architecture == one.architecture == "node-dopri5"
    assert dict(two.hyperparameters) == {"method": "dopri5", "layers": 2, "width": 4}
    assert dict(two.recipe) == {**base.recipe, "epochs": 5}
    assert base.architecture == "node-dopri5"
    assert base.variant_of is None


ROW_MISTAKES = {
    "taken": (
        ROWS.replace("variants.spare", "variants.h-node"),
        "preset tiny: 'h-node' is a registered model: rename the variant",
    ),
    "unknown model": (
        ROWS.replace('model = "node"', 'model = "nod"'),
        "unknown model 'nod': did you mean node",
    ),
    "of a variant": (
        ROWS.replace('model = "node"', 'model = "resnet-2"'),
        "unknown model 'resnet-2': did you mean resnet",
    ),
    "typo": (
        ROWS.replace("variants.spare", "variants.spares"),
        "unknown model 'spare': did you mean spares",
    ),
    "name": (ROWS.replace("variants.spare", 'variants."A row"'), "model name 'A row' is not allowed"),
    "no model": (ROWS.replace('model = "node"', ""), r"key 'variants\.spare\.model' is missing"),
    "key": (ROWS.replace("recipe =", "recipes ="), "unknown key 'recipes': did you mean recipe"),
    "hyperparameter": (
        ROWS.replace("layers = 3", "layer = 3"),
        "unknown hyperparameter of resnet-3 'layer': did you mean layers",
    ),
    "recipe": (ROWS.replace("epochs = 1", "epochs = 0"), "recipe of resnet-3: epochs"),
    "swept model": (SWEEP.replace('"ch-node"', '"ch-noed"'), "unknown model 'ch-noed': did you mean ch-node"),
    "swept hyperparameter": (
        SWEEP.replace('"final_time"', '"final_tim"'),
        "hyperparameter of ch-node-final-tim-0.5 'final_tim': did you mean final_time",
    ),
    "one value": (
        SWEEP.replace(", 1.0, 1e-3", ""),
        r"sweeps\[0\]\.values = \[0\.5\]: list should have at least 2",
    ),
    "value": (SWEEP.replace("1e-3", "nan"), r"sweeps\[0\]\.values\[2\]\S* = nan"),
    "text": (SWEEP.replace("1e-3", '"2"'), r"sweeps\[0\]\.values\[2\]\S* = '2'"),
    "twice": (SWEEP.replace("1e-3", "0.5"), "sweep over final_time of ch-node: two values read alike"),
    "alike": (SWEEP.replace("1e-3", "0.50000001"), "two values read alike"),
    "two sweeps": (SWEEP + SWEEP, r"rows are called 'ch-node-final-time-0\.5': rename one"),
}


@pytest.mark.parametrize(("more", "message"), ROW_MISTAKES.values(), ids=ROW_MISTAKES)
def test_a_mistake_in_a_row_is_one_line(tmp_path, more, message):
    models = NAMES if "variants" in more else '["resnet"]'
    with pytest.raises(InvalidArgument, match=message) as caught:
        make_plan(preset(tmp_path, more, models))
    assert len(str(caught.value).splitlines()) == 1


# --- sweeps -------------------------------------------------------------------------------------


def test_a_sweep_is_a_row_for_each_value_and_joins_by_itself(tmp_path):
    plan = make_plan(preset(tmp_path, SWEEP, '["resnet"]'))
    names = [f"ch-node-final-time-{value}" for value in ("0.5", "1", "0.001")]
    assert [spec.name for spec in plan.specs] == ["resnet", *names]
    for spec, value in zip(plan.specs[1:], (0.5, 1.0, 1e-3), strict=True):
        assert spec.architecture == "ch-node"
        known = {**MODELS.get("ch-node").resolve(), "steps": 4, "final_time": value}
        assert plan.hyperparameters(spec) == known
        assert plan.recipe(spec).weight_decay == 0.5


@given(st.lists(st.integers(1, 999), min_size=2, max_size=8, unique=True))
def test_every_value_of_a_sweep_has_a_row_of_its_own(thousandths):
    values = [k / 1000 for k in thousandths]
    rows = Sweep(model="ch-node", hyperparameter="kappa", values=values).variants()
    assert [row.hyperparameters["kappa"] for row in rows.values()] == values
    assert all(name.startswith("ch-node-kappa-0.") for name in rows)


def test_rows_and_sweeps_stand_side_by_side(tmp_path):
    both = preset(tmp_path, ROWS + SWEEP)
    assert list(both.all_variants()) == [
        "resnet-2", "resnet-3", "spare",
        "ch-node-final-time-0.5", "ch-node-final-time-1", "ch-node-final-time-0.001",
    ]  # fmt: skip
    assert set(variant_specs(both)) == set(both.all_variants())
    assert [spec.name for spec in make_plan(both).specs] == list(both.all_variants())


def test_a_large_value_makes_a_name_too():
    rows = Sweep(model="ch-node", hyperparameter="kappa", values=[1e6, 2e-7]).variants()
    assert list(rows) == ["ch-node-kappa-1e06", "ch-node-kappa-2e-07"]


def test_a_whole_number_can_be_swept(tmp_path, few):
    plan = make_plan(
        preset(
            tmp_path,
            '[[sweeps]]\nmodel = "resnet"\nhyperparameter = "layers"\nvalues = [2, 4]\n',
            '["node"]',
        )
    )
    for spec, layers in zip(plan.specs[1:], (2, 4), strict=True):
        assert len(build_model(spec.build, few, plan.hyperparameters(spec), 0).flow.layers) == layers


# --- what a name means --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "rows"),
    [
        (["resnet"], ["resnet-4", "resnet-8"]),
        (["resnet-8"], ["resnet-8"]),
        (["resnet-8", "resnet"], ["resnet-8", "resnet-4"]),
        (["node"], ["node-4"]),
        (["node-dopri5"], ["node-dopri5"]),
        (["ch-node"], ["ch-node-contractive"]),
        (["ch-node-euler"], ["ch-node-euler-4", "ch-node-euler-8"]),
        (["h-node", "node-4"], ["h-node-4", "h-node-8", "node-4"]),
    ],
)
def test_names_under_the_papers_preset(names, rows):
    assert chosen(load_preset("paper"), *names) == rows


def test_the_command_line_chooses_by_architecture(tmp_path, capsys, monkeypatch):
    planned: list[str] = []

    def look(plan: Plan, *_args, **_options) -> list:
        planned[:] = [spec.name for spec in plan.specs]
        return []

    monkeypatch.setattr(run_command, "estimate_remaining", look)
    monkeypatch.chdir(tmp_path)
    preset(tmp_path)

    def dry_run(models: str) -> int:
        return main(["run", "--preset", "tiny.toml", "--models", models, "--dry-run"])

    assert dry_run("resnet") == 0
    assert planned == ["resnet-2", "resnet-3"]
    assert dry_run("spare,resnet-3") == 0
    assert planned == ["spare", "resnet-3"]
    capsys.readouterr()
    assert dry_run("resnet-9") == 2
    assert capsys.readouterr().err.startswith("robustode: error: unknown model 'resnet-9'")


def test_a_row_called_like_its_model_stands_for_itself_alone(tmp_path):
    both = preset(tmp_path, models='["resnet", "resnet-2", "resnet-3", "spare"]')
    assert chosen(both, "resnet") == ["resnet"], "not the other rows of the architecture"
    assert chosen(both, "resnet-2") == ["resnet-2"]
    assert chosen(both, "node") == ["spare"]
    assert chosen(both, "h-node") == ["h-node"], "no row: the registered model"
    alone = preset(tmp_path, "", '["resnet", "node"]')
    assert chosen(alone, "resnet") == ["resnet"]


def test_a_variant_that_is_no_row_is_not_run_of_its_own_accord(tmp_path):
    waiting = preset(tmp_path, models='["resnet-2", "resnet-3"]')
    assert [spec.name for spec in make_plan(waiting).specs] == ["resnet-2", "resnet-3"]
    assert chosen(waiting, "node") == ["node"], "an architecture means the rows of it"


def test_a_variant_that_is_no_row_waits_to_be_named(tmp_path):
    waiting = preset(tmp_path, models='["resnet-2", "resnet-3"]')
    assert chosen(waiting, "spare", "resnet-3") == ["spare", "resnet-3"]


def test_a_sweep_is_chosen_by_its_model_and_a_row_by_its_name(tmp_path):
    swept = preset(tmp_path, SWEEP, '["resnet"]')
    assert len(chosen(swept, "ch-node")) == 3
    assert chosen(swept, "ch-node-final-time-1") == ["ch-node-final-time-1"]
    assert chosen(swept, "resnet") == ["resnet"]


def test_a_name_that_is_no_row_is_asked_of_the_resolver(tmp_path):
    asked = []

    def resolve(name: str):
        asked.append(name)
        return stubs.spec("mine")

    found = select_models(preset(tmp_path), ["resnet-2", "mine.py:build"], resolve)
    assert [spec.name for spec in found] == ["resnet-2", "mine"]
    assert asked == ["mine.py:build"]
    with pytest.raises(UnknownName, match="unknown model 'resnet-22': did you mean resnet-2"):
        select_models(preset(tmp_path), ["resnet-22"])


def test_all_is_every_registered_model_every_variant_and_the_sweeps(tmp_path):
    everything = preset(tmp_path, ROWS + SWEEP, '["all"]')
    names = [spec.name for spec in make_plan(everything).specs]
    assert sorted(names) == sorted([*MODELS.names(), *everything.all_variants()])


# --- the shipped presets ------------------------------------------------------------------------

GAIN = 8**0.5
PAPER = {  # name: model, layers, final time, weight decay, published smoothing
    "resnet-4": ("resnet", 4, 2.0, 2e-4, 1e-3),
    "resnet-8": ("resnet", 8, 4.0, 2e-4, 1e-3),
    "h-node-4": ("h-node", 4, 2.0, 4e-3, 8e-3),
    "h-node-8": ("h-node", 8, 4.0, 4e-3, 8e-3),
    "ch-node-euler-4": ("ch-node-euler", 4, 2.0, 2e-4, 1e-3),
    "ch-node-euler-8": ("ch-node-euler", 8, 4.0, 2e-4, 1e-3),
    "ch-node-contractive": ("ch-node", 4, 0.5, 2e-4, 1e-3),
    "node-4": ("node", 4, 2.0, 2e-4, 1e-3),
}


def test_the_papers_preset_has_its_eight_rows():
    paper = load_preset("paper")
    plan = make_plan(paper)
    assert [spec.name for spec in plan.specs] == paper.models == list(PAPER)
    assert set(paper.variants) == set(PAPER)
    assert (paper.dataset, paper.seeds, paper.sweeps) == ("mnist", 3, [])
    recipe = paper.recipe
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (10, 100, 0.04)
    assert (recipe.decay, recipe.select) == (0.8, "last")


@pytest.mark.parametrize("name", PAPER)
def test_a_row_of_the_paper_has_the_published_numbers(name):
    model, layers, final_time, weight_decay, smoothing = PAPER[name]
    plan = make_plan(load_preset("paper"))
    (spec,) = (spec for spec in plan.specs if spec.name == name)
    known = plan.hyperparameters(spec)
    flow = spec.build((1, 28, 28), 10, **known).flow
    assert spec.architecture == model
    assert known["layers"] == len(flow.layers) == layers
    assert flow.final_time == final_time
    assert known["smoothing"] == pytest.approx(smoothing * (layers - 1), rel=1e-12)
    assert plan.recipe(spec) == Recipe(**{**plan.preset.recipe.model_dump(), "weight_decay": weight_decay})
    if name != "ch-node-contractive":
        assert known["gain"] == pytest.approx(GAIN, rel=1e-15)
        assert known["offset"] == 1.0
        assert final_time / layers == 0.5
    if name.startswith(("resnet", "h-node", "ch-node-euler")):
        assert (flow.solver.method, flow.solver.steps) == ("euler", layers)


@pytest.mark.parametrize("name", ["paper-gaussian", "paper-salt-pepper"])
def test_the_papers_noise_has_its_strengths(name):
    (grid,) = (grid for grid in load_preset("paper").threats if grid.name == name)
    assert (grid.strengths, grid.draws, grid.reported, grid.samples) == ([0.05, 0.2], 10, None, None)


def test_the_shipped_sweep_has_a_row_for_each_value():
    shipped = load_preset("sweep")
    (sweep,) = shipped.sweeps
    plan = make_plan(shipped)
    assert [spec.name for spec in plan.specs] == ["resnet", *sweep.variants()]
    assert len(plan.specs) == 1 + len(sweep.values)
    found = [plan.hyperparameters(spec)[sweep.hyperparameter] for spec in plan.specs[1:]]
    assert found == sweep.values


# --- which epoch counts -------------------------------------------------------------------------


@pytest.mark.parametrize(("select", "index"), [("validation", 1), ("last", 3)])
def test_which_epoch_is_selected(select, index):
    history = History(
        train_loss=[1, 1, 1, 1], validation_loss=[1, 0.5, 0.6, 2], validation_accuracy=[0.1, 0.9, 0.9, 0.2]
    )
    assert history.selected(select) == index


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_last_epoch_counts_where_the_recipe_says_so(few, tmp_path, epochs):
    recipe = Recipe(epochs=epochs, batch_size=50, learning_rate=0.02, select="last")
    model = build_model(stubs.linear, few, {}, 0)
    epoch_ends: list[dict[str, torch.Tensor]] = []
    seen = 0

    def on_batch(count: int) -> None:
        nonlocal seen
        seen += count
        if count and seen % 200 == 0:
            epoch_ends.append({k: v.clone() for k, v in model.state_dict().items()})

    worse = dataclasses.replace(  # validation on wrong labels: the more is learned, the worse it gets
        few, validation=dataclasses.replace(few.train.first(60), labels=(few.train.labels[:60] + 1) % 10)
    )
    checkpoint, history = train(
        model, worse, recipe, seed=0, path=tmp_path / "m.safetensors",
        facts={"cell": {}}, device=stubs.CPU, on_batch=on_batch,
    )  # fmt: skip
    assert checkpoint.facts["selected_epoch"] == epochs == len(epoch_ends)
    assert all(torch.equal(epoch_ends[-1][k], v) for k, v in model.state_dict().items())
    if epochs > 1:
        assert history.selected("validation") < epochs - 1


def test_select_is_one_of_two(tmp_path):
    text = stubs.PRESET.replace("epochs = 2", 'epochs = 2\nselect = "best"')
    with pytest.raises(
        InvalidArgument, match=r"recipe\.select = 'best': input should be 'validation' or 'last'"
    ):
        load_preset(str(stubs.preset_file(tmp_path, text)))


# --- trained and loaded -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Plan]:
    """A results folder with a model, two variants of it and a swept one."""
    folder = tmp_path_factory.mktemp("variants")
    sweep = '[[sweeps]]\nmodel = "node"\nhyperparameter = "final_time"\nvalues = [0.5, 1.5]\n'
    text = stubs.PRESET.partition('[[threats]]\nname = "pgd-linf"')[0].replace('"linf"', '"gaussian"')
    text += "[time_limit]\ntraining = 60\ncell = 30\n" + ROWS + sweep
    text = text.replace("epochs = 2", 'epochs = 2\nselect = "last"')
    text = text.replace('["resnet"]', '["resnet", "resnet-2", "resnet-3", "spare"]')
    plan = make_plan(load_preset(str(stubs.preset_file(folder, text))))
    data = load_data("digits")
    small = dataclasses.replace(data, train=data.train.first(200), test=data.test.first(40))
    assert run_plan(plan, small, Store(folder / "out"), device=stubs.CPU).failures == []
    return folder / "out", plan


@pytest.mark.parametrize(
    ("name", "layers", "width", "final_time"),
    [
        ("resnet", 4, 8, 2.0),
        ("resnet-2", 2, 4, 2.0),
        ("resnet-3", 3, 8, 2.0),
        ("spare", 4, 8, 2.0),
        ("node-final-time-0.5", 4, 8, 0.5),
        ("node-final-time-1.5", 4, 8, 1.5),
    ],
)
def test_a_trained_variant_is_loaded_by_its_name(trained, digits, name, layers, width, final_time):
    folder, _ = trained
    model = robustode.load_model(folder, name)
    assert len(model.flow.layers) == layers
    assert model.head.in_features == 64 * width
    assert model.flow.final_time == final_time
    records, problems = Store(folder).load()
    assert problems == []
    clean = next(r for r in records if (r.cell.model, r.cell.threat) == (name, "clean"))
    with torch.no_grad():
        predicted = model(digits.test.images[:40]).argmax(1)
    assert stubs.predicted(clean, digits.test)[0].tolist() == predicted.tolist()


def test_the_records_say_what_a_row_is(trained):
    folder, _ = trained
    records, _ = Store(folder).load()
    trainings = {r.cell.model: r for r in records if r.cell.kind == "training"}
    assert {name: r.card["architecture"] for name, r in trainings.items()} == {
        "resnet": "resnet",
        "resnet-2": "resnet",
        "resnet-3": "resnet",
        "spare": "node",
        "node-final-time-0.5": "node",
        "node-final-time-1.5": "node",
    }
    assert trainings["resnet-3"].cell.recipe["epochs"] == 1
    for record in trainings.values():
        assert record.cell.recipe["select"] == "last"
        assert record.measures["best_epoch"] == record.cell.recipe["epochs"]
        assert math.isfinite(record.measures["lipschitz_solver"])
    assert trainings["resnet-2"].cell.hyperparameters["layers"] == 2


def test_a_variant_that_was_not_trained_is_one_line(trained):
    with pytest.raises(InvalidArgument, match=r"unknown model .resnet-9.: did you mean resnet-3"):
        robustode.load_model(trained[0], "resnet-9")
    with pytest.raises(InvalidArgument, match="holds no trained node with seed 0"):
        robustode.load_model(trained[0], "node")
