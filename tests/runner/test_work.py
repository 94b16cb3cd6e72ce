"""Looking ahead: what is left, and what it costs, without writing anything."""

from __future__ import annotations

import math

import pytest
import stubs
import torch
from robustode.bench.config.cells import training_cell
from robustode.bench.config.plan import Plan, make_plan
from robustode.bench.config.preset import load_preset
from robustode.bench.records.store import Store
from robustode.bench.runner.cost_estimate import Cost
from robustode.bench.runner.run import run_plan
from robustode.bench.runner.schedule import RemainingWork, cells_of, estimate_duration, estimate_remaining
from robustode.bench.training.provenance import flow_constants, solver_names
from robustode.models import MODELS, ODEBlock
from robustode.models.ch_node import ContractiveFlow
from torch import Tensor, nn


@pytest.fixture
def plan(tmp_path) -> Plan:
    return make_plan(load_preset(str(stubs.preset_file(tmp_path))), models=[stubs.spec("stub")], seeds=2)


def test_everything_is_left_before_a_run_and_nothing_after_it(plan, few, tmp_path):
    store = Store(tmp_path / "out")
    (before,) = estimate_remaining(plan, few, store, stubs.CPU)
    assert not store.folder.exists()
    assert (before.model, before.cells, before.left) == ("stub", 2 * stubs.CELLS, 2 * stubs.CELLS)
    training = training_cell(plan, plan.specs[0], 0, few)
    cells = cells_of(plan, training, None, few, stubs.CPU)
    assert before.seconds == pytest.approx(2 * sum(before.cost.seconds_for(cell, plan) for cell in cells))
    assert before.seconds > 0
    run_plan(plan, few, store, device=stubs.CPU)
    (after,) = estimate_remaining(plan, few, store, stubs.CPU)
    assert (after.cells, after.left, after.seconds) == (2 * stubs.CELLS, 0, 0)
    (fresh,) = estimate_remaining(plan, few, store, stubs.CPU, fresh=True)
    assert fresh.left == 2 * stubs.CELLS


def test_what_was_removed_is_left_again(plan, few, tmp_path):
    store = Store(tmp_path / "out")
    run_plan(plan, few, store, device=stubs.CPU)
    records, _ = store.load()
    for record in records:
        if record.cell.threat == "gaussian" and record.cell.training_seed == 1:
            stubs.forget(store, record.cell)
    assert estimate_remaining(plan, few, store, stubs.CPU)[0].left == 2
    store.checkpoint_path(training_cell(plan, plan.specs[0], 0, few)).write_bytes(b"damaged")
    assert estimate_remaining(plan, few, store, stubs.CPU)[0].left == 2 + stubs.CELLS


def test_a_failing_model_costs_nothing_and_stops_nothing(plan, few, tmp_path):
    def crash(logits, images):
        raise RuntimeError("no")

    broken = make_plan(plan.preset, models=[stubs.faulty("broken", crash), stubs.spec("fine")], seeds=1)
    one, two = estimate_remaining(broken, few, Store(tmp_path / "out"), stubs.CPU)
    assert (one.model, one.cells, one.left) == ("broken", stubs.CELLS, stubs.CELLS)
    assert one.cost.forward == one.cost.backward == 0
    assert (one.cost.problem, two.cost.problem) == ("the model raised RuntimeError: no (test_work.py:58)", "")
    assert two.seconds > one.seconds


def test_solvers_in_words():
    def solver(name: str) -> str | None:
        spec = MODELS.get(name)
        return solver_names(spec.build((1, 8, 8), 10, **spec.resolve()))

    assert solver("resnet") == "euler 4 steps"
    assert solver("node-dopri5") == "dopri5 rtol=0.001 atol=0.001"
    assert solver_names(stubs.Linear((1, 2, 2), 2)) is None


def build(name: str, **overrides) -> nn.Module:
    spec = MODELS.get(name)
    return spec.build((1, 8, 8), 10, **spec.resolve(overrides))


def test_what_is_proven_of_a_flow_is_described():
    contractive = flow_constants(build("ch-node"))
    assert set(contractive) == {
        *("lipschitz_exact_flow", "lipschitz_solver", "lipschitz_worst_step"),
        *("gamma", "c1", "c2", "rho", "exp_minus_rho_T", "final_time"),
    }
    assert contractive["rho"] > 0
    assert contractive["lipschitz_exact_flow"] < 1
    assert set(flow_constants(build("node-dopri5"))) == {"lipschitz_exact_flow", "final_time"}
    assert flow_constants(nn.Linear(2, 2)) == {}


def test_a_bound_that_overflows_is_left_out():
    model = build("node")
    with torch.no_grad():
        for layer in model.flow.layers:
            layer.K.mul_(1e4)
    assert "lipschitz_exact_flow" not in flow_constants(model)
    assert all(map(math.isfinite, flow_constants(model).values()))


def test_a_state_too_wide_to_enumerate_keeps_its_closed_forms():
    assert set(flow_constants(build("ch-node", width=12))) == {
        "gamma",
        "c1",
        "c2",
        "rho",
        "exp_minus_rho_T",
        "final_time",
    }


class Halved(ContractiveFlow):
    def forward(self, state: Tensor) -> Tensor:
        return super().forward(state) / 2


class Halving(ODEBlock):
    def forward(self, state: Tensor) -> Tensor:
        return state / 2

    def bounds(self) -> dict[str, float]:
        return {"rho": 0.5}

    def solver_bound(self) -> float:
        return 0.5


def test_what_is_stated_of_another_forward_is_not_described():
    model = build("ch-node")
    model.flow.__class__ = Halved
    assert flow_constants(model) == {"final_time": 1.0}
    model.flow.__class__ = Halving
    assert set(flow_constants(model)) == {"lipschitz_solver", "rho", "exp_minus_rho_T", "final_time"}
    assert flow_constants(model)["lipschitz_solver"] == 0.5


def test_the_time_of_a_run_counts_units_side_by_side_and_timings_alone():
    nothing = Cost(forward=0, backward=0)
    outlooks = [
        RemainingWork(
            model="a", cost=nothing, cells=9, left=9, seconds=30.0, seconds_by_seed={0: 10.0, 1: 12.0}
        ),
        RemainingWork(model="b", cost=nothing, cells=9, left=9, seconds=5.0, seconds_by_seed={1: 4.0}),
        RemainingWork(model="c", cost=nothing, cells=9, left=1, seconds=2.0),
    ]
    timings = 8.0 + 1.0 + 2.0
    assert estimate_duration(outlooks, 1) == 26.0 + timings
    assert estimate_duration(outlooks, 2) == 14.0 + timings  # seed 0 of a and then b's, beside seed 1 of a
    assert estimate_duration(outlooks, 9) == 12.0 + timings
    assert estimate_duration([], 2) == 0


def test_what_a_seed_takes_is_all_that_is_left_of_it_but_timings(plan, few, tmp_path):
    (outlook,) = estimate_remaining(plan, few, Store(tmp_path / "out"), stubs.CPU)
    timings = 2 * 2 * 1.5 * 0.001
    assert list(outlook.seconds_by_seed) == [0, 1]
    assert sum(outlook.seconds_by_seed.values()) == pytest.approx(outlook.seconds - timings)
