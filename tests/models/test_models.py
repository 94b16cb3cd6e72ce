"""The architectures against their equations, and every registered model against the contract."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from robustode._errors import ContractBroken, InvalidArgument, UnknownName
from robustode.bench.audits.library import audit_names
from robustode.bench.conformance.checks import CHECKS, checks_for
from robustode.bench.conformance.result import NothingToCheck
from robustode.models import CLAIMS, MODELS, ModelSpec, Normalise, ODEBlock, Solver, SolverFailure
from robustode.models.ch_node import (
    ContractiveFlow,
    ContractiveLayer,
    contraction_rate,
    contraction_threshold,
)
from robustode.models.h_node import HamiltonianLayer, log_cosh, symplectic_matrix
from robustode.models.node import TanhLayer
from robustode.models.ode.solver import ADAPTIVE, FIXED_GRID
from robustode.models.pixel_network import ChannelLayer, smoothness_penalty
from robustode.models.registry import register_model
from robustode.models.resnet import ResNetLayer
from torch import nn

SPECS = list(MODELS)
SHAPE = (1, 8, 8)


def build(name: str, seed: int = 0, **overrides) -> nn.Module:
    spec = MODELS.get(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return spec.build(SHAPE, 10, **spec.resolve(overrides)).eval()


def images(count: int = 5, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def number(tensor: torch.Tensor) -> float:
    return float(tensor.detach())


# --- the registry -------------------------------------------------------------------------------


def _cases():
    for spec in SPECS:
        for name, check in checks_for(spec).items():
            reason = spec.expected_failures.get(name)
            marks = [pytest.mark.xfail(strict=True, raises=ContractBroken, reason=reason)] if reason else []
            yield pytest.param(spec, check, id=f"{spec.name}-{name}", marks=marks)


@pytest.mark.parametrize(("spec", "check"), list(_cases()))
def test_contract(spec, check):
    try:
        check(spec)
    except NothingToCheck as nothing:
        pytest.skip(str(nothing))


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_spec_is_complete(spec):
    assert spec.summary
    assert spec.reference
    assert spec.claims <= set(CLAIMS)
    assert set(spec.expected_failures) <= {*checks_for(spec), *audit_names()}
    assert all(len(reason) > 20 for reason in spec.expected_failures.values())
    assert json.loads(json.dumps(spec.resolve())) == spec.resolve()


def test_the_core_models_are_registered():
    assert {"resnet", "node", "node-dopri5", "h-node", "ch-node"} <= set(MODELS.names())
    assert len(CHECKS) == 5


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_same_seed_same_weights(spec):
    one, two, other = build(spec.name), build(spec.name), build(spec.name, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_hyperparameters_are_resolved_in_order_and_typos_get_a_suggestion():
    spec = MODELS.get("node-dopri5")
    assert spec.resolve()["method"] == "dopri5"
    assert spec.resolve({"method": "bosh3"})["method"] == "bosh3"
    with pytest.raises(UnknownName, match=r"hyperparameter of node-dopri5 'metod': did you mean method"):
        spec.resolve({"metod": "rk4"})


def test_an_open_ended_factory_takes_any_hyperparameter():
    spec = ModelSpec(name="open", build=lambda shape, classes, **rest: nn.Identity())
    assert spec.resolve({"anything": 1}) == {"anything": 1}


def test_an_unknown_claim_gets_a_suggestion():
    with pytest.raises(UnknownName, match="claim 'contractiv': did you mean contractive"):
        ModelSpec(name="x", build=nn.Identity, claims=frozenset({"contractiv"}))


def test_register_model_decorates_functions_only():
    with pytest.raises(InvalidArgument, match="decorates a function"):
        register_model("not-a-function")(3)
    assert "not-a-function" not in MODELS


def test_a_file_changes_the_version_of_its_model():
    inside = ModelSpec(name="x", build=nn.Identity, version=3)
    assert inside.full_version == "3"
    assert ModelSpec(name="x", build=nn.Identity, version=3, source="a" * 64).full_version == "3+" + "a" * 12


# --- the solver ---------------------------------------------------------------------------------


class Matrix(nn.Module):
    """x' = A x."""

    def __init__(self, matrix: torch.Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return self.matrix @ state


class Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return self.function(state)


ORDERS = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4, "ssprk3": 3}


