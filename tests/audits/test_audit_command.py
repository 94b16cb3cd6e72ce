"""The command: a folder audited, stored, reported; what it cannot use is one line."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path

import pytest
import stubs
from robustode._errors import InvalidArgument, UnknownName
from robustode.bench.audits.audit_model import Audited, budget
from robustode.bench.audits.library import all_audits, audit_names
from robustode.bench.audits.registry import AUDITS
from robustode.bench.audits.run import audit_folder
from robustode.bench.cli.main import main
from robustode.bench.config.plan import make_plan
from robustode.bench.config.preset import load_preset
from robustode.bench.plugins.model_file import load_files
from robustode.bench.records.store import Store
from robustode.bench.report.report import write_report
from robustode.bench.runner.run import run_plan
from robustode.models import MODELS

FAST = "finite,determinism,zero-gradients,solver-sensitivity"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small trained model."""
    folder = tmp_path_factory.mktemp("audits")
    preset = stubs.preset_file(folder)
    assert main(["run", "--preset", str(preset), "--out", str(folder / "out"), "--quiet", "--jobs", "1"]) == 0
    return folder / "out"


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "out")
    return tmp_path / "out"


def audit(folder: Path, *more: str) -> int:
    return main(["audit", "--out", str(folder), "--samples", "16", "--jobs", "1", *more])


def records(folder: Path) -> dict[str, str]:
    found, problems = Store(folder).load()
    assert problems == []
    return {r.cell.threat: r.status for r in found if r.cell.kind == "audit"}


def test_a_folder_is_audited_and_reported(folder, capsys):
    before = write_report(folder).page.read_text()
    assert "monotone-in-eps" in before, "what reads records alone is read by every report"
    assert "zero-gradients" not in before
    assert ">not audited<" in before
    assert audit(folder, "--checks", FAST) == 0
    out = capsys.readouterr().out
    assert "resnet seed 0: pass" in out
    assert "4 checks done, 0 stored already" in out
    assert records(folder) == dict.fromkeys(FAST.split(","), "ok")
    page = (folder / "report" / "index.html").read_text()
    assert "Audits of resnet" in page
    assert "zero-gradients" in page
    assert "monotone-in-eps" in page
    assert "data:image/svg+xml" in page.split("Audits of", 1)[1]
    assert "4 of 18 model checks" in (folder / "report" / "leaderboard.md").read_text()
    assert audit(folder, "--checks", FAST) == 0
    assert "0 checks done, 4 stored already" in capsys.readouterr().out
    assert (folder / "report" / "index.html").read_text() == page, "the same records give the same bytes"


def test_the_list_of_checks_says_what_each_costs_and_follows(capsys):
    assert main(["list", "audits"]) == 0
    out = capsys.readouterr().out
    for audit in all_audits():
        assert f"cost: {audit.cost}\n" in out
        assert f"reference: {audit.reference}\n" in out


def test_it_is_said_how_many_rows_are_not_fully_audited(folder, capsys):
    store = Store(folder)
    for record in store.load()[0]:
        cell = dataclasses.replace(record.cell, model="node")
        store.put(dataclasses.replace(record, cell=cell))
    assert audit(folder, "--checks", FAST, "--models", "resnet") == 0
    (hint,) = [line for line in capsys.readouterr().out.splitlines() if "robustode audit" in line]
    assert hint.startswith("not fully audited: 2 of 2 rows")
    assert f"`robustode audit --out {folder}`" in hint


@pytest.mark.parametrize(("count", "found"), [(1, [0]), (2, [0, 1]), ((1,), [1]), (None, [0, 1])])
def test_only_the_first_seeds_are_audited_where_so_many_are_asked_for(folder, monkeypatch, count, found):
    store, audited = Store(folder), []
    for record in store.load()[0]:
        store.put(dataclasses.replace(record, cell=dataclasses.replace(record.cell, training_seed=1)))

    def audit_trained_model(task, say, finder):
        audited.append(task.seed)
        return Audited()

    monkeypatch.setattr("robustode.bench.audits.run.audit_trained_model", audit_trained_model)
    audit_folder(folder, checks=["finite"], seeds=count, jobs=1)
    assert sorted(audited) == found


COUNTED = """
from torch import nn

with open(__file__ + ".imports", "a") as file:
    file.write(".")

def net(input_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

def other(input_shape, num_classes):
    return net(input_shape, num_classes)
"""


