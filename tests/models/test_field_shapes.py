"""ODE blocks whose states are images or rows, whose fields depend on time, or whose gradients are adjoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from robustode._errors import InvalidArgument
from robustode.bench.data import Split
from robustode.bench.evaluation.dynamics import measure_dynamics
from robustode.bench.records.record import Cell
from robustode.bench.solvers.column_flow import column_flows
from robustode.models import MatrixField, ODEBlock, Solver, TanhField
from torch import Tensor, nn

METHODS = ["euler", "midpoint", "heun2", "heun3", "rk4", "ssprk3", "dopri5"]


class Times(nn.Module):
    """x' = (a + t) x, so that x(T) = exp(a T + T^2 / 2) x(0)."""

    def __init__(self, a: float = 0.3) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, time: Tensor, state: Tensor) -> Tensor:
        return (self.a + time) * state


def timed(method: str = "rk4", steps: int = 64, **options) -> ODEBlock:
    layer = Times()
    solver = Solver(method=method, steps=steps, rtol=1e-9, atol=1e-9)
    return ODEBlock([layer, layer], final_time=1.5, solver=solver, time_dependent=True, **options)


@pytest.mark.parametrize("method", METHODS)
def test_a_field_that_depends_on_time_is_solved_at_its_times(method):
    """Two layers that are one: their parts of time follow each other."""
    x = torch.ones(2, 3, dtype=torch.float64)
    exact = float(np.exp(0.3 * 1.5 + 1.5**2 / 2))
    errors = [abs(float(timed(method, steps)(x)[0, 0].detach()) - exact) for steps in (16, 32)]
    order = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4, "ssprk3": 3}.get(method)
    if order is None:
        assert errors[1] < 1e-6
    else:
        assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.2)


@pytest.mark.parametrize("method", ["euler", "heun2", "ssprk3", "rk4"])
def test_steps_of_a_field_that_depends_on_time_make_up_its_solution(method):
    block, x = timed(method, 8), torch.rand(3, 2, dtype=torch.float64)
    state = x
    for step in block.step_maps():
        state = step(state)
    torch.testing.assert_close(state, block(x))


def test_layers_that_state_matrices_do_not_depend_on_time():
    class Layer(MatrixField):
        def tanh_field(self) -> TanhField:
            return TanhField(B=torch.eye(3), b=torch.zeros(3, 1))

    with pytest.raises(InvalidArgument, match="Layer states matrices, which do not depend on time"):
        ODEBlock([Layer()], final_time=1.0, solver=Solver(), time_dependent=True)


@pytest.mark.parametrize("method", ["rk4", "heun2", "dopri5"])
def test_adjoint_gradients_are_those_of_the_exact_flow(method):
    x = torch.full((2, 3), 0.7, dtype=torch.float64, requires_grad=True)
    plain, adjoint = timed(method, 64), timed(method, 64, adjoint=True)
    for block in (plain, adjoint):
        block(x).sum().backward()
        growth = float(np.exp(0.3 * 1.5 + 1.5**2 / 2))
        assert float(x.grad[0, 0]) == pytest.approx(growth, rel=3e-3)
        assert float(block.layers[0].a.grad) == pytest.approx(6 * 0.7 * 1.5 * growth, rel=3e-3)
        x.grad = None
    torch.testing.assert_close(plain(x), adjoint(x), rtol=0, atol=0)
    assert plain.nfe == adjoint.nfe


def test_an_adjoint_keeps_no_steps():
    x = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)

    def saved(block: ODEBlock) -> int:
        count = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal count
            count += 1
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            block(x)
        return count

    assert saved(timed("rk4", 64, adjoint=True)) == saved(timed("rk4", 8, adjoint=True))
    assert saved(timed("rk4", 64)) > 4 * saved(timed("rk4", 8))


def test_ssprk3_has_no_adjoint():
    with pytest.raises(InvalidArgument, match="ssprk3 has no adjoint"):
        timed("ssprk3", adjoint=True)


class ConvolutionField(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, state: Tensor) -> Tensor:
        return torch.tanh(self.convolution(state)) - state


class TimedConvolution(ConvolutionField):
    def forward(self, time: Tensor, state: Tensor) -> Tensor:
        return super().forward(state) * (1 + time)


class Net(nn.Module):
    """State (N, 2, 4, 4) of images (N, 1, 4, 4)."""

    def __init__(self, block: ODEBlock, shape: tuple[int, ...] = (2, 4, 4)) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(1, 2, 3, padding=1), block, nn.Linear(32, 3)
        self.shape = shape

    def forward(self, images: Tensor) -> Tensor:
        state = self.stem(images)
        return self.head(self.block(state.reshape(len(images), *self.shape)).flatten(1))


def convolutional(kind: type[nn.Module] = ConvolutionField, **options) -> Net:
    return Net(ODEBlock([kind(), kind()], final_time=1.0, solver=Solver(method="heun2", steps=4), **options))


CASES = {
    "convolution": lambda: convolutional(),
    "time": lambda: convolutional(TimedConvolution, time_dependent=True),
    "adjoint": lambda: convolutional(adjoint=True),
    "rows": lambda: Net(
        ODEBlock([nn.Linear(32, 32)], final_time=1.0, solver=Solver(method="rk4", steps=4)), (32,)
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_flow_of_any_shape_is_followed_image_by_image(case):
    net, images = CASES[case]().double(), torch.rand(3, 1, 4, 4, dtype=torch.float64)
    (flow,) = column_flows(net, images)
    state = flow.states
    assert state.shape == (32, 3)
    for step, field in zip(flow.steps, flow.fields, strict=True):
        assert field(state).shape == state.shape
        state = step(state)
    torch.testing.assert_close(net.head(state.T), net(images))


@pytest.mark.parametrize("case", CASES)
def test_trajectories_contraction_and_sensitivity_are_measured(case):
    net = CASES[case]()
    images = torch.rand(3, 1, 4, 4)
    split = Split(images=images, labels=torch.zeros(3, dtype=torch.long), indices=np.arange(3))
    cell = Cell(
        kind="dynamics", dataset="digits", index_sha256="0", model="net", model_version="0", samples=3
    )
    record = measure_dynamics(
        cell, net, CASES[case](), split, num_classes=3, device=torch.device("cpu"), environment={}
    )
    assert "no_dynamics" not in record.card
    outcomes = record.outcomes
    assert outcomes["growth_random"].shape == (5, 6)
    assert outcomes["growth_adversarial"].shape == (5, 3)
    assert outcomes["sensitivity_trained"].shape == (5, 3)
    np.testing.assert_allclose(outcomes["sensitivity_trained"][-1], 1)
    worst = outcomes["growth_adversarial"][-1]
    np.testing.assert_allclose(worst, outcomes["sensitivity_trained"][0], rtol=0.05)


def test_columns_stay_columns_where_as_many_as_images():
    """A state (n, N H W) of n = 3 channels of 3 images."""

    class Columns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(1, 3, 1), nn.Linear(48, 2)
            self.block = ODEBlock([nn.Tanh()], final_time=1.0, solver=Solver(method="rk4", steps=2))

        def forward(self, images: Tensor) -> Tensor:
            features = self.stem(images).transpose(0, 1)
            final = self.block(features.reshape(3, -1)).reshape(features.shape)
            return self.head(final.transpose(0, 1).flatten(1))

    (flow,) = column_flows(Columns(), torch.rand(3, 1, 4, 4))
    assert flow.states.shape == (3, 48)