def test_every_fixed_grid_method_has_an_order_here():
    assert set(ORDERS) == set(FIXED_GRID)


@pytest.mark.parametrize("method", ORDERS)
def test_measured_order_of_convergence(method):
    """On two layers of a linear field, against the matrix exponential."""
    first, second, x = normal(4, 4, seed=1), normal(4, 4, seed=2), normal(4, 3, seed=3)
    exact = torch.linalg.matrix_exp(0.5 * second) @ torch.linalg.matrix_exp(0.5 * first) @ x
    errors = []
    for steps in (32, 64, 128):
        solver = Solver(method=method, steps=steps)
        block = ODEBlock([Matrix(first), Matrix(second)], final_time=1.0, solver=solver)
        errors.append(float((block(x) - exact).detach().norm()))
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert slopes == pytest.approx([ORDERS[method]] * 2, abs=0.15)


@pytest.mark.parametrize("method", ORDERS)
def test_one_step_is_the_taylor_polynomial_of_its_order(method):
    z = -0.3
    block = ODEBlock(
        [Matrix(torch.tensor([[z]], dtype=torch.float64))],
        final_time=1.0,
        solver=Solver(method=method, steps=1),
    )
    expected = sum(z**k / math.factorial(k) for k in range(ORDERS[method] + 1))
    assert number(block(torch.ones(1, 1, dtype=torch.float64))) == pytest.approx(expected, rel=1e-14)


def test_heun2_is_the_explicit_trapezoid_and_midpoint_is_not():
    x, h = torch.tensor([[0.7]], dtype=torch.float64), 0.5
    result = {
        method: number(
            ODEBlock([Function(torch.sin)], final_time=h, solver=Solver(method=method, steps=1))(x)
        )
        for method in ("euler", "heun2", "midpoint")
    }
    slope = math.sin(0.7)
    assert result["euler"] == pytest.approx(0.7 + h * slope, rel=1e-15)
    assert result["heun2"] == pytest.approx(0.7 + h / 2 * (slope + math.sin(0.7 + h * slope)), rel=1e-15)
    assert result["midpoint"] == pytest.approx(0.7 + h * math.sin(0.7 + h / 2 * slope), rel=1e-15)


@pytest.mark.parametrize("method", FIXED_GRID)
@pytest.mark.parametrize(("layers", "steps"), [(1, 1), (1, 3), (2, 8), (4, 4)])
def test_nfe_is_steps_times_stages(method, layers, steps):
    calls = []

    def field(state):
        calls.append(state.shape)
        return -state

    block = ODEBlock([Function(field)] * layers, final_time=0.7, solver=Solver(method=method, steps=steps))
    for _ in range(2):
        calls.clear()
        block(torch.ones(2, 3))
        assert block.nfe == len(calls) == steps * FIXED_GRID[method]


@pytest.mark.parametrize("spec", [s for s in SPECS if "fixed_step" in s.claims], ids=lambda s: s.name)
def test_registered_fixed_step_models_count_steps_times_stages(spec):
    model = build(spec.name)
    model(images(3))
    solvers = [m.solver for m in model.modules() if isinstance(m, ODEBlock)]
    assert model.flow.nfe == sum(s.steps * FIXED_GRID[s.method] for s in solvers) > 0


def test_nfe_of_the_core_models():
    expected = {"resnet": 4, "node": 16, "h-node": 16, "ch-node": 16}
    for name, nfe in expected.items():
        model = build(name)
        model(images(2))
        assert model.flow.nfe == nfe


@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_methods_meet_a_tight_tolerance_and_work_harder_on_stiff_fields(method):
    matrix, x = normal(3, 3), normal(3, 2, seed=1)
    solver = Solver(method=method, rtol=1e-6, atol=1e-8)
    block = ODEBlock([Matrix(matrix)], final_time=1.0, solver=solver)
    torch.testing.assert_close(block(x), torch.linalg.matrix_exp(matrix) @ x, rtol=1e-4, atol=1e-4)
    easy = block.nfe
    hard = ODEBlock([Matrix(10 * matrix - 40 * torch.eye(3))], final_time=1.0, solver=solver)
    hard(x)
    assert 0 < easy < hard.nfe


