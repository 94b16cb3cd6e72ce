"""The same results on a GPU, size_gradient by events. Run with ``-m gpu``."""

from __future__ import annotations

import dataclasses
import math
import warnings

import numpy as np
import pytest
import stubs
import torch
from robustode.attacks import THREATS, violation
from robustode.bench.config.preset import Recipe
from robustode.bench.evaluation.accuracy import evaluate_cell
from robustode.bench.runtime.memory import peak_memory
from robustode.bench.throughput.clock import time_passes
from robustode.bench.throughput.measure import inference, measure_cell
from robustode.bench.training.train import build_model, train
from robustode.models import MODELS, ODEBlock, Solver
from robustode.models.node import TanhLayer
from robustode.models.ode.kernels.fixed_step import flow_implementation, supports
from test_fused import FAST, assert_close, build, flow_answers, normal

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]
CUDA = torch.device("cuda")


@pytest.mark.parametrize("name", MODELS.names())
def test_logits_are_the_same(few, name):
    model = build_model(MODELS.get(name).build, few, MODELS.get(name).resolve(), 0).double()
    images = few.test.images.double()
    with torch.no_grad():
        cpu = model(images)
        cuda = model.to(CUDA)(images.to(CUDA)).cpu()
    torch.testing.assert_close(cuda, cpu, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("columns", [1, 3001])
@pytest.mark.parametrize(
    ("name", "overrides"), [*((name, {}) for name in FAST), ("node", {"method": "ssprk3", "steps": 12})]
)
def test_flows_go_through_triton_to_the_states_and_gradients_of_eager_mode(
    name, overrides, columns, ode_backend
):
    pytest.importorskip("triton")
    flow = build(name, **overrides).flow.to(CUDA)
    state = normal(len(flow.tanh_fields()[0].B), columns).to(CUDA)
    assert flow_implementation(CUDA) == "triton"
    assert supports(state, flow.solver.method)
    assert type(flow(state).grad_fn).__name__ == "_FixedStepFlowBackward"
    found, again = flow_answers(flow, state), flow_answers(flow, state)
    ode_backend("torchdiffeq")
    assert flow_implementation(CUDA) == "eager"
    eager, exact = flow_answers(flow, state), flow_answers(flow.double(), state.double())
    for key, wanted in exact.items():
        assert_close(found[key], wanted, key)
        assert_close(found[key], eager[key], key)
        assert torch.equal(found[key], again[key])


def test_a_flow_too_wide_for_triton_goes_step_by_step():
    flow = ODEBlock([TanhLayer(17)], final_time=0.5, solver=Solver(method="euler", steps=1)).to(CUDA)
    state = normal(17, 4).to(CUDA)
    assert not supports(state, "euler")
    assert_close(flow(state).detach(), flow.double()(state.double()).detach())


def test_offsets_beyond_32_bits_are_reached():
    columns = 2**28 + 65  # n times that is more than 2^31 entries, 8.6 GB; two such arrays are needed
    free, _ = torch.cuda.mem_get_info(CUDA)
    if free < 4 * 8 * columns * 4:
        pytest.skip("too little free memory")
    flow = build("node", steps=4, method="euler").flow.to(CUDA)
    state = torch.zeros(8, columns, device=CUDA)
    ends = normal(8, 64).to(CUDA)
    state[:, -64:] = ends
    with torch.no_grad():
        assert_close(flow(state)[:, -64:], flow(ends))


@pytest.mark.parametrize("name", THREATS.names())
def test_accuracies_are_the_same(few, name):
    threat = THREATS.get(name)
    strength = min({"linf": 0.05, "l2": 0.3}.get(threat.norm, 0.2), threat.max_strength)
    model = build_model(MODELS.get("ch-node").build, few, {}, 0)
    cell = stubs.cell_for(threat, strength, 40)
    cpu, cuda = (
        evaluate_cell(cell, model.to(device), few.test, threat, num_classes=10, device=device, environment={})
        for device in (stubs.CPU, CUDA)
    )
    changed = np.mean(cpu.outcomes["correct"] != cuda.outcomes["correct"])
    assert changed <= (0.1 if threat.needs_gradient else 0.05)
    assert cuda.forwards > 0


def waits(model, split, threat, batch_size: int) -> int:
    """How often a cell waits for the device once everything is compiled."""
    strength = 0.0 if threat.name == "clean" else 0.05
    cell = stubs.cell_for(threat, strength, len(split), batch_size=batch_size)
    common = {"num_classes": 10, "device": CUDA, "environment": {}}
    evaluate_cell(cell, model, split, threat, **common)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            evaluate_cell(cell, model, split, threat, **common)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in seen)


