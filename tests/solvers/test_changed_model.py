"""The same weights on another solver: what changes, what does not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from robustode._errors import InvalidArgument, UnknownName
from robustode.bench.solvers.changed_model import ChangedModel, solver_surrogates
from robustode.bench.solvers.observe import observe
from robustode.bench.solvers.ode_block import changed_solver
from robustode.bench.solvers.solver_call import SolverChange
from robustode.models import MODELS, ODEBlock, Solver, SolverFailure
from robustode.models.ch_node import ContractiveFlow, ContractiveLayer
from robustode.models.node import TanhLayer
from robustode.models.ode.solver import FIXED_GRID
from torch import nn

SHAPE = (1, 8, 8)
GRIDS = ["euler-16", "euler-64", "rk4-16", "rk4-64"]
IMAGES = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(1))


def build(name: str, **overrides) -> nn.Module:
    spec = MODELS.get(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return spec.build(SHAPE, 10, **spec.resolve(overrides)).eval()


def flows(model: nn.Module) -> list[ODEBlock]:
    return [module for module in model.modules() if isinstance(module, ODEBlock)]


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def with_solver(model: nn.Module, **change) -> ChangedModel:
    return ChangedModel(model, SolverChange(**change))


@torch.no_grad()
def ask(model: nn.Module) -> torch.Tensor:
    return model(IMAGES)


@pytest.mark.parametrize("name", MODELS.names())
def test_the_same_solver_gives_the_same_bits(name):
    model = build(name)
    solver = flows(model)[0].solver
    assert torch.equal(ask(with_solver(model, method=solver.method)), ask(model))


@pytest.mark.parametrize("name", MODELS.names())
def test_every_registered_model_has_surrogates_of_its_own_weights(name):
    model = build(name)
    before, solver, logits = state(model), flows(model)[0].solver, ask(model)
    surrogates = solver_surrogates(model, IMAGES)
    assert list(surrogates) == GRIDS
    for grid, surrogate in surrogates.items():
        (call,) = observe(surrogate, IMAGES)
        method, steps = grid.split("-")
        assert call.evaluations == int(steps) * FIXED_GRID[method]
        assert ask(surrogate).shape == logits.shape
        assert not torch.equal(ask(surrogate), logits)
        assert surrogate.model is model
    assert flows(model)[0].solver == solver
    after = state(model)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert torch.equal(ask(model), logits)


@pytest.mark.parametrize("name", ["node", "h-node", "ch-node", "resnet"])
def test_rk4_of_64_steps_is_the_flow(name):
    model = build(name).double()
    exact = with_solver(model, method="dopri5", rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        surrogates = solver_surrogates(model, IMAGES.double())
        expected, found = exact(IMAGES.double()), surrogates["rk4-64"](IMAGES.double())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


class Decay(nn.Module):
    """x' = -x, whose solution by every method is known."""

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return -state


GROWTH = {"euler": lambda h: 1 - h, "rk4": lambda h: 1 - h + h**2 / 2 - h**3 / 6 + h**4 / 24}


@given(layers=st.integers(1, 70), time=st.floats(0.1, 4), grid=st.sampled_from(GRIDS))
def test_steps_are_raised_to_a_multiple_of_the_layers_over_the_same_time(layers, time, grid):
    flow = ODEBlock(
        [Decay() for _ in range(layers)], final_time=time, solver=Solver(method="heun2", steps=layers)
    )
    method, asked = grid.split("-")
    change = SolverChange(method=method, steps=int(asked))
    raised, steps = ChangedModel(flow, change), changed_solver(flow, change).steps
    assert steps % layers == 0
    assert int(asked) <= steps < int(asked) + layers
    start = torch.ones(3, 2, dtype=torch.float64)
    expected = GROWTH[method](time / steps) ** steps
    torch.testing.assert_close(raised(start), expected * start, rtol=1e-6, atol=1e-7)


def block(solver: Solver, layers: int = 4) -> ODEBlock:
    return ODEBlock([TanhLayer(4) for _ in range(layers)], final_time=1.0, solver=solver)


STATE = torch.rand(4, 3)


def test_the_deployed_solver_is_no_surrogate_of_itself():
    def surrogates(**solver):
        return list(solver_surrogates(block(Solver(**solver)), STATE))

    assert surrogates(method="euler", steps=16) == GRIDS[1:]
    assert surrogates(method="rk4", steps=64) == GRIDS[:3]
    assert surrogates(method="euler", steps=8) == GRIDS
    assert surrogates(method="dopri5", steps=16) == GRIDS


def test_two_grids_that_the_layers_make_one_are_one_surrogate():
    found = solver_surrogates(block(Solver(method="heun2", steps=100), layers=100), STATE)
    assert list(found) == ["euler-16", "rk4-16"]


def test_every_block_of_a_model_changes_and_one_that_does_not_is_no_reason_to_leave_it_out():
    both = nn.Sequential(block(Solver(method="euler", steps=16)), block(Solver(method="heun2", steps=8)))
    found = solver_surrogates(both, STATE)
    assert list(found) == GRIDS
    assert [call.evaluations for call in observe(found["euler-16"], STATE)] == [16, 16]


def test_steps_that_the_weights_choose_become_a_number():
    layers = [ContractiveLayer(4, kappa=0.5) for _ in range(2)]
    solver = Solver(method="euler", steps="contractive")
    flow = ContractiveFlow(layers, kappa=0.5, margin=0.05, final_time=1.0, solver=solver)
    steps = changed_solver(flow, SolverChange(method="rk4")).steps
    assert steps == 2 * flow.steps_per_layer()
    assert len(solver_surrogates(flow, STATE)) == 4 or steps in (16, 64)
    for name, surrogate in solver_surrogates(flow, STATE).items():
        method, asked = name.split("-")
        (call,) = observe(surrogate, STATE)
        assert call.evaluations == int(asked) * FIXED_GRID[method]
    assert flow.solver == solver


def test_modes_gradients_and_the_original_are_left_alone():
    model = build("node")
    model.train()
    model.head.eval()
    model.stem.weight.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    for surrogate in solver_surrogates(model, IMAGES).values():
        assert [m.training for m in surrogate.modules()] == [True, *modes]
        surrogate(IMAGES).sum().backward()
        assert model.stem.weight.grad is None
        model.zero_grad()
    assert model.head.training is False
    assert model.stem.weight.requires_grad is False


def test_what_has_no_flow_has_no_surrogate():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert solver_surrogates(linear, IMAGES) == {}
    assert torch.equal(ask(with_solver(linear, method="euler", steps=1)), ask(linear))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"method": "eulr"}, "did you mean euler"), ({"method": "rk4", "steps": 0}, "steps")],
)
def test_a_solver_that_does_not_exist_is_refused(wrong, message):
    error = UnknownName if wrong["method"] == "eulr" else InvalidArgument
    model = build("node")
    with pytest.raises(error, match=message):
        ask(with_solver(model, **wrong))
    assert flows(model)[0].solver == flows(build("node"))[0].solver


def test_a_surrogate_fails_as_its_solver_does():
    model = build("node")
    with torch.no_grad():
        model.head.weight.fill_(1.0)
        for layer in flows(model)[0].layers:
            layer.K.fill_(float("nan"))
    with pytest.raises(SolverFailure):
        ask(with_solver(model, method="dopri5", rtol=1e-3, atol=1e-3))
    assert flows(model)[0].solver == flows(build("node"))[0].solver