def test_a_solver_that_gives_up_is_a_failure_and_not_an_answer():
    """x' = x^2 from 1 is infinite at time 1."""
    block = ODEBlock([Function(torch.square)], final_time=2.0, solver=Solver(method="dopri5"))
    with pytest.raises(SolverFailure, match="dopri5 failed"):
        block(torch.ones(1, 1))


def test_wrong_solvers_are_refused():
    with pytest.raises(UnknownName, match="solver 'rk44': did you mean rk4"):
        Solver(method="rk44")
    with pytest.raises(InvalidArgument, match="steps must be at least 1 or"):
        Solver(steps=0)
    with pytest.raises(InvalidArgument, match="6 solver steps cannot be shared equally by 4 layers"):
        ODEBlock([nn.Identity()] * 4, final_time=1.0, solver=Solver(steps=6))
    for time in (0.0, -1.0, math.nan):
        with pytest.raises(InvalidArgument, match=r"final_time must be (greater than 0|finite), not"):
            ODEBlock([nn.Identity()], final_time=time, solver=Solver())


def test_solvers_describe_themselves():
    assert str(Solver(method="rk4", steps=8)) == "rk4 8 steps"
    assert str(Solver(method="dopri5", rtol=1e-3, atol=1e-4)) == "dopri5 rtol=0.001 atol=0.0001"
    assert "rk4 8 steps" in repr(
        ODEBlock([nn.Identity()], final_time=1, solver=Solver(method="rk4", steps=8))
    )


def test_only_the_adaptive_node_depends_on_batch_mates():
    batch = torch.cat([images(6), torch.zeros(1, *SHAPE), torch.ones(1, *SHAPE)])

    def change(name: str) -> float:
        model = build(name)
        with torch.no_grad():
            alone = torch.cat([model(image[None]) for image in batch])
            return float((alone - model(batch)).abs().max() / alone.abs().max())

    assert change("node") < 1e-5
    assert change("node-dopri5") > 3e-5


# --- the equations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "equation"),
    [
        (ResNetLayer(4), lambda K, b, J, x: np.tanh(K.T @ x + b)),
        (TanhLayer(4), lambda K, b, J, x: np.tanh(K @ x + b)),
        (HamiltonianLayer(4), lambda K, b, J, x: J @ K @ np.tanh(K.T @ x + b)),
    ],
    ids=["resnet", "node", "h-node"],
)
def test_fields(layer, equation):
    layer = layer.double()
    with torch.no_grad():
        layer.b.copy_(normal(4, 1, seed=5))
    K, b, x = (t.detach().numpy() for t in (layer.K, layer.b, normal(4, 6)))
    J = np.block([[np.zeros((2, 2)), -np.eye(2)], [np.eye(2), np.zeros((2, 2))]])
    np.testing.assert_allclose(layer(torch.from_numpy(x)).detach(), equation(K, b, J, x), rtol=1e-12)


def test_field_of_ch_node():
    layer = ContractiveLayer(4, kappa=0.3).double()
    K, b, x = (t.detach().numpy() for t in (layer.K, layer.b, normal(4, 6)))
    F = np.block([[np.zeros((2, 2)), -np.eye(2)], [np.eye(2), np.zeros((2, 2))]]) - 1.7 * np.eye(4)
    expected = F @ (K @ np.tanh(K.T @ x + b) + 0.09 * x)
    actual = layer(torch.from_numpy(x), gamma=torch.tensor(1.7, dtype=torch.float64))
    np.testing.assert_allclose(actual.detach(), expected, rtol=1e-12)


def test_a_resnet_is_its_residual_recursion():
    model = build("resnet").double()
    with torch.no_grad():
        x = model.stem(model.normalise(images().double())).transpose(0, 1)
        shape, x = x.shape, x.reshape(len(x), -1)
        for layer in model.flow.layers:
            x = x + 0.5 * torch.tanh(layer.K.T @ x + layer.b)
        logits = model.head(x.reshape(shape).transpose(0, 1).flatten(1))
        torch.testing.assert_close(model(images().double()), logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [2, 8, 16])
def test_J_is_skew_and_orthogonal(width):
    J = symplectic_matrix(width)
    assert torch.equal(J.T, -J)
    assert torch.equal(J @ J.T, torch.eye(width))


@pytest.mark.parametrize("width", [0, 1, 7])
def test_an_odd_width_is_refused(width):
    with pytest.raises(InvalidArgument, match="even width"):
        symplectic_matrix(width)


