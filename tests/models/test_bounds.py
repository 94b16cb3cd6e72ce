"""Lipschitz bounds: never exceeded, attained where exact, and broken by the published Euler network."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from robustode._errors import InvalidArgument
from robustode.models import MODELS, ODEBlock, Solver, SolverFailure
from robustode.models.ch_node import contraction_rate
from robustode.models.ode.lipschitz import (
    CONVEX_COMBINATIONS,
    MAX_ENUMERATED_STATE,
    NONNEGATIVE_TABLEAUS,
    TanhForm,
    contractive_euler_bound,
    contractive_step_limit,
)
from torch import nn

METHODS = sorted({*CONVEX_COMBINATIONS, *NONNEGATIVE_TABLEAUS})
FLOWS = sorted(spec.name for spec in MODELS if "fixed_step" in spec.claims)
seeds = st.integers(0, 2**31)
sizes = st.floats(0.01, 3.0)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def matrix(seed: int, n: int = 4, size: float = 1.0) -> torch.Tensor:
    return size * torch.randn(n, n, dtype=torch.float64, generator=generator(seed))


def form(seed: int, size: float = 1.0, n: int = 4) -> TanhForm:
    return TanhForm(A=matrix(seed, n, size), B=matrix(seed + 1, n), C=matrix(seed + 2, n, 0.3 * size))


class Field(nn.Module):
    def __init__(self, tanh_form: TanhForm) -> None:
        super().__init__()
        self._form = tanh_form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._form.A @ torch.tanh(self._form.B @ x) + self._form.C @ x

    def tanh_form(self) -> TanhForm:
        return self._form


def stretch(map_, n: int, seed: int) -> float:
    """Largest observed |map(x) - map(y)| / |x - y|, near and far."""
    x = 3 * torch.randn(n, 200, dtype=torch.float64, generator=generator(seed))
    step = torch.randn(n, 200, dtype=torch.float64, generator=generator(seed + 1))
    ratios = [(map_(x + s * step) - map_(x)).norm(dim=0) / (s * step).norm(dim=0) for s in (1e-4, 1.0, 10.0)]
    return float(torch.stack(ratios).max())


@settings(deadline=None, max_examples=60)
@given(seeds, sizes, st.sampled_from(METHODS), st.floats(0.01, 1.0))
def test_no_step_stretches_more_than_its_bound(seed, size, method, h):
    f = form(seed, size)
    block = ODEBlock([Field(f)], final_time=h, solver=Solver(method=method, steps=1))
    assert stretch(block, 4, seed) <= f.step_bound(h, method) * (1 + 1e-9)


@settings(deadline=None, max_examples=40)
@given(seeds, sizes)
def test_no_field_exceeds_its_constants(seed, size):
    f = form(seed, size)
    field = Field(f)
    assert stretch(field, 4, seed) <= f.lipschitz() * (1 + 1e-9)
    x, y = (3 * torch.randn(4, 300, dtype=torch.float64, generator=generator(seed + k)) for k in (5, 6))
    rate = ((field(x) - field(y)) * (x - y)).sum(0) / (x - y).square().sum(0)
    assert float(rate.max()) <= f.logarithmic_norm() + 1e-9


def test_the_euler_bound_is_attained_by_a_linear_field():
    zero = torch.zeros(3, 3, dtype=torch.float64)
    f = TanhForm(A=zero, B=zero, C=matrix(7, 3))
    step = torch.eye(3, dtype=torch.float64) + 0.3 * f.C
    assert f.euler_bound(0.3) == pytest.approx(float(torch.linalg.matrix_norm(step, ord=2)), rel=1e-12)
    assert f.lipschitz() == pytest.approx(float(torch.linalg.matrix_norm(f.C, ord=2)), rel=1e-12)
    assert f.logarithmic_norm() == pytest.approx(float(torch.linalg.eigvalsh((f.C + f.C.T) / 2).max()))


def test_the_euler_bound_is_attained_at_the_origin_of_a_tanh_field():
    K = matrix(3)
    f = TanhForm(A=K, B=K.T, C=torch.zeros_like(K))  # tanh' = 1 at 0, and K K^T >= K D K^T
    tiny = 1e-7 * torch.linalg.svd(K)[0][:, :1]
    moved = tiny + 0.5 * (f.A @ torch.tanh(f.B @ tiny))
    assert float(moved.norm() / tiny.norm()) == pytest.approx(f.euler_bound(0.5), rel=1e-9)


def test_a_state_too_large_for_enumeration_is_refused():
    with pytest.raises(ValueError, match=f"{MAX_ENUMERATED_STATE + 1} .*{MAX_ENUMERATED_STATE}"):
        form(0, n=MAX_ENUMERATED_STATE + 1).jacobians()


def test_a_method_without_a_bound_is_refused():
    with pytest.raises(ValueError, match="rk4"):
        form(0).step_bound(0.1, "rk4")


# --- contraction by design ----------------------------------------------------------------------

constants = st.tuples(st.floats(1e-3, 10.0), st.floats(1e-3, 100.0), st.floats(0.01, 3.0))


def contractive(case: tuple[float, float, float]) -> dict[str, float]:
    c1, width, margin = case
    c2 = c1 + width
    return {"gamma": (1 + margin) * (c2 - c1) / (2 * math.sqrt(c1 * c2)), "c1": c1, "c2": c2}


@settings(deadline=None, max_examples=300)
@given(constants)
def test_the_step_limit_is_where_the_euler_bound_crosses_one(case):
    known = contractive(case)
    limit = contractive_step_limit(rho=contraction_rate(**known), **known)
    assert contractive_euler_bound(0.99 * limit, **known) < 1
    assert contractive_euler_bound(1.01 * limit, **known) > 1


@settings(deadline=None, max_examples=200)
@given(seeds, constants, st.floats(1e-3, 0.5))
def test_the_closed_form_covers_the_sharper_vertex_bound(seed, case, h):
    known = contractive(case)
    K = matrix(seed, 4)
    K = K * math.sqrt(known["c2"] - known["c1"]) / torch.linalg.matrix_norm(K, ord=2)
    J = torch.kron(torch.tensor([[0.0, -1.0], [1.0, 0.0]]), torch.eye(2)).double()
    F = J - known["gamma"] * torch.eye(4).double()
    vertex = TanhForm(A=F @ K, B=K.T, C=known["c1"] * F)
    assert vertex.euler_bound(h) <= contractive_euler_bound(h, **known) * (1 + 1e-9)
    assert vertex.logarithmic_norm() <= -contraction_rate(**known) + 1e-9 * known["c2"] * known["gamma"]


def build(name: str, seed: int = 0, **overrides) -> nn.Module:
    spec = MODELS.get(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return spec.build((1, 8, 8), 10, **spec.resolve(overrides)).eval()


@pytest.mark.parametrize("method", sorted(CONVEX_COMBINATIONS))
def test_a_contractive_grid_is_the_smallest_whose_step_bound_is_below_one(method):
    model = build("ch-node", method=method, steps="contractive")
    known, steps = model.flow.bounds(), model.flow.steps_per_layer()
    gamma, c1, c2 = known["gamma"], known["c1"], known["c2"]
    duration = model.flow.final_time / len(model.flow.layers)

    def bound(n: int) -> float:
        return CONVEX_COMBINATIONS[method](contractive_euler_bound(duration / n, gamma, c1, c2))

    assert bound(steps) < 1
    assert steps == 1 or bound(steps - 1) >= 1
    model(torch.rand(2, 1, 8, 8))
    assert model.flow.nfe == steps * len(model.flow.layers) * {"euler": 1, "heun2": 2, "ssprk3": 3}[method]
    assert model.flow.lipschitz_bounds()["solver"] < 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FLOWS)
def test_every_flow_stays_within_its_bound(name, seed):
    flow = build(name, seed).double().flow
    with torch.no_grad():
        observed = stretch(flow, 64 if name == "ch-node-lipschitz" else 8, seed)
    assert 0 < observed <= flow.solver_bound() * (1 + 1e-9)


def test_the_published_euler_network_does_not_contract_although_its_flow_does():
    overrides = {"method": "euler", "steps": 4, "final_time": 2.0, "kappa": 0.02, "gain": math.sqrt(8)}
    flow = build("ch-node", **overrides).double().flow
    assert flow.bounds()["rho"] > 0
    assert flow.lipschitz_bounds()["exact_flow"] <= 1
    assert flow.lipschitz_bounds()["solver"] > 1
    with torch.no_grad():
        assert stretch(flow, 8, 0) > 10


def test_an_adaptive_solver_has_no_bound_of_its_own():
    assert set(build("node-dopri5").flow.lipschitz_bounds()) == {"exact_flow"}


def test_contractive_steps_are_refused_where_they_mean_nothing():
    with pytest.raises(InvalidArgument, match="needs euler or heun2 or ssprk3"):
        Solver(method="rk4", steps="contractive")
    with pytest.raises(InvalidArgument, match="a whole number or 'contractive'"):
        Solver(steps="many")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="contracts by design"):
        build("h-node", steps="contractive")(torch.rand(1, 1, 8, 8))
    with pytest.raises(SolverFailure, match="raise kappa or margin"):
        build("ch-node", steps="contractive", gain=1e3)(torch.rand(1, 1, 8, 8))
