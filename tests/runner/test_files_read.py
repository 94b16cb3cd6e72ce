"""A training holds for the files that its code has read, whenever and however it read them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import robustode
import stubs
import torch
from robustode._errors import CheckpointError
from robustode.bench.cli.main import main
from robustode.bench.config.plan import make_plan
from robustode.bench.config.preset import load_preset
from robustode.bench.config.run_request import RunRequest
from robustode.bench.plugins.model_file import load_external
from robustode.bench.records.store import Store
from robustode.bench.runner.run import RunResult, run_plan
from robustode.bench.runtime.opened_files import files_read
from robustode.bench.verification.verify import verify
from robustode.models import MODELS

pytestmark = pytest.mark.usefixtures("registries")

SMALL = stubs.PRESET.replace("epochs = 2", "epochs = 1").replace(
    "\n[throughput]\nbatch_sizes = [4]\nseconds = 0.001\npasses = 2\n", ""
)
NET = """
import functools, importlib, json, os, sys
from pathlib import Path
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
HERE = Path(__file__).parent
def read(name):
    return json.loads((HERE / name).read_text())["smooth"]
{imported}
class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        {built}
        self.head = nn.Linear(64, classes)
    def forward(self, x):
        {asked}
        return self.head(x.flatten(1))
    def loss(self, logits, labels):
        smooth = 0.0
        {loss}
        return F.cross_entropy(logits, labels, label_smoothing=float(smooth))
    def after_step(self):
        {stepped}
def build(shape, classes):
    return Net(classes)