@pytest.mark.parametrize("name", ["clean", "gaussian"])
def test_the_device_is_not_waited_for_at_every_batch(few, name):
    model = build_model(MODELS.get("ch-node").build, few, {}, 0).to(CUDA)
    split, threat = few.to(CUDA).test, THREATS.get(name)
    assert 0 < waits(model, split, threat, 20) == waits(model, split, threat, 2)


@pytest.mark.parametrize("name", ["pgd-linf", "pgd-l2"])
def test_the_device_is_not_waited_for_at_every_step_of_an_attack(few, name):
    model = build_model(MODELS.get("ch-node").build, few, {}, 0).to(CUDA)
    split, threat = few.to(CUDA).test, THREATS.get(name).configure(restarts=1)
    short, long = (waits(model, split, threat.configure(steps=steps), 20) for steps in (2, 20))
    assert 0 < short == long


def test_attacks_keep_their_budget_on_the_device(few):
    model = build_model(MODELS.get("node").build, few, {}, 0).to(CUDA).eval().requires_grad_(False)
    images, labels = few.test.images.to(CUDA), few.test.labels.to(CUDA)
    state = torch.cuda.get_rng_state(CUDA)
    for name in ("pgd-linf", "pgd-l2"):
        attacked = THREATS.get(name)(model, images, labels, 0.1, 0)
        assert attacked.is_cuda
        assert float(violation(attacked, images, 0.1, THREATS.get(name).norm).max()) <= 1e-6
    assert torch.equal(torch.cuda.get_rng_state(CUDA), state)


def test_training_on_the_device_learns(few, tmp_path):
    model = build_model(MODELS.get("resnet").build, few, {}, 0)
    _, history = train(
        model, few, Recipe(epochs=8, batch_size=32, learning_rate=0.02), seed=0,
        path=tmp_path / "w.safetensors", facts={"cell": {}}, device=CUDA,
    )  # fmt: skip
    assert max(history.validation_accuracy) > 0.6


def test_passes_are_timed_by_events_and_memory_is_the_allocators():
    model = stubs.Linear((1, 28, 28), 10).to(CUDA).eval()
    run = inference(model, torch.zeros(256, 1, 28, 28, device=CUDA), 10)
    durations = time_passes(run, CUDA, seconds=1e-6, passes=5)
    assert len(durations) >= 5
    assert (durations > 0).all()
    assert peak_memory(lambda: torch.empty(1 << 20, device=CUDA), CUDA) == 4 << 20


@pytest.mark.parametrize("name", ["node", "node-dopri5"])
def test_a_flow_has_a_time_floor_on_the_device(few, name):
    model = build_model(MODELS.get(name).build, few, MODELS.get(name).resolve(), 0).to(CUDA)
    for what in ("flow", "flow-gradient"):
        cell = dataclasses.replace(
            stubs.cell_for("clean", 0.0, 40), kind="throughput", threat=what, family="timing",
            parameters={"seconds": 1e-6, "passes": 3},
        )  # fmt: skip
        record = measure_cell(cell, model, few.test, num_classes=10, device=CUDA, environment={})
        names = ("operations", "copy_bandwidth", "arithmetic_rate", "floor_seconds", "achieved")
        assert all(0 < record.measures[name] < math.inf for name in names)
