"""Timing: how often and how long, by a clock of our own; memory to the byte. No time is asserted."""

from __future__ import annotations

import dataclasses
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import stubs
import torch
from robustode._errors import ContractBroken, ModelFailure
from robustode.bench.runtime.memory import peak_memory
from robustode.bench.throughput import clock as bench_clock
from robustode.bench.throughput.clock import WARM_UP, time_passes
from robustode.bench.throughput.measure import inference, measure_cell, training
from robustode.bench.training.provenance import summary_line
from robustode.models import MODELS
from torch import nn


class Clock:
    """A clock that moves only when a pass is made."""

    def __init__(self, steps) -> None:
        self.now = 100.0
        self.calls = 0
        self.steps = steps

    def perf_counter(self) -> float:
        return self.now

    def run(self) -> None:
        self.now += self.steps(self.calls)
        self.calls += 1


@pytest.mark.parametrize(
    ("step", "seconds", "passes", "expected"),
    [(0.25, 1.0, 3, 4), (0.25, 1.0, 10, 10), (0.25, 0.0, 1, 1), (2.0, 1.0, 1, 1), (0.25, 1.125, 2, 5)],
)
def test_at_least_so_many_passes_and_so_many_seconds(monkeypatch, step, seconds, passes, expected):
    clock = Clock(lambda call: 50.0 if call < WARM_UP else step)
    monkeypatch.setattr(bench_clock, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    durations = time_passes(clock.run, stubs.CPU, seconds=seconds, passes=passes)
    assert durations.tolist() == [step] * expected, "warm-up passes are not among the timed ones"
    assert durations.dtype == np.float64
    assert clock.calls == WARM_UP + expected


def test_each_pass_has_its_own_time(monkeypatch):
    clock = Clock(lambda call: float(2**call))
    monkeypatch.setattr(bench_clock, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    durations = time_passes(clock.run, stubs.CPU, seconds=1.0, passes=3)
    assert durations.tolist() == [8.0, 16.0, 32.0]


def held_together():
    a = torch.empty(1000)
    b = torch.empty(500)
    return a, b


def one_after_the_other():
    a = torch.empty(1000)
    del a
    return torch.empty(500)


def views_and_in_place():
    a = torch.zeros(1000)
    a.add_(1)
    return a.view(10, 100)[2:5]


def doubles():
    return torch.zeros(1000, dtype=torch.float64)


def graph():
    x = torch.zeros(1000, requires_grad=True)
    return (x.exp() * 3).sum()


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (held_together, 6000),
        (one_after_the_other, 4000),
        (views_and_in_place, 4000),
        (doubles, 8000),
        (graph, 3 * 4000 + 4),  # x, exp(x) kept for backward, 3 exp(x), and the sum
        (lambda: None, 0),
    ],
)
def test_peak_memory_to_the_byte(run, expected):
    if run is graph:
        assert abs(peak_memory(run, stubs.CPU) - expected) <= 4  # torch may hold the scalar 3 as a tensor
    else:
        assert peak_memory(run, stubs.CPU) == expected


def test_peak_memory_does_not_count_what_was_there_before():
    x = torch.zeros(10_000)
    assert peak_memory(lambda: x.add_(1), stubs.CPU) == 0
    assert peak_memory(lambda: x.view(100, 100).T, stubs.CPU) == 0
    assert peak_memory(lambda: x[:10].clone(), stubs.CPU) == 40
    assert peak_memory(lambda: x + 1, stubs.CPU) == 40_000


def test_peak_memory_of_a_linear_model_is_its_logits():
    model = stubs.Linear((1, 8, 8), 10)
    images = torch.zeros(50, 1, 8, 8)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert peak_memory(lambda: model(images), stubs.CPU) == 50 * 10 * 4


def test_peak_memory_follows_memory_that_is_given_back_and_used_again():
    def run():
        for _ in range(5):
            torch.empty(1000)
        return torch.empty(10)

    assert peak_memory(run, stubs.CPU) == 4000


def test_inference_builds_no_graph_and_refuses_a_broken_model():
    seen = []

    def watch(logits, images):
        seen.append((len(images), logits.requires_grad))
        return logits

    model, images = stubs.Faulty((1, 2, 2), 3, watch), torch.zeros(4, 1, 2, 2)
    run = inference(model, images, 3)
    seen.clear()
    run()
    assert seen == [(4, False)]
    with pytest.raises(ContractBroken):
        inference(stubs.Linear((1, 2, 2), 4), images, 3)


def test_a_training_step_learns_and_the_model_is_put_back():
    model = stubs.Linear((1, 2, 2), 3).eval().requires_grad_(False)
    before = model.head.weight.clone()
    images, labels = torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 2, 0])
    with training(model, images, labels, 3) as run:
        first, second = run(), run()
    assert first != second, "it learns"
    assert torch.equal(model.head.weight, before)
    assert not model.training
    assert not model.head.weight.requires_grad


