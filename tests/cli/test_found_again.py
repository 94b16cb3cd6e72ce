"""What a run has used is found again by later commands: plug-ins, and model files where they lay."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import robustode
import stubs
import torch
from robustode._errors import UnknownName
from robustode.bench.cli.main import main
from robustode.bench.config.plan import make_plan
from robustode.bench.config.preset import load_preset
from robustode.bench.plugins import entry_points
from robustode.bench.plugins.model_file import load_files
from robustode.bench.records.store import Store
from robustode.bench.report.report import write_report
from robustode.bench.runner.run import run_plan
from robustode.bench.verification.verify import verify

pytestmark = pytest.mark.usefixtures("registries")

NETS = """
from torch import nn

with open(__file__ + ".imports", "a") as file:
    file.write(".")

def flat(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))

def bent(shape, classes):
    pixels = shape[0] * shape[1] * shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 12), nn.Tanh(), nn.Linear(12, classes))
"""
PRESET = stubs.PRESET.split("[throughput]")[0] + "[time_limit]\ntraining = 60\ncell = 30\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory, digits) -> Path:
    """A project with a file of two models, and ``out``, where they were run."""
    project = tmp_path_factory.mktemp("project")
    (project / "nets.py").write_text(NETS)
    specs = load_files([f"{project}/nets.py:{name}" for name in ("flat", "bent")])
    plan = make_plan(load_preset(str(stubs.preset_file(project, PRESET))), models=list(specs.values()))
    assert run_plan(plan, digits, Store(project / "out"), device=stubs.CPU).failures == []
    (project / "nets.py.imports").unlink()
    return project


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    """The same, moved as a whole."""
    shutil.copytree(made, tmp_path / "moved")
    return tmp_path / "moved"


def command(name: str, project: Path, *more: str) -> int:
    return main([name, "--out", str(project / "out"), *more])


AUDIT = ("--checks", "finite", "--samples", "16", "--jobs", "1")


def test_a_plan_notes_where_a_model_file_lies_and_names_no_folder_above(made):
    files = json.loads((made / "out" / "plan.json").read_text())["files"]
    assert {name: file["place"] for name, file in files.items()} == {
        "flat": "../nets.py:flat",
        "bent": "../nets.py:bent",
    }


def test_every_command_finds_the_file_and_imports_it_once(project, capsys):
    assert command("audit", project, *AUDIT) == 0
    assert "2 checks done" in capsys.readouterr().out
    assert (project / "nets.py.imports").read_text() == "."
    assert command("transfer", project) == 0
    assert "2 cells done" in capsys.readouterr().out
    assert command("verify", project) == 0
    assert "models 2," in capsys.readouterr().out
    assert (project / "nets.py.imports").read_text() == "..."
    assert isinstance(robustode.load_model(project / "out", "bent"), torch.nn.Module)
    assert command("report", project) == 0
    assert "note" not in capsys.readouterr().err


def test_a_file_that_has_moved_is_named_and_can_be_given(project, capsys):
    where = project / "nets.py"
    where.rename(project / "networks.py")
    gone = f"{where} is not there any more"
    assert command("audit", project, *AUDIT) == 1
    err = capsys.readouterr().err
    assert f"{gone}, and flat comes from it: say where it is with --models FOLDER/nets.py:flat" in err
    assert f"note: bent: {gone}" in err, "the report says so, too"
    with pytest.raises(UnknownName, match=r"is not there any more, .* with model='FOLDER/nets.py:bent'"):
        robustode.load_model(project / "out", "bent")
    write_report(project / "out")
    notes = [note.what for note in verify(project / "out").notes]
    assert len(notes) == 2
    assert all(gone in note for note in notes)


def test_a_file_that_was_edited_is_named_with_what_trains_it_anew(project, capsys):
    file = project / "nets.py"
    file.write_text(file.read_text() + "# edited\n")
    assert command("audit", project, *AUDIT) == 1
    err = capsys.readouterr().err
    assert f"its code has changed since; `robustode run --models {file}:flat` trains it anew" in err
    assert f"note: flat: {file} has changed since" in err


def test_the_gate_of_a_branch_imports_no_file_that_the_branch_names(project):
    found = verify(project / "out", search=False)
    assert found.models == 0
    assert not (project / "nets.py.imports").exists()


def test_a_file_of_which_another_factory_is_gone_still_gives_the_rest(project):
    file = project / "nets.py"
    plan = json.loads((project / "out" / "plan.json").read_text())
    plan["files"]["third"] = {"place": "../nets.py:third", "sha256": ""}
    (project / "out" / "plan.json").write_text(json.dumps(plan))
    assert isinstance(robustode.load_model(project / "out", "flat"), torch.nn.Module)
    assert file.exists()


def test_transfer_and_audit_load_plug_ins(tmp_path, digits, monkeypatch, capsys):
    info = tmp_path / "site" / "mine-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[robustode.models]\nplug-flat = mine_nets:flat\n")
    (tmp_path / "site" / "mine_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def fresh_process() -> None:
        for name in set(entry_points.MODELS.names()) & {"plug-flat"}:
            entry_points.MODELS.unregister(name)
        monkeypatch.setattr(entry_points, "_plugins_loaded", False)

    fresh_process()
    entry_points.load_plugins()
    preset = load_preset(str(stubs.preset_file(tmp_path, PRESET)))
    specs = [entry_points.MODELS.get("plug-flat"), stubs.spec("other")]
    assert run_plan(make_plan(preset, models=specs), digits, Store(tmp_path / "out"), device=stubs.CPU).done
    fresh_process()
    assert command("audit", tmp_path, *AUDIT, "--models", "plug-flat") == 0
    assert "plug-flat seed 0: pass" in capsys.readouterr().out
    fresh_process()
    command("transfer", tmp_path, "--models", "plug-flat")
    assert "1 cells done" in capsys.readouterr().out
