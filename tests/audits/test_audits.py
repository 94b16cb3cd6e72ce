"""Each check of a model where it passes, flags and has nothing to say."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import stubs
import synthetic
import torch
from gallery.base import Case, Wrapped, context_of, fit, fitted, sound_model
from robustode._errors import InvalidArgument
from robustode.attacks import THREATS
from robustode.attacks.core.seeds import Purpose, stream_seeds
from robustode.bench.audits import library
from robustode.bench.audits.context import Context
from robustode.bench.audits.library import all_audits, audit_names, names_of, records_audits
from robustode.bench.audits.registry import (
    AUDITS,
    Audit,
    AuditResult,
    measured,
    not_applicable,
    register_audit,
)
from robustode.bench.audits.stored_records import StoredRecords
from robustode.bench.records.record import Record
from robustode.bench.runtime.checked_model import CheckedModel
from robustode.models import MODELS, ODEBlock, SolverFailure
from robustode.models.ch_node import ContractiveFlow
from torch import nn

audit_names()  # registers every check


def look(name: str, model: nn.Module, **changes: object) -> AuditResult:
    claims = changes.pop("claims", frozenset())
    return AUDITS.get(name)(context_of(Case(model, claims=claims), 0, **changes))


def plain() -> nn.Module:
    return stubs.Linear((1, 8, 8), 10).eval()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Told(Context):
    """A context that knows how every attack ends: how many of 100 samples survive, by name."""

    left: dict[str, int] = dataclasses.field(default_factory=dict)

    def mask(self, name: str) -> torch.Tensor:
        return torch.arange(100) < self.left[name]

    def survives(self, threat, *, among=None, model=None, eps=None):
        key = "other" if model is not None else threat.name.removesuffix("-linf")
        found = self.mask(key)
        return found if among is None else found & among

    def correct(self, images=None, model=None):
        return torch.ones(100, dtype=torch.bool)

    def pgd(self):
        return self.mask("pgd")

    def long_pgd(self):
        return self.mask("long")


def told(model: nn.Module | None = None, **left: int) -> Told:
    base = {"fgsm": 50, "pgd": 50, "long": 50, "apgd_ce": 50, "apgd_t": 50, "square": 50, "spsa": 50}
    numbers = {name.replace("_", "-"): count for name, count in (base | left).items()}
    real = context_of(Case(model or plain()), 0, samples=100)
    values = {f.name: getattr(real, f.name) for f in dataclasses.fields(Context)}
    return Told(**values, left=numbers)


# --- the registry -------------------------------------------------------------------------------


def test_every_check_is_registered_and_complete():
    audits = all_audits()
    assert len(audits) == 21
    assert [a.needs for a in audits] == ["model"] * 18 + ["records"] * 3
    assert all(a.title and a.cost and a.reference and a.check.__doc__ for a in audits)
    assert {a.name for a in records_audits()} == {
        "monotone-in-eps",
        "noise-below-attack",
        "certified-below-attacked",
    }


@pytest.mark.parametrize("needs", ["model", "records"])
def test_an_audit_is_called_as_its_file(needs):
    assert names_of(needs) == tuple(sorted(a.name for a in all_audits() if a.needs == needs))


def test_a_file_that_registers_no_audit_of_its_name_is_refused(monkeypatch):
    monkeypatch.setattr(library, "names_of", lambda needs: ("finite",))
    monkeypatch.setitem(library.FOLDERS, "records", "model_audits")
    with pytest.raises(InvalidArgument, match=r"model_audits\.finite must register the audit 'finite'"):
        records_audits()


def test_a_name_is_taken_once():
    with pytest.raises(InvalidArgument, match="already registered"):
        register_audit("finite", title="x", needs="model", cost="x")(lambda context: not_applicable("x"))


@pytest.mark.parametrize("bad", [{"needs": "luck"}, {"name": "No Name"}])
def test_a_check_that_cannot_be_is_refused(bad):
    good = {"name": "x", "title": "x", "needs": "model", "cost": "x", "check": lambda context: None}
    with pytest.raises(InvalidArgument):
        Audit(**(good | bad))


@pytest.mark.parametrize(("value", "outcome"), [(1.0, "pass"), (1.1, "flag"), (math.nan, "flag")])
def test_a_value_above_its_threshold_flags(value, outcome):
    assert measured(value, 1.0, "x").verdict == outcome


def test_a_verdict_is_one_of_four():
    with pytest.raises(InvalidArgument, match="one of pass, flag, not applicable, not asked"):
        AuditResult(verdict="maybe", sentence="x")


# --- checks of a model: those that the gallery does not cover ------------------------------------


def test_solver_sensitivity():
    assert look("solver-sensitivity", sound_model(0)).verdict == "pass"
    coarse = fitted("resnet", 0, gain=4.0)
    found = look("solver-sensitivity", coarse)
    assert found.verdict == "flag"
    assert "discrete network" in found.sentence
    assert found.axes[0] == "own solver, h/2, h/4, rk4 at h/2", (
        "nothing dearer once the cheap ones have said it"
    )
    for line in ("classes changed", "accuracy moved"):
        assert found.arrays[line][0] == 0
        assert len(found.arrays[line]) == len(found.arrays["x"]) == 4
    assert look("solver-sensitivity", plain()).verdict == "not asked"


@pytest.mark.parametrize(("method", "other"), [("rk4", "ssprk3"), ("euler", "rk4")])
def test_a_finer_solver_is_of_another_method_too(method, other):
    model = fitted("node", 0, layers=2, method=method, steps=8, gain=0.1)
    found = look("solver-sensitivity", model)
    assert found.verdict == "pass", found.sentence
    assert found.axes[0] == f"own solver, h/2, h/4, {other} at h/2, a tight adaptive solver"


def test_a_loose_adaptive_solver_is_held_against_finer_grids():
    loose = fitted("node-dopri5", 0, layers=1, rtol=10.0, atol=10.0, gain=4.0, final_time=2.0)
    found = look("solver-sensitivity", loose, samples=128)
    assert found.verdict == "flag"
    assert found.axes[0].startswith("own solver, rk4 in ")
    assert "tight" not in found.axes[0]
    good = look("solver-sensitivity", fitted("node-dopri5", 0, layers=1))
    assert good.verdict == "pass"
    assert good.axes[0].endswith("a tight adaptive solver")


def test_a_finer_solver_that_fails_flags_with_its_plot():
    class Brittle(ODEBlock):
        def integrate(self, field, state, *, duration, steps):
            if steps > 8:
                raise SolverFailure("gave up")
            return super().integrate(field, state, duration=duration, steps=steps)

    model = fitted("node", 0, layers=1, steps=8)
    model.flow.__class__ = Brittle
    found = look("solver-sensitivity", model)
    assert (found.verdict, found.value) == ("flag", 1.0)
    assert "h/2" in found.sentence
    assert list(found.arrays["classes changed"]) == [0, 100]


ADJOINT = "adjoint against backpropagation"


@pytest.mark.parametrize(
    ("name", "hyperparameters", "least", "most"),
    [
        ("node", {"layers": 1, "steps": 40, "method": "rk4"}, 0.9999, 1.0001),
        ("node-dopri5", {"layers": 1}, 0.99, 1.0001),
        ("node", {"layers": 1, "steps": 4, "gain": 3.0, "method": "euler"}, -1.0, 0.99),
    ],
)
def test_the_adjoint_gradient_is_reported_and_does_not_count(name, hyperparameters, least, most):
    found = look("gradient-fidelity", fitted(name, 0, **hyperparameters))
    assert found.verdict == "pass", found.sentence
    assert "which the model does not use" in found.sentence
    assert least <= found.arrays[ADJOINT].min() <= most
    assert len(found.arrays[ADJOINT]) == len(found.arrays["x"])


@pytest.mark.parametrize("model", [plain(), fitted("node", 0, layers=1, method="ssprk3", steps=8)])
def test_no_adjoint_without_a_solver_that_has_one(model):
    found = look("gradient-fidelity", model)
    assert found.verdict == "pass"
    assert "adjoint" not in found.sentence


def test_an_adjoint_solve_that_fails_is_told(monkeypatch):
    def give_up(*arguments, **options):
        raise AssertionError("underflow in dt")

    monkeypatch.setattr("robustode.bench.solvers.ode_block.odeint_adjoint", give_up)
    found = look("gradient-fidelity", sound_model(0))
    assert found.verdict == "pass"
    assert "fails here: " in found.sentence
    assert "underflow in dt" in found.sentence
    assert ADJOINT not in found.arrays


def test_stiffness():
    assert look("nfe-and-stiffness", sound_model(0)).verdict == "pass"
    stiff = look("nfe-and-stiffness", fitted("resnet", 0, gain=10.0))
    assert stiff.verdict == "flag"
    assert stiff.value > 2
    assert look("nfe-and-stiffness", plain()).verdict == "not asked"


def test_a_jacobian_that_was_not_formed_is_told():
    adaptive = look("nfe-and-stiffness", fitted("node-dopri5", 0, layers=1))
    assert adaptive.verdict == "pass"
    assert "was not computed (the steps of an adaptive solver are its own)" in adaptive.sentence
    assert adaptive.threshold == 5, "the number of evaluations is compared"
    assert len(adaptive.arrays["NFE, sorted"]) == 32


def test_a_state_too_wide_for_its_jacobian_is_told(monkeypatch):
    monkeypatch.setattr("robustode.bench.audits.model_audits.nfe_and_stiffness.WIDEST", 4)
    wide = look("nfe-and-stiffness", sound_model(0))
    assert "was not computed (the state is no vector of at most 4 channels)" in wide.sentence
    assert wide.threshold == 5


def test_uneven_cost_flags():
    class Uneven(Wrapped):
        def forward(self, images):
            stubs.Still(100 if float(images.mean()) > self.bright else 1)(images)
            return super().forward(images)

    model = Uneven(plain())
    means = context_of(Case(model), 0).images.flatten(1).mean(1).sort().values
    model.bright = float(means[-2])
    assert look("nfe-and-stiffness", model).verdict == "flag"
    model.bright = 2.0
    assert look("nfe-and-stiffness", model).verdict == "pass"


def test_solver_failure_flags():
    class GivesUp(Wrapped):
        def forward(self, images):
            raise SolverFailure("dopri5 failed: underflow in dt")

    found = look("nfe-and-stiffness", GivesUp(plain()))
    assert found.verdict == "flag"
    assert "underflow" in found.sentence


@pytest.mark.parametrize(
    ("name", "left", "outcome"),
    [
        ("step-counts", {}, "pass"),
        ("step-counts", {"fgsm": 52, "pgd": 52, "long": 50}, "pass"),
        ("step-counts", {"fgsm": 49}, "pass"),
        ("step-counts", {"fgsm": 48}, "flag"),
        ("step-counts", {"pgd": 53, "fgsm": 60}, "flag"),
        ("step-counts", {"apgd_ce": 55}, "pass"),
        ("step-counts", {"apgd_ce": 56}, "flag"),
        ("black-box", {}, "pass"),
        ("black-box", {"square": 49}, "pass"),
        ("black-box", {"square": 48}, "flag"),
        ("black-box", {"spsa": 48}, "flag"),
        ("black-box", {"square": 60}, "pass"),
        ("unbounded-attack", {"pgd": 0}, "pass"),
        ("unbounded-attack", {"apgd_t": 0}, "pass"),
        ("unbounded-attack", {"apgd_t": 1}, "flag"),
    ],
)
def test_thresholds_of_attacks(name, left, outcome):
    found = AUDITS.get(name)(told(**left))
    assert found.verdict == outcome, found.sentence


def test_a_stored_attack_counts_as_white_box():
    correct = np.ones((1, 100), bool)
    correct[0, :3] = False
    record = synthetic.record_of(
        stubs.cell_for("pgd-linf", 0.05, 100), correct, environment={"created": "2026"}
    )
    context = dataclasses.replace(told(), stored=StoredRecords(records=(record,)))
    assert int(context.white_box().sum()) == 47


@pytest.mark.parametrize(("other", "outcome"), [(50, "pass"), (49, "pass"), (48, "flag")])
def test_transfer_from_other_solvers(other, outcome):
    assert AUDITS.get("solver-transfer")(told(sound_model(0), other=other)).verdict == outcome
    adaptive = fitted("node-dopri5", 0, layers=1)
    assert AUDITS.get("tolerance-sweep")(told(adaptive, other=other)).verdict == outcome


def test_no_solver_no_transfer():
    assert look("solver-transfer", plain()).verdict == "not asked"
    assert look("tolerance-sweep", sound_model(0)).verdict == "not applicable"


@pytest.mark.parametrize(("other", "outcome"), [(50, "pass"), (49, "flag")])
def test_a_frozen_backbone(other, outcome):
    model = plain()
    assert look("backbone-transfer", model).verdict == "not applicable"
    model.frozen_backbone = nn.Identity()
    found = AUDITS.get("backbone-transfer")(told(model, other=other))
    assert found.verdict == outcome


def test_a_masked_model_on_a_frozen_backbone_is_seen_through():
    class Masked(Wrapped):
        def forward(self, images):
            return (2 * super().forward(images)).round() / 2

    model = Masked(sound_model(0))
    model.frozen_backbone = sound_model(0)
    assert look("backbone-transfer", model).verdict == "flag"


def test_loss_convergence():
    weak = context_of(Case(sound_model(0)), 0)
    cell = stubs.cell_for("pgd-linf", weak.eps, len(weak.images))
    stored = {"steps": 2, "restarts": 1, "relative_step": 0.01}
    record = Record(
        cell=dataclasses.replace(cell, parameters=stored),
        outcomes={"correct": np.ones((1, 1), bool)},
    )
    check = AUDITS.get("loss-convergence")
    assert check(weak).verdict == "pass"
    assert check(dataclasses.replace(weak, stored=StoredRecords(records=(record,)))).verdict == "flag"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Climb(Context):
    """A context whose PGD climbs evenly to the last step in one restart and stays put in the other."""

    climbs: int = 0

    def threat(self, name, **parameters):
        return self

    @property
    def parameters(self):
        return {"steps": 40, "restarts": 2}

    def configure(self, **parameters):
        return self

    def __call__(self, model, images, labels, eps, seed, *, early_stopping):
        assert not early_stopping, "of a sample that is attacked no longer there is no loss to write down"
        moving = seed == stream_seeds(Purpose.AUDIT, self.seed, self.climbs, range(len(images)))
        x = images.clone().requires_grad_(True)
        slope = torch.autograd.grad(model(x).gather(1, labels[:, None]).sum(), x)[0].sign()
        for step in range(41):
            model((images - moving * 1e-4 * step * slope).detach())
        return images


@pytest.mark.parametrize("climbs", [0, 1])
def test_each_restart_is_compared_by_itself(climbs):
    real = context_of(Case(sound_model(0)), 0)
    values = {f.name: getattr(real, f.name) for f in dataclasses.fields(Context)}
    found = AUDITS.get("loss-convergence")(Climb(**values, climbs=climbs))
    assert found.verdict == "flag", found.sentence
    assert found.value == pytest.approx(10 / 40, abs=0.05)
    assert f"restart {climbs + 1} of 2" in found.sentence
    assert len(found.arrays["x"]) == 41 + 1, "the steps of one restart, and the query of its slope"


def test_an_attack_that_breaks_everything_had_arrived():
    found = look("loss-convergence", sound_model(0), samples=8)
    fooled = AUDITS.get("loss-convergence")(
        dataclasses.replace(context_of(Case(sound_model(0)), 0, samples=8), eps=1.0)
    )
    assert (found.verdict, fooled.verdict, fooled.value) == ("pass", "pass", 0.0)


def test_nothing_can_be_planted_where_logits_do_not_move():
    class Constant(nn.Module):
        def forward(self, images):
            return 0 * images.flatten(1)[:, :10] + torch.arange(10.0)

    assert look("binarisation", Constant()).verdict == "not applicable"


@pytest.mark.parametrize("name", ["contraction", "lipschitz-bound"])
def test_no_claim_nothing_to_measure(name):
    assert look(name, plain()).verdict == "not applicable"


def test_contraction_of_a_flow_that_claims_nothing():
    assert look("contraction", sound_model(0)).verdict == "not applicable"
    found = look("contraction", sound_model(0), claims=frozenset({"contractive"}))
    assert found.verdict == "flag", "a vanilla NODE parts states"


def contractive(**hyperparameters: object) -> nn.Module:
    spec = MODELS.get("ch-node")
    return spec.build((1, 8, 8), 10, **spec.resolve(hyperparameters)).eval()


def test_a_rate_of_another_forward_is_no_claim():
    class Parting(ContractiveFlow):
        def forward(self, state):
            return 3 * super().forward(state)

    model = contractive()
    assert look("contraction", model).verdict == "pass"
    model.flow.__class__ = Parting
    assert look("contraction", model).verdict == "not applicable"


def test_contraction_of_a_state_too_wide_to_enumerate_is_measured():
    found = look("contraction", contractive(width=12))
    assert found.verdict == "pass"
    assert "a solver step is bounded" not in found.sentence


def test_a_gradient_that_only_rounding_hides():
    class Shift(Wrapped):
        """A softmax so sure in float32 that its cross-entropy is flat, and not in float64."""

        def forward(self, images):
            return 14 * super().forward(images)

    model = Shift(sound_model(0))
    found = look("zero-gradients", model)
    assert found.verdict == "flag"
    assert "divided by their size" in found.sentence


def test_the_gallerys_network_classifies():
    assert float(context_of(Case(sound_model(0)), 0).correct().double().mean()) > 0.9
    fit(model := fitted("node", 1, steps=8), model.head)
    assert float(context_of(Case(model), 1).correct().double().mean()) > 0.9


def test_the_attack_under_test_may_be_a_stored_curve():
    """Its cells hold the grid too, which is not a parameter of the attack."""
    curve = THREATS.get("curve-linf").configure(steps=7)
    context = told()
    cell = stubs.cell_for(curve, context.eps, 4, norm="linf")
    cell = dataclasses.replace(cell, parameters={**curve.parameters, "strengths": [0.1], "reported": [0.1]})
    record = Record(cell=cell, outcomes={"correct": np.ones((1, 4), bool)}, environment={})
    found = dataclasses.replace(context, stored=StoredRecords(records=(record,))).attack_under_test()
    assert (found.name, dict(found.parameters)) == ("curve-linf", dict(curve.parameters))


def test_an_attack_through_another_model_goes_on_with_what_it_breaks():
    """What the other model gets wrong early may still be right on the audited one."""
    case = context_of(Case(sound_model(0)), 0)
    threat = case.threat("pgd", steps=10, restarts=1)
    given = (
        CheckedModel(case.model, 10),
        case.images.clone(),
        case.labels,
        0.3,
        stream_seeds(Purpose.AUDIT, case.seed, 0, range(len(case.images))),
    )
    own = case.perturbed(threat, eps=0.3)
    through = case.perturbed(threat, eps=0.3, model=case.model)
    assert not bool((case.predicted(own) == case.labels).all())
    for parts, whole, stop in (
        (own, threat(*given), True),
        (through, threat(*given, early_stopping=False), False),
    ):
        torch.testing.assert_close(parts, whole, msg=f"stop={stop}")
    assert not torch.equal(own, through)
