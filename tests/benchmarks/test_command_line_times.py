"""How long the command takes to answer, against an interpreter that does nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

CASES = [
    pytest.param("help", ["-m", "robustode", "--help"], "seconds < 0.3", id="help"),
    pytest.param("list presets", ["-m", "robustode", "list", "presets"], None, id="list"),
    pytest.param("import robustode", ["-c", "import robustode"], None, id="import"),
    pytest.param("import the report", ["-c", "import robustode.bench.report"], None, id="report"),
]


@pytest.mark.benchmark(group="command line")
@pytest.mark.parametrize(("what", "arguments", "goal"), CASES)
def test_start(against, tmp_path, what, arguments, goal):
    def start(arguments: list[str]) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout

    against(
        lambda: start(arguments),
        lambda: start(["-c", "pass"]),
        what=what,
        name="python -c pass",
        goal=goal,
    )
