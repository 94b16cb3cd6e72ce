"""Models of installed packages: real distributions on the path of a fresh interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import stubs
from robustode.bench.records.store import Store
from robustode.models import ModelSpec

MODULE = """
import robustode
from torch import nn

@robustode.register_model("flat", summary="a linear classifier")
def build(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))
"""


def install(site: Path, name: str, version: str, entries: str, **modules: str) -> None:
    """Put a distribution into the folder `site` as pip would: modules, METADATA, entry points."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[robustode.models]\n{textwrap.dedent(entries)}\n")
    for module, text in modules.items():
        (site / f"{module}.py").write_text(text)


def robustode(site: Path, *argv: object) -> subprocess.CompletedProcess[str]:
    paths = [str(site), *([p] if (p := os.environ.get("PYTHONPATH")) else [])]
    return subprocess.run(
        [sys.executable, "-m", "robustode", *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=site,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )


def test_models_come_from_modules_factories_and_specs_and_broken_packages_are_one_line_each(tmp_path):
    install(tmp_path, "good-models", "1.2", "any = good_models", good_models=MODULE)
    install(
        tmp_path,
        "plain",
        "0.1",
        "plain-net = plain_models:build\nready = plain_models:SPEC",
        plain_models=(
            MODULE.replace("@robustode", "#").replace("def build", "def make")
            + "build = make\nSPEC = robustode.ModelSpec(name='ready', build=lambda s, c: make(s, c))\n"
        ),
    )
    half = MODULE.replace('"flat"', '"half"') + "import no_such_package\n"
    install(tmp_path, "broken", "3", "x = broken_models", broken_models=half)
    install(tmp_path, "gone", "1", "x = not_there")
    install(tmp_path, "quitter", "1", "x = quitter", quitter="import sys\nsys.exit('bye')\n")
    install(tmp_path, "empty", "1", "x = empty_models", empty_models="")
    install(tmp_path, "number", "1", "x = number_models:x", number_models="x = 3\n")
    install(tmp_path, "thief", "1", "x = thief", thief=MODULE.replace('"flat"', '"resnet"'))
    install(tmp_path, "alias", "1", "x = robustode.models.resnet:build")

    done = robustode(tmp_path, "list", "models", "--json")
    assert done.returncode == 0, done.stderr
    models = {entry["name"]: entry for entry in json.loads(done.stdout)}
    assert {name: m["plugin"] for name, m in models.items() if m["plugin"]} == {
        "flat": "good-models 1.2",
        "plain-net": "plain 0.1",
        "ready": "plain 0.1",
    }
    assert models["resnet"]["summary"] != "a linear classifier"
    assert "half" not in models
    warned = sorted(done.stderr.splitlines())
    expected = [
        "alias 1 is skipped: InvalidArgument: robustode.models.resnet:build registers no model",
        "broken 3 is skipped: ModuleNotFoundError: No module named 'no_such_package'",
        "empty 1 is skipped: InvalidArgument: empty_models registers no model: decorate its factory",
        "gone 1 is skipped: ModuleNotFoundError: No module named 'not_there'",
        "number 1 is skipped: InvalidArgument: number_models:x is not a module, factory or ModelSpec: int",
        "quitter 1 is skipped: SystemExit: bye",
        "thief 1 is skipped: InvalidArgument: model 'resnet' is already registered",
    ]
    assert len(warned) == len(expected)
    for line, text in zip(warned, expected, strict=True):
        assert line.startswith(f"robustode: warning: plug-in 'x' of {text}")


def test_a_plug_in_is_run_in_processes_of_its_own_and_its_version_is_in_the_records(tmp_path):
    install(tmp_path, "good-models", "1.2", "any = good_models", good_models=MODULE)
    install(tmp_path, "broken", "3", "x = broken_models", broken_models="1 / 0\n")
    preset = stubs.preset_file(tmp_path)
    argv = ["run", "--preset", preset, "--models", "flat", "--device", "cpu", "--out", "out", "--quiet"]
    done = robustode(tmp_path, *argv)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        "robustode: warning: plug-in 'x' of broken 3 is skipped: ZeroDivisionError: division by zero"
    ]
    records, _ = Store(tmp_path / "out").load()
    assert len(records) == stubs.CELLS
    assert {record.cell.model_version for record in records} == {"1+good-models-1.2"}
    (training,) = (record for record in records if record.cell.kind == "training")
    assert training.card["plugin"] == "good-models 1.2"


def test_a_report_and_help_import_no_plug_in(tmp_path):
    install(tmp_path, "loud", "1", "x = loud", loud="raise SystemExit('imported')\n")
    for argv in (["--help"], ["list", "presets"], ["report", "--out", "none"]):
        assert "imported" not in robustode(tmp_path, *argv).stderr


def test_a_plug_in_is_part_of_the_version():
    spec = ModelSpec(name="x", build=stubs.linear, version=3, plugin="my-package 1.2")
    assert spec.full_version == "3+my-package-1.2"
    assert spec.variant("y", {}, {}).full_version == spec.full_version
