"""The audits of the solver are asked of models that call torchdiffeq, torchdyn or torchode themselves."""

from __future__ import annotations

from functools import partial

import foreign_models as foreign
import pytest
import torch
import torchdiffeq
from gallery.base import Case, context_of, fit, shorten_audits
from robustode.bench.audits.context import Context
from robustode.bench.audits.library import all_audits
from robustode.bench.audits.registry import AUDITS, AuditResult
from robustode.bench.evaluation.dynamics import measure_dynamics
from robustode.bench.records.record import Cell
from torch import nn

pytestmark = pytest.mark.filterwarnings("default")  # those of torchdyn and torchode at import
OF_THE_SOLVER = ("solver-sensitivity", "solver-transfer", "tolerance-sweep", "nfe-and-stiffness")
FIXED = {
    "torchdiffeq": partial(foreign.Diffeq, method="rk4", options={"step_size": 0.125}),
    "adjoint": partial(foreign.Diffeq, torchdiffeq.odeint_adjoint, method="rk4", options={"step_size": 0.1}),
    "torchdyn": partial(foreign.Torchdyn, 9, solver="rk4"),
    "torchode": partial(foreign.Torchode, dt=0.05),
    "tuple": partial(foreign.TupleState, method="rk4", options={"step_size": 0.125}),
    "twice": lambda: foreign.Twice(*(foreign.Diffeq(method="rk4", times=foreign.grid) for _ in range(2))),
}
ADAPTIVE = {
    "torchdiffeq": partial(foreign.Diffeq, rtol=1e-4, atol=1e-4),
    "adjoint": partial(foreign.Diffeq, torchdiffeq.odeint_adjoint, rtol=1e-4, atol=1e-4),
    "torchdyn": partial(foreign.Torchdyn, solver="dopri5", sensitivity="adjoint"),
    "torchode": foreign.Torchode,
}
all_audits()  # registers every check


def model_of(flow: object) -> nn.Module:
    model = foreign.build(flow, 64, 10)
    fit(model, model.head)
    return model


def look(name: str, model: nn.Module, **changes: object) -> AuditResult:
    claims = changes.pop("claims", frozenset())
    return AUDITS.get(name)(context_of(Case(model, claims=claims), 0, samples=16, **changes))


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    shorten_audits(monkeypatch)


def skip_without(name: str) -> None:
    if name in ("torchdyn", "torchode"):
        pytest.importorskip(name)


@pytest.mark.parametrize("audit", ["gradient-fidelity", "solver-transfer", "tolerance-sweep"])
def test_a_model_that_solves_again_in_its_backward_pass_is_asked_as_one_that_does_not(audit):
    kinds = (foreign.Diffeq, foreign.Checkpointed)
    plain, again = (look(audit, model_of(partial(kind, rtol=1e-5, atol=1e-5))) for kind in kinds)
    assert (again.verdict, again.value) == (plain.verdict, plain.value)
    assert again.verdict == "pass"


@pytest.mark.parametrize("name", FIXED)
def test_a_model_on_a_fine_grid_passes_and_its_jacobian_is_measured(name):
    skip_without(name)
    model = model_of(FIXED[name])
    found = {audit: look(audit, model) for audit in OF_THE_SOLVER}
    verdicts = {audit: result.verdict for audit, result in found.items()}
    assert verdicts == dict.fromkeys(OF_THE_SOLVER, "pass") | {"tolerance-sweep": "not applicable"}
    assert "is not adaptive" in found["tolerance-sweep"].sentence
    assert found["solver-sensitivity"].axes[0].startswith("own solver, h/2, h/4, ")
    assert "Jacobian reaches" in found["nfe-and-stiffness"].sentence


@pytest.mark.parametrize("name", ADAPTIVE)
def test_an_adaptive_model_passes_and_its_tolerances_are_swept(name):
    skip_without(name)
    model = model_of(ADAPTIVE[name])
    found = {audit: look(audit, model) for audit in OF_THE_SOLVER}
    assert {audit: result.verdict for audit, result in found.items()} == dict.fromkeys(OF_THE_SOLVER, "pass")
    assert found["solver-sensitivity"].axes[0].endswith("a tight adaptive solver")
    assert len(found["tolerance-sweep"].arrays["x"]) == 5


class Spinning(nn.Module):
    """x' = A x + sin(8 x) with a rotation so fast that few steps of Euler do not follow it."""

    def __init__(self, solve, **settings):
        super().__init__()
        self.linear, self.solve, self.settings = nn.Linear(foreign.WIDTH, foreign.WIDTH), solve, settings
        with torch.no_grad():
            skew = torch.randn(foreign.WIDTH, foreign.WIDTH)
            self.linear.weight.copy_(8 * (skew - skew.T))

    def forward(self, x):
        def field(t, x, args=None):
            return self.linear(x) - x

        return self.solve(field, x, torch.linspace(0, 1, 9).to(x), **self.settings)


def by_torchdiffeq(field, x, times):
    return torchdiffeq.odeint(field, x, times, method="euler")[-1]


def by_torchdyn(field, x, times):
    from torchdyn.numerics import odeint

    return odeint(field, x, times, "euler")[1][-1]


