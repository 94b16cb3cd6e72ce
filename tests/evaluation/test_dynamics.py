"""Trajectories: growth, sensitivity and energy drift of flows whose answers are known."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import stubs
import torch
from hypothesis import given
from hypothesis import strategies as st
from robustode._errors import ModelFailure
from robustode.bench.data import Split
from robustode.bench.evaluation.dynamics import (
    energy_drift,
    follow,
    measure_dynamics,
    sensitivity,
    worst_direction,
)
from robustode.bench.records.arrays import for_drawing
from robustode.bench.records.record import Record
from robustode.bench.solvers.column_flow import COLUMNS, column_flows
from robustode.bench.training.provenance import summary_line
from robustode.models import MODELS, ODEBlock, Solver
from torch import Tensor, nn

IMAGES = 8


class Matrix(nn.Module):
    """x' = A x."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, state: Tensor) -> Tensor:
        return self.matrix @ state


class Flowing(nn.Module):
    """A flow of the image itself, one column per sample, and a head."""

    def __init__(self, layers, *, final_time: float, solver: Solver, pixels: int) -> None:
        super().__init__()
        self.flow = ODEBlock(layers, final_time=final_time, solver=solver)
        self.head = nn.Linear(pixels, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.flow(images.flatten(1).T).T)


def split(pixels: int = 4, count: int = IMAGES) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 1, 1, pixels, generator=generator)
    return stubs.split_of(images, torch.zeros(count, dtype=torch.int64))


def linear_flow(matrix: Tensor, *, layers: int = 1, h: float = 0.25, steps: int = 1, method="euler"):
    solver = Solver(method=method, steps=layers * steps)
    blocks = [Matrix(matrix.clone()) for _ in range(layers)]
    return Flowing(blocks, final_time=h * layers * steps, solver=solver, pixels=len(matrix))


def measure(
    model: nn.Module, initial: nn.Module | None = None, data: Split | None = None, **changes
) -> Record:
    cell = stubs.cell_for("clean", 0.0, IMAGES, kind="dynamics", family="dynamics", dtype="float64")
    heads = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return measure_dynamics(
        dataclasses.replace(cell, **changes),
        model,
        model if initial is None else initial,
        split() if data is None else data,
        num_classes=heads[-1].out_features,
        device=stubs.CPU,
        environment={"created": "now"},
    )


