"""Folders made apart become one: everything is there, verifies, and what does not fit is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import stubs
from robustode.bench.cli.main import main
from robustode.bench.config.plan import make_plan
from robustode.bench.config.preset import load_preset
from robustode.bench.plugins.model_file import load_external
from robustode.bench.records.headline import Headline
from robustode.bench.records.store import Store
from robustode.bench.runner.run import run_plan
from robustode.bench.training.stored_model import load_model
from robustode.models import MODELS

pytestmark = pytest.mark.usefixtures("registries_of_module")

PRESET = (
    stubs.PRESET.split("[throughput]")[0].replace("epochs = 2", "epochs = 1")
    + "[time_limit]\ntraining = 60\ncell = 30\n"
)
NET = """
from torch import nn

def flat(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))
"""


def do(folder: Path, out: Path, data, models, seeds, text: str = PRESET) -> None:
    plan = make_plan(load_preset(str(stubs.preset_file(folder, text))), models=models, seeds=seeds)
    assert run_plan(plan, data, Store(out), device=stubs.CPU).failures == []


@pytest.fixture(scope="module")
def apart(tmp_path_factory, digits, registries_of_module) -> Path:
    """Three folders: resnet from seed 0, resnet from seed 1, a model of a file from seed 0."""
    folder = tmp_path_factory.mktemp("apart")
    (folder / "net.py").write_text(NET)
    resnet, flat = MODELS.get("resnet"), load_external(f"{folder}/net.py:flat")
    do(folder, folder / "a", digits, [resnet], (0,))
    do(folder, folder / "b", digits, [resnet], (1,))
    do(folder, folder / "deep" / "c", digits, [flat], (0,))
    return folder


def merge(*folders: Path, out: Path) -> int:
    return main(["merge", *map(str, folders), "--out", str(out)])


def keys(*folders: Path) -> set[str]:
    return {record.cell.key() for folder in folders for record in Store(folder).load()[0]}


def test_a_merged_folder_holds_everything_and_verifies(apart, tmp_path, capsys):
    sources = [apart / "a", apart / "b", apart / "deep" / "c"]
    out = tmp_path / "new" / "all"
    assert merge(*sources, out=out) == 0
    assert f"{len(keys(*sources))} records of 2 models in {out}" in capsys.readouterr().out
    assert keys(out) == keys(*sources)
    assert set(Headline.read(out).cells) == {"digits/resnet/0", "digits/resnet/1", "digits/flat/0"}
    assert main(["verify", "--out", str(out)]) == 0
    assert "models 3, " in capsys.readouterr().out, "the file of flat is found from the new place, too"
    assert load_model(out, "flat")
    assert [path.name for path in out.parent.iterdir()] == ["all"]


def test_one_training_whose_cells_were_done_apart_is_put_together(apart, tmp_path, digits):
    for name in ("one", "two"):
        shutil.copytree(apart / "a", tmp_path / name)
    more = PRESET.replace("strengths = [0.05]", "strengths = [0.02, 0.05]")
    do(tmp_path, tmp_path / "two", digits, [MODELS.get("resnet")], (0,), more)
    (cell,) = (
        r.cell
        for r in Store(tmp_path / "one").load()[0]
        if r.cell.threat == "gaussian" and r.cell.strength == 0.3
    )
    stubs.forget(Store(tmp_path / "two"), cell)
    out = tmp_path / "out"
    out.mkdir()
    assert merge(tmp_path / "one", tmp_path / "two", out=out) == 0
    assert keys(out) == keys(tmp_path / "one", tmp_path / "two")
    assert main(["verify", "--out", str(out)]) == 0


def test_a_failure_does_not_replace_what_succeeded(apart, tmp_path):
    shutil.copytree(apart / "a", tmp_path / "failed")
    store = Store(tmp_path / "failed")
    record = next(r for r in store.load()[0] if r.cell.threat == "pgd-linf")
    store.put(dataclasses.replace(record, status="timeout", error="x", outcomes={}, card={}))
    assert merge(apart / "a", tmp_path / "failed", out=tmp_path / "out") == 0
    assert Store(tmp_path / "out").get(record.cell).status == "ok"


def _other_rank(folder: Path) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps({**plan, "preset": "other"}))


def _other_weights(folder: Path) -> None:
    store = Store(folder)
    for record in store.load()[0]:
        if record.cell.kind == "training":
            store.put(dataclasses.replace(record, card={**record.card, "checkpoint_sha256": "0" * 64}))


def _other_code(folder: Path) -> None:
    text = Path(folder / "records" / "resnet" / "seed0.jsonl")
    store = Store(folder)
    records = store.load()[0]
    text.unlink()
    for record in records:
        cell = dataclasses.replace(record.cell, model_version="99")
        store.put(dataclasses.replace(record, cell=cell, card={}))


def _other_data(folder: Path) -> None:
    store = Store(folder)
    for record in store.load()[0]:
        cell = dataclasses.replace(record.cell, index_sha256="0" * 64)
        store.put(dataclasses.replace(record, cell=cell, card={}))
        stubs.forget(store, record.cell)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_rank, "their plans differ in preset (tiny, other)"),
        (_other_weights, "both hold resnet seed 0 · training, with different weights"),
        (_other_code, "hold different models, versions or recipes by the name 'resnet'"),
        (_other_data, "speak of different samples of digits"),
        (lambda folder: (folder / "plan.json").unlink(), "plan.json: not a plan"),
        (lambda folder: shutil.rmtree(folder / "records"), "no records in"),
    ],
)
def test_folders_that_do_not_fit_are_refused_and_nothing_is_written(apart, tmp_path, capsys, change, message):
    shutil.copytree(apart / "a", tmp_path / "changed")
    change(tmp_path / "changed")
    assert merge(apart / "a", tmp_path / "changed", out=tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["changed"]


def test_a_folder_that_holds_something_is_left_alone(apart, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert merge(apart / "a", apart / "b", out=tmp_path) == 2
    assert "is there already: choose a new folder" in capsys.readouterr().err
    assert merge(apart / "a", apart / "a" / ".." / "a", out=tmp_path / "out") == 2
    assert "two or more different results folders" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_of_one_seed_by_its_name(apart):
    assert {r.cell.training_seed for r in Store(apart / "b").load()[0]} == {1}
