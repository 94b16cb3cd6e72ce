"""What is installed: one import package, its data files, its command, its version."""

from __future__ import annotations

import tomllib
from importlib import metadata
from importlib.resources import files
from pathlib import Path

import pytest
import robustode
from robustode.bench.config.preset import preset_names


def test_nothing_but_robustode_is_installed_at_the_top_level():
    tops = {path.parts[0] for path in metadata.files("robustode") or ()}
    assert tops, "the installed distribution lists no files"
    assert not tops & {"models", "attacks", "bench", "tests", "results", "conftest.py"}
    assert (metadata.distribution("robustode").read_text("top_level.txt") or "").split() == ["robustode"]


def test_a_wheel_holds_no_stray_module_at_its_root():
    inside = [path.parts for path in metadata.files("robustode") or () if path.parts[0] == "robustode"]
    stray = {parts[1] for parts in inside if len(parts) == 2 and parts[1].endswith(".py")}
    assert stray <= {"__init__.py", "__main__.py", "_arguments.py", "_errors.py", "_registry.py"}


def test_every_package_of_the_checkout_is_listed():
    root = Path(__file__).parents[2]
    listed = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"][
        "packages"
    ]
    folders = [
        path.parent for top in ("models", "attacks", "bench") for path in (root / top).rglob("__init__.py")
    ]
    found = {"robustode", *(".".join(("robustode", *folder.relative_to(root).parts)) for folder in folders)}
    assert found == set(listed)


def test_versions_agree():
    assert metadata.version("robustode") == robustode.__version__


def test_the_command_is_the_entry_point():
    (entry,) = [e for e in metadata.entry_points(group="console_scripts") if e.name == "robustode"]
    from robustode.bench.cli.main import main

    assert entry.load() is main


def test_data_files_are_installed():
    package = files("robustode")
    assert (package / "py.typed").is_file()
    names = {entry.name for entry in (package / "bench" / "templates").iterdir()}
    assert {"index.html.j2", "benchmarks.html.j2", "page.js", "style.css", "model.py.txt"} <= names
    assert {"threat.py.txt", "dataset.py.txt", "images.py.txt", "preset.toml.txt"} <= names
    charts = package / "bench" / "templates" / "vendor" / "uplot"
    assert {entry.name for entry in charts.iterdir()} >= {"uPlot.iife.min.js", "uPlot.min.css", "LICENSE"}
    assert (package / "CITATION.cff").is_file()
    assert (package / "bench" / "schemas" / "leaderboard.schema.json").is_file()
    assert (package / "bench" / "schemas" / "model-card.schema.json").is_file()
    assert {"quick", "standard"} <= set(preset_names())


@pytest.mark.parametrize("name", robustode.__all__)
def test_public_names_resolve_and_are_listed(name):
    assert getattr(robustode, name).__name__ == name
    assert name in dir(robustode)


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        robustode.evalute  # noqa: B018
