"""Flows size_gradient alone: on the states that the model feeds them, by the path that the model takes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import stubs
import torch
from robustode import ODEBlock, Solver
from robustode._errors import ModelFailure
from robustode.bench.report.statistics import summarise
from robustode.bench.throughput import flow_timing as flows
from robustode.bench.throughput.flop_count import flow_work
from robustode.bench.throughput.flow_timing import FlowCall, flow_calls, forwards, forwards_and_backwards
from robustode.bench.throughput.measure import measure_cell
from robustode.bench.throughput.roofline import DeviceRates, Work
from robustode.bench.training.provenance import summary_line
from robustode.models import MODELS, ode_blocks
from robustode.models.node import TanhLayer
from robustode.models.ode import solved_flow as _ode
from torch import nn

RATES = DeviceRates(copy_bandwidth=1e9, arithmetic_rate=2e9)


def block(width: int = 4) -> ODEBlock:
    return ODEBlock([TanhLayer(width)], final_time=1.0, solver=Solver(method="euler", steps=2))


class Two(nn.Module):
    """Two blocks, the second called twice, and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = block(), block()
        self.head = nn.Linear(4, 3)

    def forward(self, images):
        state = images.flatten(1).T
        return self.head(self.second(state=self.second(self.first(state))).T)


class Outer(nn.Module):
    """A field that is a flow itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = block()

    def forward(self, state):
        return self.inner(state)


class Unseen(nn.Module):
    """Calls its block by a method of its own, where no hook sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = block(), nn.Linear(4, 3)

    def forward(self, images):
        return self.head(self.block.forward(images.flatten(1).T).T)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def test_each_call_is_seen_with_its_state():
    model, images = Two(), torch.rand(5, 1, 2, 2)
    calls = flow_calls(model, images, 3)
    assert [call.flow for call in calls] == [model.first, model.second, model.second]
    with torch.no_grad():
        first = model.first(images.flatten(1).T)
        expected = [images.flatten(1).T, first, model.second(first)]
    for call, state in zip(calls, expected, strict=True):
        torch.testing.assert_close(call.state, state)
        assert call.state.stride() == state.stride(), "laid out as the model has it"
        assert not call.state.requires_grad
    assert hooks(model) == 0


def test_hooks_are_removed_after_an_error():
    model = Two()
    model.head = nn.Linear(7, 3)
    with pytest.raises(ModelFailure):
        flow_calls(model, torch.rand(5, 1, 2, 2), 3)
    assert hooks(model) == 0


def test_a_block_inside_a_block_is_part_of_it():
    outer = ODEBlock([Outer()], final_time=1.0, solver=Solver(method="euler", steps=2))
    model = Two()
    model.first = outer
    assert [call.flow for call in flow_calls(model, torch.rand(5, 1, 2, 2), 3)][:1] == [outer]
    assert len(flow_calls(model, torch.rand(5, 1, 2, 2), 3)) == 3
    assert ode_blocks(model) == [outer, outer.layers[0].inner, model.second]


def test_the_compiled_path_stays_on(monkeypatch):
    seen = []
    real = _ode.fixed_step_flow
    monkeypatch.setattr(_ode, "fixed_step_flow", lambda *args, **kw: seen.append(1) or real(*args, **kw))
    calls = [FlowCall(flow=block(), state=torch.rand(4, 6))]
    passes = forwards(calls), forwards_and_backwards(calls)
    assert len(seen) == 1, "it is tried once whether it runs in inference mode"
    for one in passes:
        one()
    assert len(seen) == 3


def test_a_flow_is_left_as_it_is():
    flow, state = block().requires_grad_(False), torch.rand(4, 6)
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    forwards_and_backwards([FlowCall(flow=flow, state=state)])()
    assert not state.requires_grad
    assert all(not p.requires_grad and p.grad is None for p in flow.parameters())
    assert all(torch.equal(flow.state_dict()[name], value) for name, value in before.items())


class KeepsItsState(TanhLayer):
    """A layer that keeps the last state that it saw, with its graph."""

    def forward(self, state):
        self.last = super().forward(state)
        return self.last


@pytest.mark.parametrize("method", ["euler", "dopri5"])
def test_a_flow_that_keeps_a_tensor_with_a_graph_is_timed_and_counted(method):
    flow = ODEBlock([KeepsItsState(4)], final_time=1.0, solver=Solver(method=method, steps=2))
    state = torch.rand(4, 6)
    flow(state)
    assert not flow.layers[0].last.is_leaf, "else this tests nothing"
    forwards_and_backwards([FlowCall(flow=flow, state=state)])()
    assert (
        flow_work(flow, state, gradient=True).operations > flow_work(flow, state, gradient=False).operations
    )


def timing(what: str, model: nn.Module, shape: tuple[int, int, int], batch: int):
    cell = dataclasses.replace(
        stubs.cell_for("clean", 0.0, batch),
        kind="throughput", threat=what, family="timing", batch_size=batch, device="cpu",
        parameters={"seconds": 1e-6, "passes": 3},
    )  # fmt: skip
    split = stubs.split_of(torch.rand(batch, *shape), torch.zeros(batch, dtype=torch.long))
    return measure_cell(cell, model, split, num_classes=3, device=stubs.CPU, environment={})


@pytest.mark.parametrize("gradient", [False, True])
def test_the_record_says_what_its_floor_rests_on(monkeypatch, gradient):
    monkeypatch.setattr(flows, "device_rates", lambda device: RATES)
    model = Two().requires_grad_(False)
    record = timing("flow-gradient" if gradient else "flow", model, (1, 2, 2), 5)
    work = sum((flow_work(model.first, torch.rand(4, 5), gradient=gradient) for _ in range(3)), Work())
    measures = record.measures
    assert (measures["operations"], measures["bytes"]) == (work.operations, work.bytes), "three calls"
    assert (measures["copy_bandwidth"], measures["arithmetic_rate"]) == (1e9, 2e9)
    assert measures["floor_seconds"] == max(work.bytes / 1e9, work.operations / 2e9)
    assert measures["achieved"] == measures["floor_seconds"] / np.median(record.outcomes["seconds"])
    assert measures["samples_per_second"] == pytest.approx(5 / np.median(record.outcomes["seconds"]))
    assert measures["parameters"] == sum(p.numel() for p in model.parameters()), "of the whole model"
    assert f"{record.measures['achieved']:.0%}" in summary_line([record])
    table = summarise([record]).set_index("statistic")
    assert table.loc["floor", "value"] == measures["floor_seconds"]
    assert table.loc["achieved_fraction", "value"] == measures["achieved"]
    assert (model.training, hooks(model)) == (True, 0)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["resnet", "node-dopri5", "ch-node", "ch-node-lipschitz"])
def test_what_is_achieved_is_a_number(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS.get(name).build((1, 8, 8), 3, **MODELS.get(name).resolve())
    for what in ("flow", "flow-gradient"):
        measures = timing(what, model, (1, 8, 8), 6).measures
        assert all(0 < measures[name] < math.inf for name in ("achieved", "floor_seconds", "operations"))


@pytest.mark.parametrize("what", ["flow", "flow-gradient"])
def test_a_block_that_cannot_be_watched_is_no_failure(what):
    record = timing(what, Unseen(), (1, 2, 2), 5)
    assert (record.status, dict(record.measures)) == ("ok", {})
    assert "ODE block" in summary_line([record])
    assert summarise([record]).empty