def test_log_cosh_does_not_overflow_and_its_gradient_is_tanh():
    x = torch.tensor([-1e4, -3.0, -1e-3, 0.5, 1e4], dtype=torch.float64, requires_grad=True)
    result = log_cosh(x)
    assert number(result[0]) == pytest.approx(1e4 - math.log(2))
    assert number(result[1]) == pytest.approx(math.log(math.cosh(3)), rel=1e-14)
    assert float(log_cosh(torch.zeros(1))) == pytest.approx(0, abs=1e-7)
    (gradient,) = torch.autograd.grad(result.sum(), x)
    torch.testing.assert_close(gradient, torch.tanh(x.detach()))


@pytest.mark.parametrize("layer", [HamiltonianLayer(8), ContractiveLayer(8, kappa=0.4)], ids=["h", "ch"])
def test_the_field_follows_the_gradient_of_the_energy(layer):
    layer = layer.double()
    x = normal(8, 5).requires_grad_(True)
    (gradient,) = torch.autograd.grad(layer.energy(x).sum(), x)
    if isinstance(layer, ContractiveLayer):
        field, gamma = layer(x, gamma=torch.tensor(0.9, dtype=torch.float64)), 0.9
    else:
        field, gamma = layer(x), 0.0
    torch.testing.assert_close(field, layer.J @ gradient - gamma * gradient)


def test_h_node_conserves_its_energy():
    layer = HamiltonianLayer(8).double()
    x = normal(8, 20)
    block = ODEBlock([layer], final_time=2.0, solver=Solver(method="rk4", steps=400))
    with torch.no_grad():
        before, after = layer.energy(x), layer.energy(block(x))
    assert float((before - after).abs().max()) < 1e-8
    assert number((block(x) - x).norm()) > 1, "the state must move for this to say anything"


def test_ch_node_loses_energy_at_the_rate_of_its_gradient():
    layer = ContractiveLayer(8, kappa=0.55, gain=0.5).double()
    x = normal(8, 20)
    energies = []
    for time in (0.25, 0.5, 1.0):
        flow = ContractiveFlow(
            [layer], kappa=0.55, margin=0.05, final_time=time, solver=Solver(method="rk4", steps=200)
        )
        with torch.no_grad():
            energies.append(layer.energy(flow(x)))
    energies.insert(0, layer.energy(x).detach())
    assert all(bool((later < earlier).all()) for earlier, later in itertools.pairwise(energies))
    gradient = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(layer.energy(gradient).sum(), gradient)
    derivative = (slope * layer(x, gamma=flow.gamma())).sum(0)
    torch.testing.assert_close(derivative, -flow.gamma() * slope.square().sum(0))


# --- contraction --------------------------------------------------------------------------------


def flow_of(*weights, kappa: float = 0.55, margin: float = 0.05, dtype=torch.float64) -> ContractiveFlow:
    layers = [ContractiveLayer(len(K), kappa=kappa) for K in weights]
    flow = ContractiveFlow(
        layers, kappa=kappa, margin=margin, final_time=1.0, solver=Solver(steps=2 * len(layers))
    ).to(dtype)
    with torch.no_grad():
        for layer, K in zip(layers, weights, strict=True):
            layer.K.copy_(torch.as_tensor(K))
    return flow