@pytest.mark.parametrize("solve", [by_torchdiffeq, by_torchdyn])
def test_a_step_that_is_part_of_the_model_and_too_long_for_its_field_flags(solve):
    skip_without(solve.__name__.removeprefix("by_"))
    model = model_of(partial(Spinning, solve))
    assert look("solver-sensitivity", model).verdict == "flag"
    stiff = look("nfe-and-stiffness", model)
    assert (stiff.verdict, stiff.value > 2) == ("flag", True)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_gradient_by_the_other_way_is_told(name):
    skip_without(name)
    found = look("gradient-fidelity", model_of(ADAPTIVE[name]))
    adjoint = name in ("adjoint", "torchdyn")
    what = "Backpropagation through the steps" if adjoint else "The adjoint method"
    assert f"{what}, which the model does not use, would give a gradient" in found.sentence
    assert float(found.arrays["adjoint against backpropagation"].min()) > 0.9


@pytest.mark.parametrize(("rate", "verdict"), [(-2.0, "pass"), (2.0, "flag")])
@pytest.mark.parametrize("library", ["torchdiffeq", "torchode"])
def test_contraction_is_measured_on_the_field_that_is_seen(library, rate, verdict):
    skip_without(library)

    class Rate(foreign.Field):
        def forward(self, t, x):
            return rate * x

    def flow():
        made = (
            foreign.Diffeq(method="rk4", times=foreign.grid)
            if library == "torchdiffeq"
            else foreign.Torchode()
        )
        if library == "torchdiffeq":
            made.field = Rate()
        else:
            made.adjoint.step_method.term.f = Rate()
        return made

    model = model_of(flow)
    found = look("contraction", model, claims=frozenset({"contractive"}))
    assert found.verdict == verdict, found.sentence
    assert found.value == pytest.approx(torch.tensor(rate).exp().item(), rel=1e-2)
    assert look("contraction", model).verdict == "not applicable", "it claims nothing"


@pytest.mark.parametrize("name", OF_THE_SOLVER)
def test_what_cannot_be_looked_into_is_not_asked_and_what_is_known_has_none(name):
    hidden = model_of(foreign.HandWritten)
    found = look(name, hidden)
    assert found.verdict == "not asked"
    assert "ould not look inside" in found.sentence
    assert look(name, hidden, claims=frozenset({"no_ode"})).verdict == "not applicable"
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert look(name, layers).verdict == "not applicable"


def test_a_solve_that_ends_at_an_event_is_not_asked_on_another_grid():
    class Event(nn.Module):
        def __init__(self):
            super().__init__()
            self.field = foreign.Field()

        def forward(self, x):
            settings = {"event_fn": lambda t, y: t - 0.5, "rtol": 1e-4, "atol": 1e-4}
            return torchdiffeq.odeint_event(self.field, x, torch.zeros(()), **settings)[1][-1]

    model = model_of(Event)
    found = look("solver-transfer", model)
    assert (found.verdict, "event" in found.sentence) == ("not asked", True)
    assert look("tolerance-sweep", model).verdict == "pass"


def test_dynamics_follow_the_flow_of_another_library():
    import stubs

    model = model_of(FIXED["torchdiffeq"])
    context = context_of(Case(model), 0, samples=16)
    cell: Cell = stubs.cell_for("clean", 0.0, 16)
    split = stubs.split_of(context.images, context.labels)
    record = measure_dynamics(cell, model, model, split, num_classes=10, device=stubs.CPU, environment={})
    assert record.outcomes["growth_random"].shape == (9, 32)
    assert record.outcomes["time"][-1] == pytest.approx(1.0)


class ComplexState(foreign.Diffeq):
    """A linear field on complex states."""

    def forward(self, x):
        state = torch.complex(x, torch.zeros_like(x))
        return self.solve(lambda t, z: (0.5j - 0.1) * z, state, self.times.to(x), **self.settings)[-1].real


def test_a_complex_state_has_no_jacobian_and_fails_nothing():
    model = model_of(partial(ComplexState, method="rk4", options={"step_size": 0.25}))
    found = look("nfe-and-stiffness", model)
    assert found.verdict == "pass"
    assert "complex" in found.sentence


def test_one_sample_of_few_flags_no_solver(monkeypatch):
    model = model_of(FIXED["torchdiffeq"])
    logits = Context.logits

    def moved(self, images, other=None):
        found = logits(self, images, other).clone()
        if other is not None:
            found[: moved.samples] = -found[: moved.samples]
        return found

    monkeypatch.setattr(Context, "logits", moved)
    for moved.samples, verdict in ((1, "pass"), (2, "flag")):
        assert look("solver-sensitivity", model).verdict == verdict


def test_a_joint_adjoint_of_torchode_is_differentiated_and_asked_in_float64():
    pytest.importorskip("torchode")
    model = model_of(partial(foreign.Torchode, "JointBacksolveAdjoint"))
    for audit in ("finite", "zero-gradients", "lipschitz-bound"):
        assert look(audit, model).verdict in ("pass", "not applicable"), audit
    assert look("gradient-fidelity", model).verdict != "flag"
