"""Each check where it passes, flags and has nothing to say; verdicts as records and sheets."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import stubs
import synthetic
import torch
from gallery.base import Case, Wrapped, context_of, fit, fitted, honest
from robustode._errors import InvalidArgument, TimeLimitExceeded
from robustode.attacks import THREATS
from robustode.attacks._seeds import sample_seeds
from robustode.bench.audits.context import Context
from robustode.bench.audits.evidence import Evidence
from robustode.bench.audits.library import MODEL, all_audits, audit_names, records_audits
from robustode.bench.audits.outcome import Finding, audit_cell, audit_record, stored_finding
from robustode.bench.audits.registry import AUDITS, Audit, Verdict, judged, not_applicable, register_audit
from robustode.bench.audits.run import run_audit
from robustode.bench.audits.sheet import Sheet, sheets
from robustode.bench.board.leaderboard import leaderboard
from robustode.bench.board.tables import best, fields, markdown
from robustode.bench.headline import Headline
from robustode.bench.queries import QueriedModel
from robustode.bench.records import Record, from_json, to_json
from robustode.models import ODEBlock, SolverFailure
from torch import nn

audit_names()  # registers every check


def look(name: str, model: nn.Module, **changes: object) -> Verdict:
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
    assert judged(value, 1.0, "x").outcome == outcome


def test_a_verdict_is_one_of_three():
    with pytest.raises(InvalidArgument, match="pass, flag or not applicable"):
        Verdict(outcome="maybe", sentence="x")


# --- checks of a model: those that the gallery does not cover ------------------------------------


def test_solver_sensitivity():
    assert look("solver-sensitivity", honest(0)).outcome == "pass"
    coarse = fitted("resnet", 0, gain=4.0)
    found = look("solver-sensitivity", coarse)
    assert found.outcome == "flag"
    assert "discrete network" in found.sentence
    assert found.axes[0] == "own solver, h/2, h/4, rk4 at h/2", (
        "nothing dearer once the cheap ones have said it"
    )
    for line in ("classes changed", "accuracy moved"):
        assert found.arrays[line][0] == 0
        assert len(found.arrays[line]) == len(found.arrays["x"]) == 4
    assert look("solver-sensitivity", plain()).outcome == "not applicable"


@pytest.mark.parametrize(("method", "other"), [("rk4", "ssprk3"), ("euler", "rk4")])
def test_a_finer_solver_is_of_another_method_too(method, other):
    model = fitted("node", 0, layers=2, method=method, steps=8, gain=0.1)
    found = look("solver-sensitivity", model)
    assert found.outcome == "pass", found.sentence
    assert found.axes[0] == f"own solver, h/2, h/4, {other} at h/2, a tight adaptive solver"


def test_a_loose_adaptive_solver_is_held_against_finer_grids():
    loose = fitted("node-dopri5", 0, layers=1, rtol=10.0, atol=10.0, gain=4.0, final_time=2.0)
    found = look("solver-sensitivity", loose)
    assert found.outcome == "flag"
    assert found.axes[0].startswith("own solver, rk4 in ")
    assert "tight" not in found.axes[0]
    good = look("solver-sensitivity", fitted("node-dopri5", 0, layers=1))
    assert good.outcome == "pass"
    assert good.axes[0].endswith("a tight adaptive solver")


def test_a_finer_solver_that_fails_flags_with_its_plot():
    class Brittle(ODEBlock):
        def _solve(self, field, state, *, duration, steps):
            if steps > 8:
                raise SolverFailure("gave up")
            return super()._solve(field, state, duration=duration, steps=steps)

    model = fitted("node", 0, layers=1, steps=8)
    model.flow.__class__ = Brittle
    found = look("solver-sensitivity", model)
    assert (found.outcome, found.value) == ("flag", 1.0)
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
def test_the_adjoint_gradient_is_told_and_not_judged(name, hyperparameters, least, most):
    found = look("gradient-fidelity", fitted(name, 0, **hyperparameters))
    assert found.outcome == "pass", found.sentence
    assert "which the model does not use" in found.sentence
    assert least <= found.arrays[ADJOINT].min() <= most
    assert len(found.arrays[ADJOINT]) == len(found.arrays["x"])


@pytest.mark.parametrize("model", [plain(), fitted("node", 0, layers=1, method="ssprk3", steps=8)])
def test_no_adjoint_without_a_solver_that_has_one(model):
    found = look("gradient-fidelity", model)
    assert found.outcome == "pass"
    assert "adjoint" not in found.sentence


def test_an_adjoint_solve_that_fails_is_told(monkeypatch):
    def give_up(*arguments, **options):
        raise AssertionError("underflow in dt")

    monkeypatch.setattr("robustode.bench.audits.adjoint.odeint_adjoint", give_up)
    found = look("gradient-fidelity", honest(0))
    assert found.outcome == "pass"
    assert "fails here: " in found.sentence
    assert "gave up: underflow in dt." in found.sentence
    assert ADJOINT not in found.arrays


def test_stiffness():
    assert look("nfe-and-stiffness", honest(0)).outcome == "pass"
    stiff = look("nfe-and-stiffness", fitted("resnet", 0, gain=10.0))
    assert stiff.outcome == "flag"
    assert stiff.value > 2
    assert look("nfe-and-stiffness", plain()).outcome == "not applicable"


def test_a_jacobian_that_was_not_formed_is_told():
    adaptive = look("nfe-and-stiffness", fitted("node-dopri5", 0, layers=1))
    assert adaptive.outcome == "pass"
    assert "was not formed (the steps of an adaptive solver are its own)" in adaptive.sentence
    assert adaptive.threshold == 5, "the evaluations are judged"
    assert len(adaptive.arrays["NFE, sorted"]) == 32


def test_a_state_too_wide_for_its_jacobian_is_told(monkeypatch):
    monkeypatch.setattr("robustode.bench.audits.stiffness.WIDEST", 4)
    wide = look("nfe-and-stiffness", honest(0))
    assert "was not formed (the state is no vector of at most 4 channels)" in wide.sentence
    assert wide.threshold == 5


def test_nothing_measured_is_nothing_judged():
    class Uncounted(Wrapped):
        """Has a flow whose evaluations nobody counts, and whose Jacobian is not formed."""

    found = look("nfe-and-stiffness", Uncounted(plain()))
    assert found.outcome == "not applicable"
    assert "was not formed: the model has no ODE block as its flow" in found.sentence


def test_uneven_cost_flags():
    class Uneven(Wrapped):
        nfe = 1

        def forward(self, images):
            self.nfe = 100 if float(images.mean()) > self.bright else 1
            return super().forward(images)

    model = Uneven(plain())
    means = context_of(Case(model), 0).images.flatten(1).mean(1).sort().values
    model.bright = float(means[-2])
    assert look("nfe-and-stiffness", model).outcome == "flag"
    model.bright = 2.0
    assert look("nfe-and-stiffness", model).outcome == "pass"


def test_solver_failure_flags():
    class GivesUp(Wrapped):
        def forward(self, images):
            raise SolverFailure("dopri5 gave up: underflow in dt")

    found = look("nfe-and-stiffness", GivesUp(plain()))
    assert found.outcome == "flag"
    assert "gave up" in found.sentence


@pytest.mark.parametrize(
    ("name", "left", "outcome"),
    [
        ("step-counts", {}, "pass"),
        ("step-counts", {"fgsm": 52, "pgd": 52, "long": 50}, "pass"),
        ("step-counts", {"fgsm": 49}, "flag"),
        ("step-counts", {"pgd": 53, "fgsm": 60}, "flag"),
        ("step-counts", {"apgd_ce": 55}, "pass"),
        ("step-counts", {"apgd_ce": 56}, "flag"),
        ("black-box", {}, "pass"),
        ("black-box", {"square": 49}, "flag"),
        ("black-box", {"spsa": 49}, "flag"),
        ("black-box", {"square": 60}, "pass"),
        ("unbounded-attack", {"pgd": 0}, "pass"),
        ("unbounded-attack", {"apgd_t": 0}, "pass"),
        ("unbounded-attack", {"apgd_t": 1}, "flag"),
    ],
)
def test_thresholds_of_attacks(name, left, outcome):
    found = AUDITS.get(name)(told(**left))
    assert found.outcome == outcome, found.sentence


def test_a_stored_attack_counts_as_white_box():
    correct = np.ones((1, 100), bool)
    correct[0, :3] = False
    record = synthetic.record_of(
        stubs.cell_for("pgd-linf", 0.05, 100), correct, environment={"created": "2026"}
    )
    context = dataclasses.replace(told(), evidence=Evidence(records=(record,)))
    assert int(context.white_box().sum()) == 47


@pytest.mark.parametrize(("other", "outcome"), [(50, "pass"), (49, "pass"), (48, "flag")])
def test_transfer_from_other_solvers(other, outcome):
    assert AUDITS.get("solver-transfer")(told(honest(0), other=other)).outcome == outcome
    adaptive = fitted("node-dopri5", 0, layers=1)
    assert AUDITS.get("tolerance-sweep")(told(adaptive, other=other)).outcome == outcome


def test_no_solver_no_transfer():
    assert look("solver-transfer", plain()).outcome == "not applicable"
    assert look("tolerance-sweep", honest(0)).outcome == "not applicable"


@pytest.mark.parametrize(("other", "outcome"), [(50, "pass"), (49, "flag")])
def test_a_frozen_backbone(other, outcome):
    model = plain()
    assert look("backbone-transfer", model).outcome == "not applicable"
    model.frozen_backbone = nn.Identity()
    found = AUDITS.get("backbone-transfer")(told(model, other=other))
    assert found.outcome == outcome


def test_a_masked_model_on_a_frozen_backbone_is_seen_through():
    class Masked(Wrapped):
        def forward(self, images):
            return (2 * super().forward(images)).round() / 2

    model = Masked(honest(0))
    model.frozen_backbone = honest(0)
    assert look("backbone-transfer", model).outcome == "flag"


def test_loss_convergence():
    weak = context_of(Case(honest(0)), 0)
    cell = stubs.cell_for("pgd-linf", weak.eps, len(weak.images))
    stored = {"steps": 2, "restarts": 1, "relative_step": 0.01}
    record = Record(
        cell=dataclasses.replace(cell, parameters=stored),
        outcomes={"prediction": np.zeros((1, 1)), "correct": np.ones((1, 1), bool)},
    )
    check = AUDITS.get("loss-convergence")
    assert check(weak).outcome == "pass"
    assert check(dataclasses.replace(weak, evidence=Evidence(records=(record,)))).outcome == "flag"


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

    def __call__(self, model, images, labels, eps, seed, *, stop):
        assert not stop, "of a sample that is let go there is no loss to write down"
        moving = seed - self.seed == self.climbs
        x = images.clone().requires_grad_(True)
        slope = torch.autograd.grad(model(x).gather(1, labels[:, None]).sum(), x)[0].sign()
        for step in range(41):
            model((images - moving * 1e-4 * step * slope).detach())
        return images


@pytest.mark.parametrize("climbs", [0, 1])
def test_each_restart_is_judged_by_itself(climbs):
    real = context_of(Case(honest(0)), 0)
    values = {f.name: getattr(real, f.name) for f in dataclasses.fields(Context)}
    found = AUDITS.get("loss-convergence")(Climb(**values, climbs=climbs))
    assert found.outcome == "flag", found.sentence
    assert found.value == pytest.approx(10 / 40, abs=0.05)
    assert f"restart {climbs + 1} of 2" in found.sentence
    assert len(found.arrays["x"]) == 41 + 1, "the steps of one restart, and the query of its slope"


def test_an_attack_that_breaks_everything_had_arrived():
    found = look("loss-convergence", honest(0), samples=8)
    fooled = AUDITS.get("loss-convergence")(
        dataclasses.replace(context_of(Case(honest(0)), 0, samples=8), eps=1.0)
    )
    assert (found.outcome, fooled.outcome, fooled.value) == ("pass", "pass", 0.0)


def test_nothing_can_be_planted_where_logits_do_not_move():
    class Constant(nn.Module):
        def forward(self, images):
            return 0 * images.flatten(1)[:, :10] + torch.arange(10.0)

    assert look("binarisation", Constant()).outcome == "not applicable"


@pytest.mark.parametrize("name", ["contraction", "lipschitz-bound"])
def test_no_claim_nothing_to_measure(name):
    assert look(name, plain()).outcome == "not applicable"


def test_contraction_of_a_flow_that_claims_nothing():
    assert look("contraction", honest(0)).outcome == "not applicable"
    found = look("contraction", honest(0), claims=frozenset({"contractive"}))
    assert found.outcome == "flag", "a vanilla NODE parts states"


def test_a_gradient_that_only_rounding_hides():
    class Shift(Wrapped):
        """A softmax so sure in float32 that its cross-entropy is flat, and not in float64."""

        def forward(self, images):
            return 14 * super().forward(images)

    model = Shift(honest(0))
    found = look("zero-gradients", model)
    assert found.outcome == "flag"
    assert "dividing the logits" in found.sentence


# --- checks of records --------------------------------------------------------------------------


def stored(threat: str, strength: float, broken: int, samples: int = 50, draws: int = 1) -> Record:
    correct = np.ones((draws, samples), bool)
    correct[:, :broken] = False
    cell = stubs.cell_for(threat, strength, samples, draws=draws)
    return synthetic.record_of(cell, correct)


def read(name: str, *records: Record) -> Verdict:
    return AUDITS.get(name)(Evidence(records=records))


def test_monotone():
    falls = [stored("pgd-linf", s, n) for s, n in ((0.1, 5), (0.2, 9), (0.05, 1))]
    assert read("monotone-in-eps", *falls).outcome == "pass"
    found = read("monotone-in-eps", *falls, stored("pgd-linf", 0.3, 8))
    assert found.outcome == "flag"
    assert found.value == pytest.approx(2.0)
    assert read("monotone-in-eps", falls[0]).outcome == "not applicable"
    one_step = [stored("fgsm-linf", 0.1, 5), stored("fgsm-linf", 0.2, 2)]
    assert read("monotone-in-eps", *one_step).outcome == "not applicable"


def test_noise_below_attack():
    noise = stored("uniform", 0.1, 4, draws=2)
    assert read("noise-below-attack", noise, stored("pgd-linf", 0.1, 4)).outcome == "pass"
    found = read("noise-below-attack", noise, stored("pgd-linf", 0.1, 3))
    assert (found.outcome, found.value) == ("flag", 1.0)
    both = [stored("pgd-linf", 0.1, 3), stored("pgd-linf", 0.05, 4)]
    assert read("noise-below-attack", noise, *both).outcome == "pass", "a smaller ball lies inside"
    assert read("noise-below-attack", noise, stored("pgd-linf", 0.2, 9)).outcome == "not applicable"


def certificate(radius: float, samples: int = 50) -> Record:
    cell = stubs.cell_for("clean", 0.0, samples)
    cell = dataclasses.replace(cell, kind="certificate", threat="lipschitz", family="certificate")
    return Record(
        cell=cell, outcomes={"radius": np.full(samples, radius, np.float32)}, measures={"pixels": 64.0}
    )


def test_certified_below_attacked():
    assert read("certified-below-attacked", stored("pgd-l2", 0.5, 3)).outcome == "not applicable"
    assert read("certified-below-attacked", certificate(0.4)).outcome == "not applicable"
    assert read("certified-below-attacked", certificate(0.4), stored("pgd-l2", 0.5, 3)).outcome == "pass"
    found = read("certified-below-attacked", certificate(0.6), stored("pgd-l2", 0.5, 3))
    assert (found.outcome, found.value) == ("flag", 3.0)
    linf = stored("pgd-linf", 0.1, 2)
    assert read("certified-below-attacked", certificate(0.79), linf).outcome == "pass", "0.1 sqrt(64) = 0.8"
    assert read("certified-below-attacked", certificate(0.81), linf).value == 2.0


@pytest.mark.parametrize("family", ["submission", "replay"])
def test_what_others_sent_is_held_against_a_certificate(family):
    sent = stored("pgd-l2", 0.5, 3)
    cell = dataclasses.replace(sent.cell, family=family, threat="transfer-l2")
    sent = dataclasses.replace(sent, cell=cell)
    found = read("certified-below-attacked", certificate(0.6), sent)
    assert (found.outcome, found.value) == ("flag", 3.0)
    assert "3 of 3 attacks" in found.sentence, "the samples that were not broken may not have been tried"
    assert read("certified-below-attacked", certificate(0.4), sent).outcome == "pass"


# --- records, sheets, ranks ---------------------------------------------------------------------


def told_record(
    model: str, verdict: Verdict, name: str = "finite", exempt: str = "", seed: int = 0
) -> Record:
    training = synthetic.training_record(model, seed, "2026").cell
    sha256 = synthetic.cell(model, seed).checkpoint_sha256
    audit = AUDITS.get(name)
    context = context_of(Case(plain()), 0)
    cell = audit_cell(training, sha256, audit, context.settings())
    return audit_record(cell, verdict, audit.title, exempt, environment={"created": "2026"})


def test_a_verdict_comes_back_from_its_record():
    verdict = judged(
        2.0, 1.0, "Too much.", unit="points", arrays={"x": np.arange(3.0), "y": np.ones(3)}, axes=("a", "b")
    )
    record = from_json(to_json(told_record("node", verdict, exempt="because")))
    found = stored_finding(record)
    assert (found.name, found.verdict, found.value, found.threshold) == ("finite", "flag", 2.0, 1.0)
    assert (found.sentence, found.unit, found.exempt, found.seed) == ("Too much.", "points", "because", 0)
    assert found.title == AUDITS.get("finite").title
    assert set(found.arrays) == {"x", "y"}
    assert not found.counts_against
    assert record.cell.label() == "node seed 0 · finite"


def test_an_infinite_value_is_stored_without_its_number():
    found = stored_finding(from_json(to_json(told_record("node", judged(math.inf, 1.0, "Gone.")))))
    assert found.verdict == "flag"
    assert math.isnan(found.value)


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("x"), "error"), (TimeLimitExceeded("x"), "timeout")]
)
def test_a_check_that_raises_is_a_failed_record(error, status):
    def check(context):
        raise error

    audit = dataclasses.replace(AUDITS.get("finite"), check=check)
    context = context_of(Case(plain()), 0)
    cell = told_record("node", not_applicable("x")).cell
    record = run_audit(audit, context, cell, {})
    assert record.status == status
    assert stored_finding(record).counts_against
    assert stored_finding(record).verdict == "failed"


def test_what_a_check_asks_is_counted():
    context = context_of(Case(plain()), 0)
    record = run_audit(AUDITS.get("determinism"), context, told_record("node", not_applicable("x")).cell, {})
    assert record.forwards == 5 * len(context.images)
    assert record.status == "ok"


def finding(name: str, verdict: str, seed: int = 0, exempt: str = "") -> Finding:
    return Finding(name=name, seed=seed, verdict=verdict, sentence="x", exempt=exempt)


def test_a_sheet_counts_each_check_once_over_seeds():
    sheet = Sheet(
        findings=[
            finding("a", "pass"),
            finding("a", "flag", 1),
            finding("b", "pass"),
            finding("b", "not applicable", 1),
            finding("c", "flag", exempt="known"),
            finding("d", "not applicable"),
            finding("e", "failed"),
        ]
    )
    assert (sheet.passed, sheet.against, sheet.explained) == (["b"], ["a", "e"], ["c"])
    assert sheet.badge() == "1 passed, 2 flagged, 1 explained"


def board_of(*audits: Record):
    return leaderboard([*synthetic.records(["ch-node", "node"], samples=60), *audits], synthetic.HEADLINE)


def test_without_audits_the_leaderboard_is_as_it_was():
    board = board_of()
    assert "audits" not in board
    assert not [f for f in fields(board) if f.name == "audits"]
    assert list(board["model"]) == ["ch-node", "node"]


def test_an_unexplained_flag_withholds_the_rank():
    fine = told_record("node", judged(0.0, 0.0, "Good."))
    board = board_of(told_record("ch-node", judged(1.0, 0.0, "Bad.")), fine)
    assert list(board["model"]) == ["node", "ch-node"]
    assert list(board["rank"]) == [1, 2]
    assert list(board["audit_flags"]) == ["", "finite"]
    clean = next(f for f in fields(board) if f.name == "clean")
    assert best(board, clean) in (set(), {0}), "a flagged row is never the best"
    assert "1 of 18 model checks, 2 passed, 1 flagged" in markdown(board, "x")


def test_nothing_is_best_where_all_are_equal_whoever_is_flagged():
    board = board_of(told_record("ch-node", judged(1.0, 0.0, "Bad.")), told_record("node", judged(0, 0, "")))
    clean = next(f for f in fields(board) if f.name == "clean")
    assert best(board.assign(clean=0.5), clean) == set()
    assert best(board.assign(clean=[0.5, 0.6]), clean) == {0}


def test_a_row_that_nobody_asked_does_not_beat_one_that_was_asked_and_flagged():
    board = board_of(told_record("ch-node", judged(1.0, 0.0, "Bad.")))
    assert list(board["model"]) == ["ch-node", "node"]
    assert list(board["audits"])[1] == "not audited"
    assert list(board["audit_missing"]) == ["", "finite"]


def test_a_row_that_nobody_asked_stands_below_those_that_were_and_passed():
    board = board_of(told_record("node", judged(0.0, 1.0, "Good.")))
    assert list(board["model"]) == ["node", "ch-node"]
    clean = next(f for f in fields(board) if f.name == "clean")
    assert best(board, clean) in (set(), {0}), "a row that was not asked is never the best"


@pytest.mark.parametrize(
    ("asked", "badges"),
    [
        ({("a", 0), ("a", 1), ("b", 0), ("b", 1)}, ["2 of 18 model checks"] * 2),
        ({("a", 0), ("a", 1), ("b", 0)}, ["2 of 18 model checks", "1 of 18 model checks"]),
        ({("a", 0)}, ["2 of 18 model checks", "not audited"]),
        (set(), ["2 of 18 model checks", "not audited"]),
    ],
)
def test_what_another_row_was_asked_at_each_seed_is_counted(asked, badges):
    names = {"a": "finite", "b": "determinism"}
    records = synthetic.records(["ch-node", "node"], samples=60, seeds=(0, 1))
    fine = not_applicable("x")
    records += [told_record("ch-node", fine, names[c], seed=s) for c in names for s in (0, 1)]
    records += [told_record("node", fine, names[c], seed=s) for c, s in sorted(asked)]
    found = sheets(records, Headline())
    assert [found["digits", model, "quick"].coverage() for model in ("ch-node", "node")] == badges
    assert bool(found["digits", "node", "quick"].missing) == (len(asked) < 4)


def test_a_model_of_one_seed_owes_no_other_seeds():
    records = synthetic.records(["ch-node"], samples=60, seeds=(0, 1)) + synthetic.records(
        ["node"], samples=60
    )
    for model, seed in (("ch-node", 0), ("ch-node", 1), ("node", 0)):
        records.append(told_record(model, not_applicable("x"), seed=seed))
    assert not any(sheet.missing for sheet in sheets(records, Headline()).values())


def test_a_row_that_was_asked_everything_says_no_more():
    names = list(MODEL.values())
    records = synthetic.records(["node"], samples=60)
    records += [told_record("node", not_applicable("x"), name) for name in names]
    (sheet,) = sheets(records, Headline()).values()
    assert (sheet.coverage(), len(sheet.asked)) == ("", 18)


def test_names_of_the_checks_are_known_without_them():
    assert list(MODEL.values()) == [a.name for a in all_audits() if a.needs == "model"]


def test_a_check_of_records_flags_where_nobody_was_audited():
    made = synthetic.records(["ch-node", "node"], samples=60)
    bad = [synthetic.record_of(r.cell, r.outcomes["correct"] | (r.cell.strength == 0.2)) for r in made
           if r.cell.model == "ch-node" and r.cell.threat == "pgd-linf"]  # fmt: skip
    other = [r for r in made if not (r.cell.model == "ch-node" and r.cell.threat == "pgd-linf")]
    board = leaderboard([*other, *bad], synthetic.HEADLINE)
    assert list(board["model"]) == ["node", "ch-node"]
    assert list(board["audit_flags"]) == ["", "monotone-in-eps"]
    assert list(board["audit_missing"]) == ["", ""]
    assert list(board["audits"]) == ["2 passed", "1 passed, 1 flagged"]


def test_an_explained_flag_does_not():
    fine = told_record("node", judged(0.0, 0.0, "Good."))
    board = board_of(told_record("ch-node", judged(1.0, 0.0, "Bad."), exempt="on purpose"), fine)
    assert list(board["model"]) == ["ch-node", "node"]
    assert board["audits"][0].endswith("1 explained")


def test_a_failed_check_withholds_the_rank_and_fails_no_cell():
    record = told_record("ch-node", not_applicable("x"))
    failed = Record(cell=record.cell, status="error", error="boom", environment=record.environment)
    board = board_of(failed, told_record("node", not_applicable("x")))
    assert list(board["model"]) == ["node", "ch-node"]
    assert list(board["status"]) == ["ok", "ok"]


def test_sheets_run_the_checks_of_records_of_every_row():
    records = [
        *synthetic.records(["ch-node", "node"], samples=60),
        told_record("node", judged(0.0, 1.0, "x")),
    ]
    found = sheets(records, Headline())
    read = {audit.name for audit in records_audits()}
    assert {row[1]: {f.name for f in sheet.findings} for row, sheet in found.items()} == {
        "ch-node": read,
        "node": {"finite", *read},
    }


def test_the_gallerys_network_classifies():
    assert float(context_of(Case(honest(0)), 0).correct().double().mean()) > 0.9
    fit(model := fitted("node", 1, steps=8), model.head)
    assert float(context_of(Case(model), 1).correct().double().mean()) > 0.9


def test_the_attack_under_test_may_be_a_stored_curve():
    """Its cells hold the grid too, which is not a parameter of the attack."""
    curve = THREATS.get("curve-linf").configure(steps=7)
    context = told()
    cell = stubs.cell_for(curve, context.eps, 4, norm="linf")
    cell = dataclasses.replace(cell, parameters={**curve.parameters, "strengths": [0.1], "reported": [0.1]})
    record = Record(cell=cell, outcomes={"correct": np.ones((1, 4), bool)}, environment={})
    found = dataclasses.replace(context, evidence=Evidence(records=(record,))).attack_under_test()
    assert (found.name, dict(found.parameters)) == ("curve-linf", dict(curve.parameters))


def test_an_attack_through_another_model_goes_on_with_what_it_breaks():
    """What the other model gets wrong early may still be right on the audited one."""
    case = context_of(Case(honest(0)), 0)
    threat = case.threat("pgd", steps=10, restarts=1)
    given = (
        QueriedModel(case.model, 10),
        case.images.clone(),
        case.labels,
        0.3,
        sample_seeds(case.seed, range(len(case.images))),
    )
    own = case.perturbed(threat, eps=0.3)
    through = case.perturbed(threat, eps=0.3, model=case.model)
    assert not bool(case.correct(own).all())
    for parts, whole, stop in ((own, threat(*given), True), (through, threat(*given, stop=False), False)):
        torch.testing.assert_close(parts, whole, msg=f"stop={stop}")
    assert not torch.equal(own, through)