"""
READ = {
    "loss": ("cfg.json", {"loss": "smooth = read('cfg.json')"}),
    "import": ("cfg.json", {"imported": "read('cfg.json')"}),
    "factory": ("cfg.json", {"built": "read('cfg.json')"}),
    "once for all": ("cfg.json", {
        "imported": "@functools.cache\ndef cfg():\n    return read('cfg.json')",
        "built": "cfg()",
        "loss": "smooth = cfg()"}),
    "after a step": ("decay.txt", {
        "stepped": "self.head.bias.data.mul_(float((HERE / 'decay.txt').read_text()))"}),
    "numpy": ("table.npy", {"loss": "smooth = np.load(HERE / 'table.npy')[0]"}),
    "numpy, mapped": ("table.bin", {"loss": "smooth = np.memmap(HERE / 'table.bin', np.float64)[0]"}),
    "torch": ("table.pt", {"loss": "smooth = torch.load(HERE / 'table.pt')"}),
    "low level": ("rate.txt", {
        "loss": "d = os.open(HERE / 'rate.txt', os.O_RDONLY); smooth = os.read(d, 9); os.close(d)"}),
    "above": ("../cfg.json", {"loss": "smooth = read('../cfg.json')"}),
    "a module of a hidden name": ("../lib/hidden.py", {
        "imported": "sys.path.append(str(HERE.parent / 'lib'))",
        "loss": "smooth = importlib.import_module('hid' + 'den').SMOOTH"}),
    "what a hidden module reads": ("../lib/cfg.json", {
        "imported": "sys.path.append(str(HERE.parent / 'lib'))",
        "loss": "importlib.import_module('rea' + 'der').read()"}),
    "if it is there": ("late.json", {
        "imported": "def late():\n    try:\n        return len((HERE / 'late.json').read_text()) / 4\n"
                    "    except OSError:\n        return 0.0",
        "loss": "smooth = late()"}),
}  # fmt: skip


def write(folder: Path, parts: dict[str, str]) -> str:
    """A model file, what it may read, and its reference."""
    folder.mkdir(parents=True, exist_ok=True)
    empty = {"imported": "", "built": "pass", "asked": "pass", "loss": "pass", "stepped": "pass"}
    (folder / "net.py").write_text(NET.format(**{**empty, **parts}))
    (folder.parent / "lib").mkdir(exist_ok=True)
    (folder.parent / "lib" / "reader.py").write_text(
        "from pathlib import Path\ndef read():\n    return Path(__file__).with_name('cfg.json').read_text()\n"
    )
    change(folder, 0.0)
    torch.save(0.0, folder / "table.pt")
    return f"{folder}/net.py:build"


def change(folder: Path, value: float) -> None:
    """All that a model file may read, but for its source."""
    for name in ("cfg.json", "../cfg.json", "../lib/cfg.json"):
        (folder / name).write_text(json.dumps({"smooth": value}))
    (folder / "decay.txt").write_text(str(1 - value))
    (folder / "rate.txt").write_text(str(value))
    (folder / "../lib/hidden.py").write_text(f"SMOOTH = {value}\n")
    np.save(folder / "table.npy", np.array([value]))
    np.array([value]).tofile(folder / "table.bin")
    torch.save(value, folder / "table.pt")
    if value:
        (folder / "late.json").write_text("{}")


def run(folder: Path, data, *references: str, lines: list[str] | None = None) -> RunResult:
    preset = load_preset(str(stubs.preset_file(folder, SMALL)))
    plan = RunRequest(preset=preset, models=references).plan()
    listening = stubs.Listening()
    done = run_plan(plan, data, Store(folder / "out"), device=stubs.CPU, reporter=listening)
    if lines is not None:
        lines += listening.lines
    return done


def training(folder: Path):
    return next(r for r in Store(folder / "out").load()[0] if r.cell.kind == "training")


@pytest.mark.parametrize("how", READ)
def test_a_file_that_was_read_and_changed_is_trained_and_attacked_anew(tmp_path, few, how):
    name, parts = READ[how]
    reference = write(tmp_path / "nets", parts)
    assert run(tmp_path, few, reference).failures == []
    everything = len(Store(tmp_path / "out").load()[0])
    assert set(training(tmp_path).card["files"]) == {name} | (
        {"../lib/reader.py"} if "hidden module" in how else set()
    )
    lines: list[str] = []
    assert run(tmp_path, few, reference, lines=lines).done == 0
    assert not any("anew" in line for line in lines)
    robustode.load_model(tmp_path / "out", "net", model=reference)
    change(tmp_path / "nets", 0.5)
    told = rf"net\.py:build read {name}, which has changed or is gone since: put it back, or"
    with pytest.raises(CheckpointError, match=told):
        robustode.load_model(tmp_path / "out", "net", model=reference)
    done = run(tmp_path, few, reference, lines=lines)
    assert (done.done, done.failures) == (everything, [])
    assert len([line for line in lines if "trained and attacked anew" in line and name in line]) == 1
    assert run(tmp_path, few, reference).done == 0
    robustode.load_model(tmp_path / "out", "net", model=reference)
    found = verify(tmp_path / "out", models=[load_external(reference)]).findings
    assert not any("no record that can be read" in finding.what for finding in found)


def test_a_change_that_makes_the_same_weights_is_attacked_anew_too(tmp_path, few):
    """The keys of what was asked of these weights are the same: none of it counts."""
    reference = write(tmp_path / "nets", {"asked": "read('cfg.json')"})
    assert run(tmp_path, few, reference).failures == []
    before = {r.cell.key(): r.environment["created"] for r in Store(tmp_path / "out").load()[0]}
    change(tmp_path / "nets", 0.5)
    assert run(tmp_path, few, reference).done == len(before)
    after = {r.cell.key(): r.environment["created"] for r in Store(tmp_path / "out").load()[0]}
    assert before.keys() == after.keys()
    assert all(after[key] > created for key, created in before.items())


def test_the_training_that_was_interrupted_before_a_change_is_not_resumed(tmp_path, few, monkeypatch):
    reference = write(tmp_path / "nets", {"loss": "smooth = read('cfg.json')"})
    monkeypatch.setattr(
        "robustode.bench.training.train.load_state", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    histories = []
    for value in (0.0, 0.0, 0.5):
        change(tmp_path / "nets", value)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, few, reference)
        (partial,) = (tmp_path / "out" / "checkpoints" / "net").glob("*.partial.*")
        histories.append(partial.stat().st_mtime_ns)
    assert histories[0] == histories[1] != histories[2]


def test_every_command_refuses_and_a_dry_run_counts_what_is_to_do(tmp_path, digits, capsys):
    reference, out = write(tmp_path / "nets", {"loss": "smooth = read('cfg.json')"}), tmp_path / "out"
    assert run(tmp_path, digits, reference, "resnet").failures == []
    change(tmp_path / "nets", 0.5)
    line = "net.py:build read cfg.json, which has changed or is gone since: put it back, or `robustode run`"
    found = verify(out, models=[load_external(reference)])
    assert any(line in finding.what for finding in found.disagreements)
    assert main(["audit", "--out", str(out), "--models", reference, "--checks", "logits", "--jobs", "1"]) == 1
    assert line in capsys.readouterr().err
    main(["transfer", "--out", str(out), "--models", f"{reference},resnet"])
    assert line in "".join(capsys.readouterr())
    dry = ["--preset", str(tmp_path / "tiny.toml"), "--models", reference, "--out", str(out), "--dry-run"]
    assert main(["run", *dry]) == 0
    assert " 0 of " not in capsys.readouterr().out
    (tmp_path / "nets" / "cfg.json").unlink()
    with pytest.raises(CheckpointError, match="or is gone since"):
        robustode.load_model(out, "net", model=reference)
    change(tmp_path / "nets", 0.0)
    robustode.load_model(out, "net", model=reference)


def test_what_counts_goes_with_the_folder_and_names_no_other(tmp_path, few):
    reference = write(tmp_path / "here" / "nets", {"loss": "smooth = read('../cfg.json')"})
    assert run(tmp_path / "here", few, reference).failures == []
    shutil.move(tmp_path / "here", tmp_path / "there")
    reference = reference.replace("/here/", "/there/")
    assert run(tmp_path / "there", few, reference).done == 0
    assert "here" not in json.dumps(training(tmp_path / "there").card["files"])


def test_what_is_written_or_of_a_library_or_of_the_results_does_not_count(tmp_path, few):
    kept = {
        "imported": "import matplotlib.pyplot, zoneinfo, platform",
        "built": "platform.freedesktop_os_release() if os.path.exists('/etc/os-release') else None",
        "loss": "log = HERE / 'log.txt'; log.write_text(log.read_text() + '.' if log.exists() else '.'); "
        "[p.read_text() for p in (HERE.parent / 'out').rglob('plan.json')]; open('/proc/self/stat').close()",
    }
    reference = write(tmp_path / "nets", kept)
    assert run(tmp_path, few, reference).failures == []
    assert "files" not in training(tmp_path).card
    assert run(tmp_path, few, reference).done == 0


def test_models_of_the_package_read_nothing(few, tmp_path):
    assert all(files_read(spec) == {} for spec in MODELS)
    plan = make_plan(load_preset(str(stubs.preset_file(tmp_path, SMALL))), models=[MODELS.get("resnet")])
    assert run_plan(plan, few, Store(tmp_path / "out"), device=stubs.CPU).failures == []
    assert "files" not in training(tmp_path).card
