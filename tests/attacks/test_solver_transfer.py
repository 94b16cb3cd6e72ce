"""Attacks through other solvers of the same weights, scored on the model that is deployed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import robustode
import stubs
import torch
from robustode._errors import InvalidArgument
from robustode.attacks import THREATS, Threat
from robustode.bench.config.plan import make_plan
from robustode.bench.config.preset import load_preset
from robustode.bench.evaluation.accuracy import evaluate_cell
from robustode.bench.evaluation.solver_transfer import (
    SurrogateModelFailure,
    _merged,
    evaluate_solver_transfer,
)
from robustode.bench.records.adversarial_examples import AdversarialExamples, add_steps
from robustode.bench.records.predictions import NO_ANSWER, predictions, split_outcomes, unanswered
from robustode.bench.records.record import Record
from robustode.bench.records.store import Store
from robustode.bench.report.leaderboard.leaderboard import leaderboard
from robustode.bench.report.report import write_report
from robustode.bench.report.statistics import summarise
from robustode.bench.report.worst_case import WORST_CASE
from robustode.bench.runner.run import run_plan
from robustode.bench.solvers.changed_model import solver_surrogates
from robustode.bench.verification.verify import verify
from robustode.models import MODELS, ODEBlock, Solver
from torch import nn

NAMES = ["euler-16", "euler-64", "rk4-16", "rk4-64"]
EVALUATIONS = 16 + 64 + 4 * 16 + 4 * 64
SHAPE = (1, 2, 2)


class Growth(nn.Module):
    """x' = a x."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate))

    def forward(self, state):
        return self.rate * state


class Breaks(ODEBlock):
    """Answers NaN where it is solved by one of the solvers `broken`."""

    broken: tuple[str, ...] = ()

    def integrate(self, field, state, *, duration, steps):
        final = super().integrate(field, state, duration=duration, steps=steps)
        return final * (torch.nan if f"{self.solver.method}-{self.solver.steps}" in self.broken else 1.0)


class Flow(nn.Module):
    """Logits (0, c (w . x + b)), where the flow of x' = a x carries w . x + b to c (w . x + b), c > 0.

    Whatever the solver, the sign is the same: every surrogate has the decision boundary of the model.
    """

    def __init__(self, method="heun2", steps=8, broken=()) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -1.0, 0.5, 0.25]))
        solver = Solver(method=method, steps=steps)
        self.flow = Breaks([Growth(0.5)], final_time=1.0, solver=solver)
        self.flow.broken = broken

    def forward(self, images):
        state = (images.flatten(1) @ self.weight - 0.1)[:, None]
        final = self.flow(state)
        return torch.cat([torch.zeros_like(final), final], 1)


COUNT = 40


