"""Timings: ``tox -e bench``. Nothing is asserted about time; what is timed is what a run itself calls."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import stubs
import synthetic
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from robustode.attacks import THREATS
from robustode.bench.device import device_name
from robustode.bench.evaluate import evaluate_cell, frozen
from robustode.bench.queries import QueriedModel
from robustode.bench.report import write_report
from robustode.bench.throughput import inference, train_once
from robustode.models import MODELS
from robustode.models.neural_ode import TanhLayer
from torch import Tensor, nn
from torch.nn import functional as F

SHAPE, CLASSES, BATCH = (1, 28, 28), 10, 64
FIXED_GRID = [spec.name for spec in MODELS if "fixed_step" in spec.claims]
architecture = pytest.mark.parametrize("name", FIXED_GRID)


def build(name: str) -> nn.Module:
    spec = MODELS.get(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return spec.build(SHAPE, CLASSES, **spec.resolve()).eval()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(BATCH, *SHAPE, generator=generator), torch.arange(BATCH) % CLASSES


@pytest.fixture
def timed(benchmark: BenchmarkFixture) -> Callable[..., Any]:
    """Time a call; its machine and samples per second go into the file beside the times."""

    def run(call: Callable[[], Any], *, samples: int | None = BATCH) -> Any:
        benchmark.extra_info["device"] = device_name(stubs.CPU)
        result = benchmark.pedantic(call, rounds=20, iterations=1, warmup_rounds=3)
        if samples is not None:
            benchmark.extra_info["batch_size"] = samples
            benchmark.extra_info["samples_per_second"] = samples / benchmark.stats.stats.median
        return result

    return run


@pytest.mark.benchmark(group="forward")
@architecture
def test_forward(timed, name):
    images, _ = batch()
    model = build(name)
    with frozen(model):
        timed(inference(model, images, CLASSES))


@pytest.mark.benchmark(group="forward and backward")
@architecture
def test_forward_and_backward(timed, name):
    images, labels = batch()
    model = build(name)

    def gradients() -> None:
        loss = F.cross_entropy(model(images), labels)
        torch.autograd.grad(loss, list(model.parameters()))

    timed(gradients)


@pytest.mark.benchmark(group="training step")
@architecture
def test_training_step(timed, name):
    images, labels = batch()
    model = build(name)
    with frozen(model):
        timed(train_once(model, images, labels, CLASSES))


@pytest.mark.benchmark(group="one PGD step")
@architecture
def test_pgd_step(timed, name):
    images, labels = batch()
    threat = THREATS.get("pgd-linf").configure(steps=1, restarts=1)
    model = build(name)
    with frozen(model):
        queried = QueriedModel(model, CLASSES)
        timed(lambda: threat(queried, images, labels, 0.1, 0))
    assert (queried.forwards, queried.backwards) == (23 * 2 * BATCH, 23 * BATCH)


@pytest.mark.benchmark(group="clean evaluation")
@architecture
def test_clean_evaluation(timed, name):
    images, labels = batch()
    split, threat, model = stubs.split_of(images, labels), THREATS.get("clean"), build(name)
    cell = stubs.cell_for(threat, 0.0, BATCH)

    def evaluate():
        return evaluate_cell(
            cell, model, split, threat, num_classes=CLASSES, device=stubs.CPU, environment={}
        )

    assert timed(evaluate).forwards == BATCH


@pytest.mark.benchmark(group="report")
def test_report(benchmark, tmp_path):
    synthetic.write(tmp_path, synthetic.records(samples=200))
    benchmark.extra_info["device"] = device_name(stubs.CPU)
    report = benchmark.pedantic(write_report, args=(tmp_path,), rounds=2, iterations=1)
    assert report.page.exists()


# --- baseline: the same flow without torchdiffeq ------------------------------------------------


class HandWritten(nn.Module):
    """The registered NODE with its solver replaced by a loop."""

    def __init__(self, model: nn.Module, method: str, steps: int) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.layers: list[TanhLayer] = list(self.model.flow.layers)  # type: ignore[arg-type]
        self.h = self.model.flow.final_time / steps
        self.per_layer = steps // len(self.layers)
        self.method = method
        self.model.flow = _Call(self.solve)

    def solve(self, x: Tensor) -> Tensor:
        h = self.h
        for layer in self.layers:
            for _ in range(self.per_layer):
                k1 = layer(x)
                x = x + h * k1 if self.method == "euler" else x + h / 2 * (k1 + layer(x + h * k1))
        return x

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


class _Call(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.benchmark(group="baseline")
@pytest.mark.parametrize("method", ["euler", "heun2"])
@pytest.mark.parametrize("kind", ["torchdiffeq", "loop"])
def test_loop_against_torchdiffeq(timed, kind, method):
    images, _ = batch()
    spec = MODELS.get("node")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = spec.build(SHAPE, CLASSES, **spec.resolve({"method": method, "steps": 8})).eval()
    loop = HandWritten(model, method, 8)
    with torch.no_grad():
        torch.testing.assert_close(loop(images), model(images), rtol=1e-4, atol=1e-4)
    chosen = model if kind == "torchdiffeq" else loop
    with frozen(chosen):
        timed(inference(chosen, images, CLASSES))
