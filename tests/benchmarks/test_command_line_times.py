"""How long the command takes to answer, against an interpreter that does nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import pytest

CASES = [
    pytest.param("help", ["-m", "robustode", "--help"], "seconds < 0.3", id="help"),
    pytest.param("list presets", ["-m", "robustode", "list", "presets"], None, id="list"),
    pytest.param("import robustode", ["-c", "import robustode"], None, id="import"),
    pytest.param("import the report", ["-c", "import robustode.bench.report.report"], None, id="report"),
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


FIRST_PASS = """
import torch
from robustode.models import MODELS, flow_implementation
spec = MODELS.get("ch-node")
model = spec.build((1, 8, 8), 10, **spec.resolve())
assert flow_implementation(torch.device("cpu")) == "numba"
model(torch.rand(4, 1, 8, 8)).sum().backward()
"""


@pytest.mark.benchmark(group="command line")
def test_first_pass(against, tried, tmp_path):
    """What compiling the flow costs once on a machine: the loops are kept on disk for later processes."""

    def start(**cache: str) -> None:
        subprocess.run([sys.executable, "-c", FIRST_PASS], check=True, env={**os.environ, **cache})

    warm = {"NUMBA_CACHE_DIR": str(tmp_path / "warm")}
    if not tried:
        start(**warm)
    against(
        lambda: start(**({} if tried else {"NUMBA_CACHE_DIR": tempfile.mkdtemp(dir=tmp_path)})),
        lambda: None if tried else start(**warm),
        what="a model's first pass, nothing compiled yet",
        name="the same, compiled before",
        pairs=1,
    )