def test_a_model_file_is_imported_once_for_all_seeds_and_models(tmp_path):
    file, imports = tmp_path / "nets.py", tmp_path / "nets.py.imports"
    file.write_text(COUNTED)
    models = [f"{file}:net", f"{file}:other"]
    preset, out = str(stubs.preset_file(tmp_path)), str(tmp_path / "out")
    run = ["run", "--preset", preset, "--models", ",".join(models), "--seeds", "2", "--out", out]
    assert main([*run, "--quiet", "--device", "cpu", "--jobs", "1"]) == 0
    imports.unlink()
    assert audit_folder(tmp_path / "out", checks=["finite"], models=models, samples=16, jobs=1).done == 4
    assert imports.read_text() == "."


@pytest.mark.parametrize(("backend", "flow"), [("compiled", "numba"), ("torchdiffeq", "eager")])
def test_processes_of_audits_use_the_ode_backend_of_the_caller(folder, ode_backend, backend, flow):
    store = Store(folder)
    for record in store.load()[0]:
        cell = dataclasses.replace(record.cell, training_seed=1)
        store.put(dataclasses.replace(record, cell=cell))
        if cell.kind == "training":
            shutil.copy(store.checkpoint_path(record.cell), store.checkpoint_path(cell))
    ode_backend(backend)
    assert audit_folder(folder, checks=["finite"], samples=16, jobs=2).done == 2
    audits = [record for record in Store(folder).load()[0] if record.cell.threat == "finite"]
    assert [record.environment["flow"].split()[0] for record in audits] == [flow, flow]


def test_a_check_that_crashes_is_a_failed_record_and_no_pass(folder, monkeypatch, capsys):
    def crash(context):
        raise RuntimeError("boom")

    audit_names()  # registers them
    audits = AUDITS._items
    broken = {**audits, "finite": type(audits["finite"])(**{**vars(audits["finite"]), "check": crash})}
    monkeypatch.setattr(AUDITS, "_items", broken)
    assert audit(folder, "--checks", "finite") == 1
    assert "resnet seed 0 · finite: error: RuntimeError: boom" in capsys.readouterr().err
    assert records(folder) == {"finite": "error"}
    board = write_report(folder).leaderboard
    assert list(board["audit_flags"]) == ["finite"]
    monkeypatch.undo()
    assert audit_folder(folder, checks=["finite"], samples=16, jobs=1).done == 1, (
        "a failed audit is run again"
    )
    assert records(folder) == {"finite": "ok"}


FAILING = """
import os, signal
from pathlib import Path
from torch import nn

class Net(nn.Module):
    def __init__(self, size, classes):
        super().__init__()
        self.head = nn.Linear(size, classes)

    def forward(self, images):
        if Path(__file__).with_name("dies").exists() and images.requires_grad:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.head(images.flatten(1))

def dying(shape, classes):
    return Net(shape[0] * shape[1] * shape[2], classes)

def raising(shape, classes):
    if Path(__file__).with_name("raises").exists():
        raise ZeroDivisionError("no")
    return Net(shape[0] * shape[1] * shape[2], classes)
"""


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory, digits, registries_of_module) -> Path:
    """A folder with a model that will kill its process, one whose factory will raise, and a sound one."""
    folder = tmp_path_factory.mktemp("failing")
    (folder / "nets.py").write_text(FAILING)
    specs = load_files([f"{folder}/nets.py:{name}" for name in ("dying", "raising")])
    preset = load_preset(str(stubs.preset_file(folder, stubs.PRESET.replace("epochs = 2", "epochs = 1"))))
    plan = make_plan(preset, models=[*specs.values(), MODELS.get("resnet")])
    assert run_plan(plan, digits, Store(folder / "out"), device=stubs.CPU).failures == []
    (folder / "dies").touch()
    (folder / "raises").touch()
    return folder / "out"


def statuses(folder: Path, model: str) -> dict[str, str]:
    return {
        r.cell.threat: r.status
        for r in Store(folder).load()[0]
        if (r.cell.kind, r.cell.model) == ("audit", model)
    }


