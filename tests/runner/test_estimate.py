"""How long a plan takes: queries multiplied out, and a model that fails costs nothing."""

from __future__ import annotations

import dataclasses

import pytest
import stubs
import torch
from robustode._errors import TimeLimitExceeded
from robustode.bench.config.cells import accuracy_cells, throughput_cells, training_cell
from robustode.bench.config.plan import make_plan
from robustode.bench.config.preset import load_preset
from robustode.bench.runner.cost_estimate import Cost, makespan, measure_cost, torch_threads


@pytest.fixture
def plan(tmp_path):
    return make_plan(load_preset(str(stubs.preset_file(tmp_path))), models=[stubs.spec("stub")], seeds=3)


def test_costs_multiply_out(plan, few):
    cost = Cost(forward=1.0, backward=100.0)
    training = training_cell(plan, plan.specs[0], 0, few)
    assert cost.seconds_for(training, plan) == 2 * 200 * 101
    accuracy = [cost.seconds_for(cell, plan) for cell in accuracy_cells(plan, training, "", None, few)]
    assert accuracy == [40, 2 * 40, 2 * 40, 40 * (6 + 300)]
    small = dataclasses.replace(cost, training=(2.0, 3.0))
    assert small.seconds_for(training, plan) == 2 * 200 * 5, "in batches of the recipe's size"
    timing = [cost.seconds_for(cell, plan) for cell in throughput_cells(plan, training, "", None, "cpu")]
    assert timing == [1.5 * 0.001] * 2


def test_a_sound_model_costs_something(few):
    cost = measure_cost(stubs.Linear((1, 8, 8), 10), few, 20, stubs.CPU)
    assert cost.forward > 0
    assert cost.backward > 0


def test_the_first_pass_may_compile_and_does_not_count(few, monkeypatch):
    times = iter([0.0, 100.0, 300.0, *(300.0 + x for x in (2, 6, 6, 7, 8, 8))])

    class Clock:
        perf_counter = staticmethod(lambda: next(times))

    monkeypatch.setattr("robustode.bench.runner.cost_estimate.time", Clock)
    cost = measure_cost(stubs.Linear((1, 8, 8), 10), few, 20, stubs.CPU)
    assert (cost.forward, cost.backward) == (4.0 / 20, 0.0)


def test_a_failing_model_costs_nothing_and_stops_nothing(plan, few):
    def crash(logits, images):
        raise RuntimeError("no")

    cost = measure_cost(stubs.Faulty((1, 8, 8), 10, crash), few, 20, stubs.CPU)
    assert cost == Cost(forward=0, backward=0, problem=cost.problem, failed=True)
    assert "RuntimeError: no" in cost.problem


def test_a_slow_model_has_not_failed():
    slow = Cost.unknown(TimeLimitExceeded("one batch took longer than its limit of 20 s"))
    assert (slow.forward, slow.failed) == (0.0, False)
    assert slow.problem.startswith("one batch took longer")


def test_a_model_without_anything_to_train_is_timed(few):
    frozen = stubs.Linear((1, 8, 8), 10).requires_grad_(False)
    cost = measure_cost(frozen, few, 20, stubs.CPU)
    assert cost.problem == ""
    assert min(cost.forward, cost.backward) > 0


@pytest.mark.parametrize(
    ("seconds", "processes", "span"),
    [([], 3, 0), ([5, 1, 1, 1], 1, 8), ([5, 1, 1, 1], 2, 5), ([1, 1, 1, 5], 2, 6), ([2, 3], 4, 3)],
)
def test_units_are_begun_as_soon_as_a_process_is_free(seconds, processes, span):
    assert makespan(seconds, processes) == span


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    with torch_threads(None):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before
