"""The main job from the first line to the last: training, attacks, timings and the report."""

from __future__ import annotations

import subprocess
import sys

import pytest
import stubs


@pytest.mark.benchmark(group="whole run")
def test_quick(against, tried, tmp_path):
    preset = str(stubs.preset_file(tmp_path)) if tried else "quick"

    def run(*more: str) -> None:
        command = [sys.executable, "-m", "robustode", "run", "--quiet", "--fresh", "--device", "cpu"]
        command += ["--preset", preset, "--out", str(tmp_path / "out"), *more]
        subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)

    against(
        run,
        (lambda: None) if tried else (lambda: run("--jobs", "1")),
        what="robustode run (preset quick)",
        name="robustode run --jobs 1",
        goal="seconds < 90",
        pairs=1,
    )