def test_what_a_model_does_in_an_audit_is_its_own_failure(failing):
    checks = ["logits", "zero-gradients", "step-counts"]
    done = audit_folder(failing, checks=checks, samples=4, jobs=2)
    killed = "error: its process was killed by signal 9"
    assert sorted(done.failures) == [
        f"dying seed 0 · step-counts: {killed}",
        f"dying seed 0 · zero-gradients: {killed}",
        "raising seed 0 (plain): not audited: the model cannot be built: ZeroDivisionError: no (nets.py:21)",
    ]
    assert statuses(failing, "dying") == {"logits": "ok", "zero-gradients": "error", "step-counts": "error"}
    assert statuses(failing, "resnet") == dict.fromkeys(checks, "ok")
    assert done.done == 6
    Path(failing.parent / "dies").unlink()
    again = audit_folder(failing, checks=checks, samples=4, jobs=1)
    assert (again.done, again.skipped) == (2, 4), "what failed is asked again; in this process, too"
    assert [line.partition(":")[0] for line in again.failures] == ["raising seed 0 (plain)"]


def test_a_model_that_takes_too_long_to_load_is_stopped(folder, monkeypatch):
    monkeypatch.setattr("robustode.bench.audits.audit_model.trained_model", lambda *_, **__: time.sleep(60))
    done = audit_folder(folder, checks=["finite"], samples=4, jobs=1, time_limit=0.1)
    (line,) = done.failures
    assert "not audited: loading the model took longer than its limit of 0.1 s (--time-limit)" in line


def test_weights_that_are_gone_are_named(folder, capsys):
    next((folder / "checkpoints" / "resnet").glob("*.safetensors.xz")).unlink()
    assert audit(folder, "--checks", "finite") == 1
    assert "resnet seed 0 (plain): not audited" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (["--checks", "finit"], "unknown check of a model 'finit': did you mean finite"),
        (["--checks", "monotone-in-eps"], "unknown check of a model"),
        (["--models", "resne"], "did you mean resnet"),
        (["--samples", "1"], "--samples must be at least 2"),
        (["--seeds", "0"], "--seeds must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_audited_is_one_line(trained, more, error, capsys):
    assert main(["audit", "--out", str(trained), "--jobs", "1", *more]) == 2
    assert error in capsys.readouterr().err


def test_jobs_must_be_positive(trained, capsys):
    assert main(["audit", "--out", str(trained), "--jobs", "0"]) == 2
    assert "--jobs must be at least 1" in capsys.readouterr().err


def test_a_folder_without_a_trained_model(tmp_path):
    with pytest.raises(InvalidArgument, match="no trained model"):
        audit_folder(tmp_path)


def test_names_are_suggested(trained):
    with pytest.raises(UnknownName, match="did you mean resnet"):
        audit_folder(trained, models=["resnett"])


@pytest.mark.parametrize(
    ("reported", "rank", "found"),
    [
        ({"linf": 0.1, "l2": 0.5}, "l2", ("l2", 0.5)),
        ({"gaussian": 0.2, "linf": 0.3}, "gaussian", ("linf", 0.3)),
        ({"gaussian": 0.2, "l2": 0.4}, "gaussian", ("l2", 0.4)),
        ({}, "", ("linf", 0.1)),
    ],
)
def test_the_budget_of_an_audit(reported, rank, found):
    assert budget(reported, rank) == found


def test_a_preset_names_the_audits_that_make_a_row_audited(folder, tmp_path, capsys):
    wrong = stubs.preset_file(tmp_path, 'audits = ["finit"]\n' + stubs.PRESET)
    assert main(["run", "--preset", str(wrong), "--out", str(tmp_path / "new")]) == 2
    assert "did you mean finite?" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    right = stubs.preset_file(tmp_path, 'audits = ["determinism", "finite"]\n' + stubs.PRESET)
    assert main(["run", "--preset", str(right), "--out", str(folder), "--quiet", "--jobs", "1"]) == 0
    assert "not fully audited: 1 of 1 rows" in capsys.readouterr().out
    assert audit(folder) == 0
    assert records(folder) == {"finite": "ok", "determinism": "ok"}
    assert "not fully audited" not in capsys.readouterr().out
    assert list(write_report(folder).leaderboard["audits"]) == ["3 passed"]


def test_an_expected_failure_of_no_check_is_told(folder, monkeypatch, capsys):
    expected = {"batch_independance": "a slip of the pen", "zero_gradients": "in the former spelling"}
    spec = dataclasses.replace(MODELS.get("resnet"), expected_failures=expected)
    monkeypatch.setitem(MODELS._items, "resnet", spec)
    assert audit(folder, "--checks", "finite") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "expected_failures" in line]
    assert len(lines) == 1
    assert "did you mean batch-independence" in lines[0]