@pytest.fixture(scope="module")
def samples():
    images = 0.2 + 0.6 * torch.rand(COUNT, *SHAPE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        labels = Flow()(images).argmax(1)
    labels[::10] = 1 - labels[::10]  # some are misclassified as they are
    return stubs.split_of(images, labels)


def evaluated(model, split, name="solver-transfer-linf", eps=0.1, threat=None, **more) -> Record:
    threat = threat or THREATS.get(name).configure(steps=5)
    cell = stubs.cell_for(threat, eps, len(split), norm=threat.norm)
    common = {"num_classes": 2, "device": stubs.CPU, "environment": {}} | more
    return evaluate_solver_transfer(cell, model, split, threat, **common)


def margins(split) -> np.ndarray:
    """w . x + b, signed so that it is positive where the model is right."""
    with torch.no_grad():
        value = split.images.flatten(1) @ Flow().weight - 0.1
    return (value * (2 * split.labels - 1)).numpy()


@pytest.mark.parametrize(("norm", "size"), [("linf", 2.75), ("l2", (1 + 1 + 0.25 + 0.0625) ** 0.5)])
@pytest.mark.parametrize("method", ["heun2", "dopri5"])
def test_a_linear_decision_is_broken_exactly_where_its_margin_allows(samples, norm, size, method):
    eps = 0.15
    record = evaluated(Flow(method), samples, f"solver-transfer-{norm}", eps)
    margin = margins(samples)
    assert np.abs(margin - eps * size).min() > 1e-3, "no sample stands on the edge"
    assert np.array_equal(record.outcomes["correct"][0], margin > eps * size)
    norms = record.outcomes["norm"][0]
    scores = dict(record.measures)
    assert scores.pop("largest_norm") == norms.max()
    assert scores == {f"surrogate.{name}.accuracy": record.accuracy for name in NAMES}
    assert norms.max() <= eps * (1 + 1e-6)
    assert (norms[margin < 0] == 0).all(), "what is wrong as it is stays as it is"


def test_every_query_of_model_and_surrogates_is_counted(samples):
    threat = THREATS.get("solver-transfer-linf").configure(steps=5)
    clean = Flow()(samples.images).argmax(1).numpy()
    right = int((clean == samples.labels.numpy()).sum())
    record = evaluated(Flow(), samples, threat=threat, eps=1e-6, clean=clean)
    crafted = 4 * right * (1 + 6)
    assert record.forwards == crafted + 4 * right
    assert record.backwards == 4 * right * 5
    evaluations = right * (7 * EVALUATIONS + 4 * 16)  # 8 steps of heun2 are 16 evaluations
    assert record.nfe == pytest.approx(evaluations / record.forwards)
    unknown = evaluated(Flow(), samples, threat=threat, eps=1e-6)
    assert unknown.forwards == record.forwards + 4 * COUNT


def test_the_deployed_solver_is_not_attacked_through_itself(samples):
    record = evaluated(Flow("rk4", 16), samples)
    scored = [name for name in record.measures if name.startswith("surrogate.")]
    assert scored == [f"surrogate.{name}.accuracy" for name in NAMES if name != "rk4-16"]


def test_a_surrogate_that_answers_nan_is_left_out_and_named(samples):
    whole = evaluated(Flow(), samples)
    record = evaluated(Flow(broken=("euler-16", "rk4-64")), samples)
    assert record.status == "ok"
    assert np.array_equal(record.outcomes["correct"], whole.outcomes["correct"])
    assert record.measures["surrogate.euler-16.left_out"] == 1
    assert "surrogate.euler-16.accuracy" not in record.measures
    assert record.measures["surrogate.rk4-16.accuracy"] == whole.accuracy
    assert set(record.card["surrogates_left_out"]) == {"euler-16", "rk4-64"}
    assert "NaN" in record.card["surrogates_left_out"]["rk4-64"]
    assert stubs.stored_again(record).measures == record.measures


def test_without_any_surrogate_there_is_no_accuracy(samples):
    with pytest.raises(SurrogateModelFailure, match=r"every surrogate failed; euler-16: .*NaN"):
        evaluated(Flow(broken=NAMES), samples)


def test_a_sample_to_which_the_model_itself_answers_nan_is_broken(samples):
    record = evaluated(Flow(broken=("heun2-8",)), samples, clean=np.zeros(COUNT, int))
    assert record.accuracy == 0
    asked = samples.labels.numpy() == 0
    assert (stubs.predicted(record, samples)[0] == np.where(asked, NO_ANSWER, 0)).all()


class GivesUp(Flow):
    """Raises at an image whose first pixel is 0."""

    def forward(self, images):
        if bool((images[:, 0, 0, 0] == 0).any()):
            raise AssertionError("underflow in dt 0.0")
        return super().forward(images)


def test_the_first_sample_need_not_have_an_answer(samples):
    images = samples.images.clone()
    images[0, 0, 0, 0] = 0.0
    record = evaluated(GivesUp(), stubs.split_of(images, samples.labels))
    expected = evaluated(Flow(), samples)
    assert record.status == "ok"
    assert unanswered(record.outcomes)[0].nonzero()[0].tolist() == [0]
    np.testing.assert_array_equal(record.outcomes["correct"][:, 1:], expected.outcomes["correct"][:, 1:])


def test_an_attack_that_leaves_its_budget_is_a_failure(samples):
    far = dataclasses.replace(
        THREATS.get("solver-transfer-linf"), craft=lambda m, x, y, s, seed, **p: (x + 2 * s).clamp(0, 1)
    )
    with pytest.raises(robustode._errors.BudgetViolation):
        evaluated(Flow(), samples, threat=far)


def test_a_model_without_a_flow_is_refused(samples):
    with pytest.raises(InvalidArgument, match="needs a model whose solver is seen"):
        evaluated(stubs.Linear(SHAPE, 2), samples)


def test_the_first_surrogate_that_breaks_counts_and_what_is_kept_is_what_was_predicted(samples):
    """An attack that moves by another length through each surrogate, told apart by its evaluations."""
    lengths = {16: 0.001, 64: 0.1, 256: 0.05}

    def craft(model, images, labels, strength, seed, **parameters):
        model(images[:1])
        sign = torch.sign(Flow().weight.detach()).view(SHAPE) * (1 - 2 * labels).view(-1, 1, 1, 1)
        return (images + lengths[model.model.model.flow.nfe] * sign).clamp(0, 1)

    threat = Threat(name="fixed", family="transfer", norm="linf", craft=craft, crafted_on="solvers")
    breaks: list[AdversarialExamples] = []
    record = evaluated(Flow(), samples, threat=threat, keep=breaks.append)
    margin, norm = margins(samples), record.outcomes["norm"][0]
    near = (margin > 0) & (margin < 2.75 * 0.001)
    broken = (margin > 0) & (margin < 2.75 * 0.1)
    assert np.array_equal(~record.outcomes["correct"][0], broken | (margin < 0))
    assert np.allclose(norm[broken & ~near], 0.1, atol=2e-5)
    assert np.allclose(norm[margin > 2.75 * 0.1], 0.05, atol=2e-5), "of the others, the last"
    assert record.measures["surrogate.euler-16.accuracy"] > record.measures["surrogate.rk4-64.accuracy"]
    assert record.measures["surrogate.euler-64.accuracy"] == record.accuracy
    (kept,) = breaks
    assert np.array_equal(kept.index, np.flatnonzero(broken))
    images = torch.from_numpy(add_steps(samples.images[broken].numpy(), kept.steps))
    assert np.array_equal(kept.label, samples.labels.numpy()[broken])
    assert bool((Flow()(images).argmax(1) != samples.labels[broken]).all())


def test_merging_takes_each_sample_from_its_first_break():
    def part(correct, value):
        cell = stubs.cell_for("solver-transfer-linf", 0.1, 4)
        outcomes = split_outcomes(np.full((1, 4), value, np.int16), np.array([correct]))
        images = np.full((2, 1, 1, 1), value, np.uint8)
        return Record(
            cell=cell, outcomes=outcomes, examples={"prediction": np.full(2, value), "image": images}
        )

    parts = [part([True, False, True, True], 1), part([False, False, True, True], 2), part([True] * 4, 3)]
    labels = np.array([0, 0, 3, 3])
    merged = _merged(parts, labels)
    assert predictions(merged.outcomes, labels).tolist() == [[2, 1, 3, 3]]
    assert merged.outcomes["correct"].tolist() == [[False, False, True, True]]
    assert merged.examples["prediction"].tolist() == [2, 1]
    assert merged.examples["image"].ravel().tolist() == [2, 1]
    assert parts[2].outcomes["correct"].all(), "the parts stay as they were"


def test_a_batch_in_parts_gives_the_same(samples, monkeypatch):
    whole = evaluated(Flow(), samples)
    monkeypatch.setattr("robustode.bench.evaluation.solver_transfer.MOST_VALUES", 4 * 256 * 15)
    parts = evaluated(Flow(), samples)
    assert np.array_equal(parts.outcomes["correct"], whole.outcomes["correct"])
    np.testing.assert_allclose(parts.outcomes["norm"], whole.outcomes["norm"], atol=1e-6)


def test_progress_adds_up_to_the_samples(samples):
    seen: list[int] = []
    evaluated(Flow(broken=("rk4-16",)), samples, on_samples=seen.append)
    assert sum(seen) == COUNT


def test_it_goes_on_where_the_surrogate_is_broken_already(samples):
    """A break of the surrogate by a hair is none of a model whose boundary lies a little further."""
    threat, eps = THREATS.get("solver-transfer-linf").configure(steps=4), 0.2
    surrogate = stubs.two_class(torch.tensor([1.0, -1.0, 0.5, 0.25]).view(SHAPE), -0.1)
    images = threat(surrogate, samples.images, samples.labels, eps, 0)
    moved = (images - samples.images).abs().flatten(1).amin(1)
    torch.testing.assert_close(moved, torch.full_like(moved, eps), rtol=0, atol=1e-6)


PRESET = stubs.PRESET.replace(
    "[throughput]",
    """[[threats]]
name = "solver-transfer-linf"
strengths = [0.05]
reported = 0.05
samples = 40
[threats.parameters]
steps = 1

[throughput]""",
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory, digits):
    """A flow and a model without one, attacked as the preset says."""
    folder = tmp_path_factory.mktemp("solvers")
    preset = load_preset(str(stubs.preset_file(folder, PRESET)))
    plan = make_plan(preset, models=[MODELS.get("node"), stubs.spec("flat")])
    outcome = run_plan(plan, digits, Store(folder / "out"), device=stubs.CPU)
    return folder / "out", plan, outcome


def test_only_models_with_a_flow_are_asked(ran):
    folder, _, outcome = ran
    assert outcome.failures == []
    records, _ = Store(folder).load()
    ours = [r for r in records if r.cell.threat == "solver-transfer-linf"]
    assert [r.cell.model for r in ours] == ["node"]
    assert set(ours[0].measures) == {"largest_norm", *(f"surrogate.{name}.accuracy" for name in NAMES)}
    broken = ~ours[0].outcomes["correct"] & next(clean(records, "node")).outcomes["correct"][:, :40]
    assert broken.any()
    wrong = [finding for finding in verify(folder).disagreements if not finding.file.startswith("report/")]
    assert wrong == [], "each has an example, with this attack or an earlier one"
    assert ours[0].outcomes["correct"].shape == (1, 40)


def clean(records, model):
    return (r for r in records if r.cell.family == "clean" and r.cell.model == model)


def test_a_model_without_a_flow_keeps_its_row_and_one_with_a_flow_needs_the_attack(ran):
    folder, plan, _ = ran
    records, _ = Store(folder).load()
    board = leaderboard(records, plan.headline())
    assert dict(zip(board["model"], board["status"], strict=True)) == {"node": "ok", "flat": "ok"}
    assert board["linf@0.05"].notna().all()
    worst = summarise(records)
    worst = worst[worst["threat"] == WORST_CASE]
    assert set(worst["model"]) == {"node", "flat"}
    node = [
        r for r in records if r.cell.model == "node" and r.cell.norm == "linf" and r.cell.kind == "accuracy"
    ]
    standing = np.all(
        [r.outcomes["correct"][0] for r in [*node, *clean(records, "node")] if r.cell.samples], 0
    )
    assert float(worst.loc[worst["model"] == "node", "value"].iloc[0]) == pytest.approx(standing.mean())

    other = [
        dataclasses.replace(r, cell=dataclasses.replace(r.cell, model="other"))
        for r in records
        if r.cell.model == "node" and r.cell.threat != "solver-transfer-linf"
    ]
    board = leaderboard([*records, *other], plan.headline()).set_index("model")
    assert board.loc["other", "status"] == "incomplete"
    assert pd.isna(board.loc["other", "linf@0.05"])


def test_the_folder_verifies(ran):
    folder, _, _ = ran
    write_report(folder)
    assert verify(folder, models=[stubs.spec("flat")]).findings == []


def test_it_is_at_hand_from_python(ran):
    folder, _, _ = ran
    model = robustode.load_model(folder, "node")
    table = robustode.evaluate(model, threats=["solver-transfer-l2"], samples=2)
    assert table["norm"].tolist() == ["l2"]
    with pytest.raises(InvalidArgument, match="ODE block"):
        robustode.evaluate(stubs.Linear((1, 8, 8), 10), threats=["solver-transfer-l2"], samples=10)


def test_what_it_does_to_a_model_is_what_the_plain_harness_finds_for_each_surrogate(samples):
    """One surrogate's accuracy is that of its own examples, crafted by hand and scored on the model."""
    threat, model = THREATS.get("solver-transfer-l2").configure(steps=5), Flow()
    record = evaluated(model, samples, "solver-transfer-l2", 0.12)
    surrogate = solver_surrogates(model, samples.images)["rk4-64"]
    handed = dataclasses.replace(threat, craft=lambda _m, *a, **p: threat.craft(surrogate, *a, **p))
    cell = stubs.cell_for(threat, 0.12, COUNT, norm="l2")
    plain = evaluate_cell(cell, model, samples, handed, num_classes=2, device=stubs.CPU, environment={})
    assert record.measures["surrogate.rk4-64.accuracy"] == plain.accuracy