@pytest.mark.parametrize("what", ["inference", "training-step", "flow", "flow-gradient"])
@pytest.mark.parametrize("name", ["resnet", "node-dopri5"])
def test_a_cell_is_measured(few, what, name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS.get(name).build((1, 8, 8), 10, **MODELS.get(name).resolve())
    state = {k: v.clone() for k, v in model.state_dict().items()}
    cell = dataclasses.replace(
        stubs.cell_for("clean", 0.0, 50),
        kind="throughput", threat=what, family="timing", batch_size=50,
        parameters={"seconds": 1e-6, "passes": 4},
    )  # fmt: skip
    record = measure_cell(cell, model, few.test, num_classes=10, device=stubs.CPU, environment={})
    durations = record.outcomes["seconds"]
    assert record.status == "ok"
    assert durations.shape == (4,)
    assert (durations > 0).all()
    measures = record.measures
    assert measures["samples_per_second"] == pytest.approx(50 / np.median(durations))
    assert measures["latency_median"] == pytest.approx(np.median(durations))
    assert measures["latency_p95"] == pytest.approx(np.quantile(durations, 0.95))
    assert measures["parameters"] == sum(p.numel() for p in model.parameters())
    assert measures["peak_memory_bytes"] >= 50 * 8 * 64 * 4, "at least one state of the flow"
    of_flow = {"operations", "bytes", "copy_bandwidth", "arithmetic_rate", "floor_seconds", "achieved"}
    assert of_flow & set(measures) == (of_flow if what.startswith("flow") else set())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())
    assert all(p.grad is None for p in model.parameters())


def test_a_batch_larger_than_the_test_set_repeats_it(few):
    sizes = []

    def watch(logits, images):
        sizes.append(len(images))
        return logits

    cell = dataclasses.replace(
        stubs.cell_for("clean", 0.0, 100),
        kind="throughput", threat="inference", family="timing", parameters={"seconds": 1e-6, "passes": 1},
    )  # fmt: skip
    model = stubs.Faulty((1, 8, 8), 10, watch)
    measure_cell(cell, model, few.test, num_classes=10, device=stubs.CPU, environment={})
    assert len(few.test) == 40
    assert set(sizes[1:]) == {100}


class GivesUp(nn.Module):
    """A network around an ODE block that has no answer for images whose first pixel is 1."""

    def __init__(self, how: str) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = MODELS.get("node").build((1, 8, 8), 10, **MODELS.get("node").resolve())
        self.how = how

    def forward(self, images):
        bad = images[:, 0, 0, 0] == 1
        if self.how == "raise" and bool(bad.any()):
            raise AssertionError("underflow in dt 0.0")
        return torch.where(bad[:, None], torch.nan, self.model(images))


def timed(how: str, what: str, images: torch.Tensor, data):
    cell = dataclasses.replace(
        stubs.cell_for("clean", 0.0, 50),
        kind="throughput", threat=what, family="timing", batch_size=50,
        parameters={"seconds": 1e-6, "passes": 4},
    )  # fmt: skip
    split = stubs.split_of(images, data.test.labels[: len(images)])
    return measure_cell(cell, GivesUp(how), split, num_classes=10, device=stubs.CPU, environment={})


@pytest.mark.parametrize(
    ("how", "what"),
    [*(("raise", what) for what in ("inference", "training-step", "flow", "flow-gradient")), ("nan", "flow")],
)
def test_samples_without_an_answer_are_left_out_of_a_timing_and_counted(few, how, what):
    images = few.test.images[:20].clone()
    images[[3, 11], 0, 0, 0] = 1.0
    record = timed(how, what, images, few)
    assert record.status == "ok"
    assert record.measures["left_out"] == 2.0
    assert record.measures["samples_per_second"] == pytest.approx(50 / record.measures["latency_median"])
    assert "left_out" not in timed(how, what, few.test.images[:20], few).measures


def test_a_model_that_answers_no_sample_is_not_timed(few):
    images = few.test.images[:20].clone()
    images[:, 0, 0, 0] = 1.0
    with pytest.raises(ModelFailure, match="underflow in dt"):
        timed("raise", "inference", images, few)


class Uncopied(stubs.Linear):
    """Holds what cannot be copied, and keeps its last state with its graph, as torchdyn's modules do."""

    def __init__(self, *arguments):
        super().__init__(*arguments, nfe=2)
        self.lock, self.calls = threading.Lock(), 0

    def forward(self, images):
        self.last, self.calls = super().forward(images), self.calls + 1
        return self.last

    def after_step(self):
        self.head.weight = nn.Parameter(self.head.weight.detach().clone())


@pytest.mark.parametrize("what", ["training-step", "flow-gradient"])
def test_a_module_that_cannot_be_copied_is_timed_and_put_back(few, what):
    model = Uncopied((1, 8, 8), 10)
    model(few.test.images)
    weight, values = model.head.weight, model.head.weight.detach().clone()
    cell = dataclasses.replace(
        stubs.cell_for("clean", 0.0, 8), kind="throughput", threat=what, family="timing", batch_size=8,
        parameters={"seconds": 1e-6, "passes": 2},
    )  # fmt: skip
    record = measure_cell(cell, model, few.test, num_classes=10, device=stubs.CPU, environment={})
    assert record.outcomes["seconds"].shape == (2,)
    assert model.head.weight is weight
    assert torch.equal(weight, values)
    assert weight.grad is None


@pytest.mark.parametrize(("size", "timed"), [(1, False), (2, True)])
def test_a_training_step_on_one_sample_is_none_with_batch_normalisation(few, size, timed):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))
    cell = dataclasses.replace(
        stubs.cell_for("clean", 0.0, size), kind="throughput", threat="training-step", family="timing",
        batch_size=size, parameters={"seconds": 1e-6, "passes": 1},
    )  # fmt: skip
    record = measure_cell(cell, model, few.test, num_classes=10, device=stubs.CPU, environment={})
    assert ("seconds" in record.outcomes) is timed
    assert timed or "one sample" in summary_line([record])
    assert model[2].num_batches_tracked == 0