def build(name: str, seed: int = 0, **overrides) -> nn.Module:
    spec = MODELS.get(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return spec.build((1, 8, 8), 10, **spec.resolve(overrides)).eval()


# --- linear flows -------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "steps"), [(1, 1), (1, 6), (3, 2)])
@pytest.mark.parametrize("h", [0.1, 0.5])
def test_a_contraction_shrinks_every_pair_by_the_same_factor(layers, steps, h):
    record = measure(linear_flow(-torch.eye(4), layers=layers, steps=steps, h=h))
    count = layers * steps
    k = np.arange(count + 1)
    assert record.status == "ok"
    assert {name: array.shape for name, array in record.outcomes.items()} == {
        "time": (count + 1,),
        "layer": (count + 1,),
        "growth_random": (count + 1, 2 * IMAGES),
        "growth_adversarial": (count + 1, IMAGES),
        "sensitivity_initial": (count + 1, IMAGES),
        "sensitivity_trained": (count + 1, IMAGES),
    }
    np.testing.assert_allclose(record.outcomes["time"], k * h, rtol=1e-12)
    np.testing.assert_array_equal(record.outcomes["layer"][1:], np.repeat(np.arange(layers), steps))
    growth = np.broadcast_to((1 - h) ** k[:, None], (count + 1, IMAGES))
    np.testing.assert_allclose(record.outcomes["growth_random"], np.tile(growth, 2), rtol=1e-9)
    np.testing.assert_allclose(record.outcomes["growth_adversarial"], growth, rtol=1e-9)
    for name in ("sensitivity_initial", "sensitivity_trained"):
        np.testing.assert_allclose(record.outcomes[name], growth[::-1], rtol=1e-9)
    assert all(array.dtype == np.float64 for array in record.outcomes.values())


def gapped(seed: int, n: int = 4) -> Tensor:
    """A matrix whose Euler step with h = 1 has singular values 2, 0.4, 0.3, 0.2 in random directions."""
    generator = torch.Generator().manual_seed(seed)
    U, V = (torch.linalg.qr(torch.randn(n, n, generator=generator))[0] for _ in range(2))
    return U @ torch.diag(torch.tensor([2.0, 0.4, 0.3, 0.2])) @ V - torch.eye(n)


@given(st.integers(0, 2**31))
def test_adversarial_pairs_grow_by_the_largest_singular_value(seed):
    model = linear_flow(gapped(seed), h=1.0)
    largest = torch.linalg.matrix_norm(torch.eye(4) + model.flow.layers[0].matrix.detach(), ord=2)
    outcomes = measure(model).outcomes
    np.testing.assert_allclose(outcomes["growth_adversarial"][1], float(largest), rtol=1e-5)
    np.testing.assert_allclose(outcomes["sensitivity_trained"][0], float(largest), rtol=1e-5)
    assert outcomes["growth_random"][1].max() <= float(largest) * (1 + 1e-9)
    assert outcomes["growth_random"][1].min() < float(largest) * 0.99


def test_an_adversarial_pair_is_sought_anew_for_each_time():
    model = linear_flow(gapped(1), h=1.0, steps=4)
    step = (torch.eye(4) + model.flow.layers[0].matrix.detach()).double().numpy()
    norms = [np.linalg.norm(np.linalg.matrix_power(step, k), ord=2) for k in range(5)]
    growth = measure(model).outcomes["growth_adversarial"]
    np.testing.assert_allclose(growth, np.array(norms)[:, None].repeat(IMAGES, 1), rtol=1e-3)


def test_euler_steps_of_a_rotation_grow_every_pair_alike():
    rotation = torch.kron(torch.tensor([[0.0, -1.0], [1.0, 0.0]]), torch.eye(2))
    outcomes = measure(linear_flow(rotation, h=0.3, steps=5)).outcomes
    wanted = (1 + 0.3**2) ** (np.arange(6)[:, None] / 2)
    for name in ("growth_random", "growth_adversarial"):
        np.testing.assert_allclose(outcomes[name], np.broadcast_to(wanted, outcomes[name].shape), rtol=1e-9)


@pytest.mark.parametrize("method", ["euler", "heun2", "ssprk3", "rk4", "midpoint"])
def test_the_maps_followed_are_the_solvers_steps(method):
    model = linear_flow(gapped(3), h=0.2, steps=3, layers=2, method=method).double()
    states = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times, path = follow(model.flow.step_maps(), states)
    torch.testing.assert_close(path[-1], model.flow(states).detach(), rtol=1e-6, atol=0)
    np.testing.assert_allclose(times, 0.2 * np.arange(7), rtol=1e-12)


@pytest.mark.parametrize("name", ["h-node", "ch-node", "ch-node-lipschitz", "resnet"])
def test_the_last_state_is_that_of_the_model(name):
    model = build(name).double()
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    states = column_flows(model, images)[0].states
    _, path = follow(model.flow.step_maps(), states)
    torch.testing.assert_close(path[-1], model.flow(states).detach(), rtol=1e-6, atol=1e-9)


def test_an_adaptive_flow_is_followed_in_eighths_of_a_layer():
    outcomes = measure(linear_flow(-torch.eye(4), h=0.5, method="dopri5")).outcomes
    np.testing.assert_allclose(outcomes["time"], np.linspace(0, 0.5, 9), rtol=1e-12)
    np.testing.assert_allclose(
        outcomes["growth_random"], np.exp(-outcomes["time"])[:, None].repeat(16, 1), rtol=1e-3
    )


# --- the pieces ---------------------------------------------------------------------------------


def test_the_worst_direction_is_the_first_right_singular_vector():
    matrix = gapped(5).double()
    start = torch.ones(4, 3, dtype=torch.float64) / 2
    found = worst_direction(lambda x: x + matrix @ x, torch.zeros(4, 3, dtype=torch.float64), start)
    first = torch.linalg.svd(torch.eye(4, dtype=torch.float64) + matrix)[2][0]
    torch.testing.assert_close((first @ found).abs(), torch.ones(3, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["h-node", "ch-node", "resnet"])
def test_the_sensitivity_is_the_norm_of_the_flows_jacobian(name):
    flow = build(name).double().flow
    states = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    maps = flow.step_maps()
    norms = sensitivity(maps, follow(maps, states)[1])
    assert norms.shape == (len(maps) + 1, 3)
    np.testing.assert_allclose(norms[-1], 1, rtol=1e-12)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda x: flow(x[:, None])[:, 0], states[:, i])
        assert norms[0, i] == pytest.approx(float(torch.linalg.matrix_norm(jacobian, ord=2)), rel=1e-6)


def test_the_sensitivity_of_a_wide_state_is_that_of_its_jacobian(monkeypatch):
    """Of a state wider than `WIDEST` no Jacobian is formed: directions are sought."""
    model = linear_flow(torch.diag(torch.tensor([-3.0, -1.0, 0.0, 0.5])), h=0.5).double()
    maps = model.flow.step_maps()
    path = follow(maps, torch.zeros(4, 2, dtype=torch.float64))[1]
    formed = sensitivity(maps, path)
    monkeypatch.setattr("robustode.bench.evaluation.dynamics.WIDEST", 3)
    np.testing.assert_allclose(sensitivity(maps, path), formed, rtol=1e-3)


def test_the_states_followed_are_different_columns_of_the_flows_input():
    model = build("h-node").double()
    images = torch.rand(IMAGES, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    picked = column_flows(model, images)[0].states
    assert picked.shape == (8, COLUMNS)
    assert len(torch.unique(picked, dim=1).T) == COLUMNS
    features = model.stem(model.normalise(images)).transpose(0, 1).reshape(8, -1).detach()
    assert bool((picked[:, :, None] == features[:, None]).all(0).any(1).all())
    assert column_flows(model, images[:1])[0].states.shape == (8, 64)
    dark = column_flows(model, torch.zeros(2, 1, 8, 8).double())[0].states
    assert dark.shape == (8, 9), "corners, edges, inside"


# --- energy -------------------------------------------------------------------------------------


def drift_of(steps: int, method: str = "heun2") -> float:
    """Largest relative change of the energy of one layer over a fixed time."""
    flow = build("h-node", layers=1, steps=steps, method=method, final_time=1.0, offset=0.5).double().flow
    states = 2 * torch.randn(8, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    maps = flow.step_maps()
    return float(np.abs(energy_drift(maps, follow(maps, states)[1])).max())


@pytest.mark.parametrize(("method", "low", "high"), [("euler", 1.7, 2.5), ("heun2", 2.5, 6), ("rk4", 11, 36)])
def test_the_energy_drift_shrinks_with_the_order_of_the_solver(method, low, high):
    drifts = [drift_of(steps, method) for steps in (8, 16, 32)]
    for coarse, fine in itertools.pairwise(drifts):
        assert low < coarse / fine < high


def test_the_energy_is_compared_with_that_at_the_start_of_its_layer():
    flow = build("h-node", layers=2, steps=8, final_time=2.0).double().flow
    states = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    maps = flow.step_maps()
    _, path = follow(maps, states)
    drift = energy_drift(maps, path)
    assert drift.shape == (9, 5)
    assert (drift[0] == 0).all()
    with torch.no_grad():
        for layer, start, end in ((flow.layers[0], 0, 4), (flow.layers[1], 4, 8)):
            before, after = layer.energy(path[start]), layer.energy(path[end])
            np.testing.assert_allclose(drift[end], ((after - before) / before).numpy(), rtol=1e-9)


def test_the_energy_of_a_contractive_flow_decreases():
    outcomes = measure(build("ch-node", method="euler", steps="contractive"), data=digit_like()).outcomes
    assert outcomes["energy_drift"].max() <= 0
    assert outcomes["energy_drift"].min() < -0.01
    assert outcomes["growth_adversarial"][1:].max() < 1


def test_layers_without_an_energy_have_no_drift():
    assert "energy_drift" not in measure(linear_flow(-torch.eye(4))).outcomes
    mixed = linear_flow(-torch.eye(4), layers=2)
    mixed.flow.layers[0].energy = lambda state: state.square().sum(0)
    assert "energy_drift" not in measure(mixed).outcomes


# --- the record ---------------------------------------------------------------------------------


def digit_like() -> Split:
    images = torch.rand(IMAGES, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    return stubs.split_of(images, torch.zeros(IMAGES, dtype=torch.int64))


@pytest.mark.parametrize(
    "flow", [None, nn.Identity(), lambda x: x], ids=["no flow", "another module", "a function"]
)
def test_a_model_without_a_flow_gets_its_reason_and_nothing_else(flow):
    model = stubs.Linear((1, 1, 4), 3)
    if flow is not None:
        model.flow = flow
    record = measure(model)
    assert record.status == "ok"
    assert dict(record.outcomes) == {}
    told = "no solver was seen in it"
    assert dict(record.card) == {"no_dynamics": told}
    assert record.forwards == 0
    assert summary_line([record]) == told


def test_before_and_after_training_are_told_apart():
    trained, initial = linear_flow(-torch.eye(4), h=0.5, steps=3), linear_flow(torch.eye(4), h=0.5, steps=2)
    outcomes = measure(trained, initial).outcomes
    np.testing.assert_allclose(
        outcomes["sensitivity_trained"][:, 0], 0.5 ** np.array([3, 2, 1, 0]), rtol=1e-9
    )
    np.testing.assert_allclose(outcomes["sensitivity_initial"][:, 0], 1.5 ** np.array([2, 1, 0]), rtol=1e-9)
    assert outcomes["growth_random"].shape == (4, 2 * IMAGES)
    assert outcomes["growth_random"][-1].max() < 1, "distances are those of the trained model"


@pytest.mark.parametrize("name", ["ch-node", "node"])
def test_measuring_twice_gives_the_same_record_and_leaves_the_models_alone(name):
    model, initial = build(name).train(), build(name, 1)
    model.head.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    one, two = (measure(model, initial, digit_like(), samples=1) for _ in range(2))
    assert set(one.outcomes) == set(two.outcomes)
    for key, array in one.outcomes.items():
        np.testing.assert_array_equal(array, two.outcomes[key])
    assert one.forwards == 2
    assert model.training
    assert next(model.parameters()).dtype == torch.float32
    assert [p.requires_grad for p in model.head.parameters()] == [False, True]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_seed_draws_other_pairs():
    model = linear_flow(gapped(0), h=1.0)
    one, other = (measure(model, attack_seed=seed).outcomes for seed in (0, 1))
    assert not np.array_equal(one["growth_random"], other["growth_random"])
    np.testing.assert_array_equal(one["sensitivity_trained"], other["sensitivity_trained"])


def test_the_record_can_be_stored_and_read_back():
    record = measure(build("h-node"), data=digit_like(), samples=2)
    again = stubs.stored_again(record)
    assert again.cell == record.cell
    assert set(again.outcomes) == {
        "time", "layer", "growth_random", "growth_adversarial", "sensitivity_initial", "sensitivity_trained",
        "energy_drift",
    }  # fmt: skip
    for key, array in for_drawing(record.outcomes).items():
        np.testing.assert_array_equal(again.outcomes[key], array)
    assert stubs.lines_of(again) == stubs.lines_of(record), "what is rounded already stays as it is"


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, state: Tensor) -> Tensor:
        return torch.tanh(self.convolution(state))


class OnImages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flow = ODEBlock([Convolution()], final_time=1.0, solver=Solver(method="euler", steps=2))
        self.head = nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.flow(images).flatten(1))


def test_a_flow_of_images_is_measured_or_says_why_not():
    record = measure(OnImages(), data=digit_like())
    assert record.status == "ok"
    assert record.outcomes or record.card["no_dynamics"]


class GivesUp(nn.Module):
    """Fails at images whose first pixel is 0, in float64 alone where it `needs_double`."""

    def __init__(self, model: nn.Module, needs_double: bool) -> None:
        super().__init__()
        self.model, self.needs_double = model, needs_double

    def forward(self, images: Tensor) -> Tensor:
        asked = images.dtype == torch.float64 or not self.needs_double
        if asked and bool((images[:, 0, 0, 0] == 0).any()):
            raise AssertionError("underflow in dt 0.0")
        return self.model(images)


@pytest.mark.parametrize("needs_double", [False, True])
@pytest.mark.parametrize("where", ["trained", "initial"])
def test_images_without_an_answer_are_left_out_and_counted(where, needs_double):
    if where == "initial" and not needs_double:
        pytest.skip("the model before training is asked in float64 alone")
    model, data = linear_flow(-torch.eye(4)), split()
    marked = data.images.clone()
    marked[[0, 2], 0, 0, 0] = 0.0
    broken = GivesUp(model, needs_double)
    trained, initial = (broken, model) if where == "trained" else (model, broken)
    record = measure(trained, initial, stubs.split_of(marked, data.labels))
    others = torch.tensor([i for i in range(IMAGES) if i not in (0, 2)])
    fewer = stubs.split_of(data.images[others], data.labels[others])
    expected = measure(model, model, fewer, samples=IMAGES - 2)
    assert record.measures == {"left_out": 2.0}
    assert expected.measures == {}
    assert record.outcomes.keys() == expected.outcomes.keys()
    for name, lines in record.outcomes.items():
        np.testing.assert_array_equal(lines, expected.outcomes[name])


def test_a_model_that_answers_no_image_has_no_trajectories():
    data = split()
    data = stubs.split_of(torch.zeros_like(data.images), data.labels)
    with pytest.raises(ModelFailure, match="underflow in dt"):
        measure(GivesUp(linear_flow(-torch.eye(4)), False), data=data)


def test_a_line_of_details_says_what_its_numbers_are():
    def line(kind: str, threat: str, family: str, **changes) -> str:
        cell = stubs.cell_for("clean", 0.0, 2)
        cell = dataclasses.replace(cell, kind=kind, threat=threat, family=family)
        return summary_line([Record(cell=cell, **changes)])

    correct = {"correct": np.array([[True, False]])}
    assert line("accuracy", "clean", "clean", outcomes=correct) == "50.0%"
    assert line("accuracy", "clean", "clean", status="error", error="no") == "error"
    assert line("accuracy", "pgd-linf", "gradient", outcomes=correct) == "0 50.0%"
    radius = {"radius": np.array([0.1, 0.3])}
    assert line("certificate", "lipschitz", "proof", outcomes=radius) == "half are certified to l2 0.2"
    growth = {"growth_adversarial": np.array([[1.0, 1.0], [2.5, 0.5]])}
    told = "the flow takes attacked images up to 2.5 times as far from the clean ones"
    assert line("dynamics", "dynamics", "dynamics", outcomes=growth) == told
