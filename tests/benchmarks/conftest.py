"""Timing against a named baseline, pair by pair in one run, and what goes into the JSON beside the times."""

from __future__ import annotations

import math
import shlex
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from robustode.bench.runtime.device import device_name, environment

ROOT = Path(__file__).parents[2]
MOST_ROUNDS = 200
KEPT = ("min", "q1", "median", "q3", "max", "mean", "stddev", "rounds", "iterations")
"""What the file holds of the rounds, in seconds."""


@dataclass(frozen=True)
class Scale:
    """How much is timed; the sizes of the presets, or next to nothing when a benchmark is only tried."""

    batch: int
    train: int
    test: int
    models: int


@pytest.fixture
def tried(benchmark: BenchmarkFixture) -> bool:
    """Whether the benchmark is only run once and not timed."""
    return bool(benchmark.disabled)


@pytest.fixture
def scale(tried: bool) -> Scale:
    if tried:
        return Scale(batch=4, train=12, test=8, models=2)
    return Scale(batch=100, train=3000, test=1000, models=200)


ON_CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=ON_CUDA)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def against(request: pytest.FixtureRequest, benchmark: BenchmarkFixture) -> Callable[..., Any]:
    """Time a call and its baseline in turn, as often as ``--benchmark-max-time`` and ``-min-rounds`` say.

    Each round times the baseline, then the call; a ratio is taken of each such pair, so that what slows
    the machine for longer than a pair cancels.
    """
    here = torch.device("cpu")
    if "device" in request.fixturenames:
        here = request.getfixturevalue("device")

    def wait() -> None:
        if here.type == "cuda":
            torch.cuda.synchronize(here)

    def run(
        call: Callable[[], Any],
        baseline: Callable[[], Any],
        *,
        what: str,
        name: str,
        batch: int | None = None,
        per_sample: float = 1.0,
        goal: str | None = None,
        pairs: int | None = None,
    ) -> Any:
        """Return what `call` returns; `name` is the baseline's.

        `per_sample` is the number of samples of `call` over that of `baseline`, when these differ. `pairs`
        says how many are timed, without a warm-up, where one takes minutes.
        """
        seconds: list[float] = []

        def time_baseline() -> None:
            wait()
            began = time.perf_counter()
            baseline()
            wait()
            seconds.append(time.perf_counter() - began)

        def candidate() -> Any:
            result = call()
            wait()
            return result

        rounds = 1 if benchmark.disabled else pairs
        rounds = rounds or _rounds(request.config, lambda: (time_baseline(), candidate()))
        seconds.clear()
        result = benchmark.pedantic(candidate, setup=time_baseline, rounds=rounds)
        if not benchmark.disabled:
            ratios = per_sample * np.array(seconds) / np.array(benchmark.stats.stats.data)
            low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
            benchmark.extra_info |= {
                "baseline_seconds": float(np.median(seconds)),
                "ratio": float(middle),
                "ratio_quartiles": [float(low), float(high)],
            }
        benchmark.extra_info |= {"what": what, "baseline": name, "device": device_name(here)}
        benchmark.extra_info |= {"batch_size": batch} if batch else {}
        benchmark.extra_info |= {"goal": goal} if goal else {}
        return result

    return run


def _rounds(config: pytest.Config, pair: Callable[[], object]) -> int:
    """Warm up, and say how many pairs fit into the time of one benchmark."""
    for _ in range(3):
        began = time.perf_counter()
        pair()
        took = time.perf_counter() - began
        if took > 2:
            break
    fitting = math.ceil(float(config.getoption("benchmark_max_time")) / took)
    return min(MOST_ROUNDS, max(int(config.getoption("benchmark_min_rounds")), fitting))


def pytest_configure(config: pytest.Config) -> None:
    """The file is written at the very end: its folder must be there, and nothing to write is no error."""
    warnings.filterwarnings("default", message="Not saving anything")
    file = config.getoption("benchmark_json")
    if isinstance(file, str | Path):
        Path(file).parent.mkdir(parents=True, exist_ok=True)


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """The host's name and the list of instruction sets are nobody's business."""
    machine_info.pop("node", None)
    machine_info.get("cpu", {}).pop("flags", None)


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Leave out every single round and the like; add the versions and the command."""
    for one in output_json["benchmarks"]:
        one["stats"] = {name: one["stats"][name] for name in KEPT}
        for unused in ("options", "params", "fullname"):
            one.pop(unused, None)
    cuda = any("cuda" in str(one["param"]) for one in output_json["benchmarks"])
    made = environment(torch.device("cuda" if cuda and torch.cuda.is_available() else "cpu"))
    arguments = [str(argument).replace(f"{ROOT}/", "") for argument in config.invocation_params.args]
    output_json["environment"] = made
    output_json["command"] = shlex.join(["pytest", *arguments])