@pytest.mark.parametrize("kappa", [0.02, 0.55, 2.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_gamma_is_its_formula(kappa, scale):
    K = [scale * normal(8, 8, seed=s).numpy() for s in range(3)]
    flow = flow_of(*K, kappa=kappa, margin=0.2)
    c1 = kappa**2
    c2 = kappa**2 + max(np.linalg.norm(k, 2) for k in K) ** 2
    a = (c2 - c1) / (c2 + c1)
    one_less_a2 = 4 * c1 * c2 / (c1 + c2) ** 2  # 1 - a^2 without cancellation
    assert number(flow.gamma()) == pytest.approx(1.2 * a / math.sqrt(one_less_a2), rel=1e-10)
    bounds = flow.bounds()
    assert bounds["c1"] == pytest.approx(c1)
    assert bounds["c2"] == pytest.approx(c2)
    m, d, gamma = (c1 + c2) / 2, (c2 - c1) / 2, bounds["gamma"]
    assert bounds["rho"] == pytest.approx(gamma * m - d * math.sqrt(1 + gamma**2), rel=1e-6)


def test_the_threshold_is_where_the_rate_changes_sign():
    sigma, kappa = torch.tensor(1.3, dtype=torch.float64), 0.4
    gamma = float(contraction_threshold(sigma, kappa))
    c1, c2 = kappa**2, kappa**2 + 1.3**2
    assert contraction_rate(0.999 * gamma, c1, c2) < 0 < contraction_rate(1.001 * gamma, c1, c2)
    assert contraction_rate(gamma, c1, c2) == pytest.approx(0, abs=1e-12)


@given(
    direction=hnp.arrays(np.float64, (4, 4), elements=st.floats(-1, 1)),
    exponent=st.floats(-6, 6),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_rate_is_positive_for_every_K(direction, exponent, dtype):
    flow = flow_of(direction * 10**exponent, dtype=dtype)
    bounds = flow.bounds()
    assert all(math.isfinite(value) for value in bounds.values())
    assert bounds["rho"] > 0
    (gradient,) = torch.autograd.grad(flow.gamma(), flow.layers[0].K)
    assert bool(gradient.isfinite().all())


def test_without_weights_the_flow_still_contracts_and_trains():
    flow = flow_of(np.zeros((4, 4)))
    assert number(flow.gamma()) == pytest.approx(1.05e-3)
    assert flow.bounds()["rho"] == pytest.approx(1.05e-3 * 0.55**2)
    flow(normal(4, 3)).sum().backward()
    assert bool(flow.layers[0].K.grad.isfinite().all())


def jacobian(flow: ContractiveFlow, state: torch.Tensor) -> np.ndarray:
    (field,) = flow.fields()
    return torch.autograd.functional.jacobian(lambda x: field(x[:, None])[:, 0], state).numpy()


def growth(matrix: np.ndarray) -> float:
    """Largest eigenvalue of the symmetric part: the one-sided Lipschitz constant of a linear field."""
    return float(np.linalg.eigvalsh((matrix + matrix.T) / 2).max())


@given(st.integers(0, 2**31), st.floats(0.05, 20))
def test_no_two_states_drift_apart_faster_than_the_rate(seed, scale):
    flow = flow_of(scale * normal(8, 8, seed=seed).numpy(), 0.5 * scale * normal(8, 8, seed=seed + 1).numpy())
    rho = flow.bounds()["rho"]
    x, y = normal(8, 500, seed=seed + 2), normal(8, 500, seed=seed + 3)
    with torch.no_grad():
        for field in flow.fields():
            for other in (y, x + 1e-3 * y):
                gap = x - other
                rates = ((field(x) - field(other)) * gap).sum(0) / gap.square().sum(0)
                assert float(rates.max()) <= -rho + 1e-9 * scale**2


@pytest.mark.parametrize("scale", [0.05, 0.5, 5.0])
def test_the_bound_holds_at_every_vertex(scale):
    """The growth is convex in D = diag tanh', so its maximum over the box is at one of 2^8 vertices."""
    K = scale * normal(8, 8).numpy()
    flow = flow_of(K)
    bounds = flow.bounds()
    F = symplectic_matrix(8).numpy() - bounds["gamma"] * np.eye(8)
    worst = max(
        growth(F @ ((K * np.array(vertex)) @ K.T + 0.55**2 * np.eye(8)))
        for vertex in itertools.product((0.0, 1.0), repeat=8)
    )
    assert worst <= -bounds["rho"] * (1 - 1e-9)


def test_the_bound_is_attained():
    """K = s I, half of the units saturated: Q has the eigenvalues c2 and c1, in pairs that J couples."""
    flow = flow_of(1.5 * np.eye(8))
    with torch.no_grad():
        flow.layers[0].b[4:] = 1e3
    matrix = jacobian(flow, torch.zeros(8, dtype=torch.float64))
    rho = flow.bounds()["rho"]
    assert growth(matrix) == pytest.approx(-rho, rel=1e-9)
    _, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    step = 1e-4 * torch.from_numpy(vectors[:, -1:])
    (field,) = flow.fields()
    with torch.no_grad():
        rate = float(((field(step) - field(-step)) * step).sum() / (2 * step.square().sum()))
    assert rate == pytest.approx(-rho, rel=1e-5)


def test_below_the_threshold_the_tight_case_expands():
    flow = flow_of(1.5 * np.eye(8), margin=0.05)
    with torch.no_grad():
        flow.layers[0].b[4:] = 1e3
    flow.margin = -0.01
    assert growth(jacobian(flow, torch.zeros(8, dtype=torch.float64))) > 0


def test_a_fine_solve_contracts_at_the_rate():
    flow = flow_of(normal(8, 8).numpy() / 3)
    flow.solver = Solver(method="rk4", steps=200)
    x, y = normal(8, 200, seed=1), normal(8, 200, seed=2)
    with torch.no_grad():
        ratio = (flow(x) - flow(y)).norm(dim=0) / (x - y).norm(dim=0)
    assert float(ratio.max()) <= math.exp(-flow.bounds()["rho"]) + 1e-9


def test_gradients_flow_through_gamma():
    x = normal(2, 3)

    def final(K: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        flow = ContractiveFlow(
            [ContractiveLayer(2, kappa=0.5)], kappa=0.5, margin=0.1, final_time=1.0, solver=Solver(steps=2)
        ).double()
        return torch.func.functional_call(flow, {"layers.0.K": K, "layers.0.b": b}, (x,))

    K, b = normal(2, 2, seed=4).requires_grad_(True), normal(2, 1, seed=5).requires_grad_(True)
    assert torch.autograd.gradcheck(final, (K, b))


@pytest.mark.parametrize(("kappa", "margin"), [(0.0, 0.1), (-1.0, 0.1), (0.5, 0.0), (math.nan, 0.1)])
def test_a_flow_that_cannot_contract_is_refused(kappa, margin):
    with pytest.raises(InvalidArgument, match="kappa and margin must be positive"):
        ContractiveFlow(
            [ContractiveLayer(2, kappa=0.5)], kappa=kappa, margin=margin, final_time=1.0, solver=Solver()
        )


# --- what the models share ----------------------------------------------------------------------


def test_smoothness_penalty_by_hand():
    layers = [ChannelLayer(2) for _ in range(3)]
    with torch.no_grad():
        for layer, value in zip(layers, (0.0, 1.0, 3.0), strict=True):
            layer.K.fill_(value)
            layer.b.fill_(-value)
    # |K2 - K1|^2 = 4, |b2 - b1|^2 = 2; then differences of 2: 16 and 8
    assert number(smoothness_penalty(layers, step=0.5, weight=0.1)) == pytest.approx(0.5 * 0.1 * 0.5 * 30)
    assert number(smoothness_penalty(layers[:1], step=0.5, weight=0.1)) == 0


@pytest.mark.parametrize("name", ["resnet", "node", "h-node", "ch-node"])
def test_the_penalty_of_a_model_has_its_weight_and_step(name):
    model = build(name, smoothing=0.25)
    layers = model.flow.layers
    total = sum(
        number((b.K - a.K).square().sum() + (b.b - a.b).square().sum()) for a, b in itertools.pairwise(layers)
    )
    step = model.flow.final_time / len(layers)
    assert number(model.penalty()) == pytest.approx(0.5 * 0.25 * step * total, rel=1e-5)


def test_normalise_is_fitted_per_channel_and_travels_with_the_weights():
    batch = torch.rand(50, 3, 4, 4) * torch.tensor([0.2, 0.5, 1.0]).view(1, 3, 1, 1)
    batch[:, 0] = 0.25
    layer = Normalise(3)
    layer.fit(batch)
    pixels = batch.double().transpose(0, 1).flatten(1).numpy()
    np.testing.assert_allclose(layer.mean.flatten(), pixels.mean(1), rtol=1e-5)
    np.testing.assert_allclose(layer.std.flatten()[1:], pixels[1:].std(1, ddof=1), rtol=1e-5)
    assert float(layer.std.flatten()[0]) == pytest.approx(1e-3), "a constant channel is not divided by 0"
    other = Normalise(3)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(batch), layer(batch))


@pytest.mark.parametrize("name", ["resnet", "node", "node-dopri5", "h-node", "ch-node"])
def test_normalisation_is_in_the_state_dict_and_J_is_not(name):
    state = build(name).state_dict()
    assert {"normalise.mean", "normalise.std"} <= set(state)
    assert not [key for key in state if key.endswith(".J")]
