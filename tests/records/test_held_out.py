"""A network that has learnt nothing: how it is told, and what becomes of its row."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import robustode
import stubs
import synthetic
import torch
from hypothesis import given
from hypothesis import strategies as st
from robustode._errors import UntrainedModelWarning
from robustode.bench.audits.sheet import MARKS, sheets
from robustode.bench.config.plan import make_plan
from robustode.bench.config.preset import load_preset
from robustode.bench.config.pretrained import PretrainedWeights
from robustode.bench.data import load_data
from robustode.bench.records.checkpoint import save_tensors
from robustode.bench.records.headline import Headline
from robustode.bench.records.held_out import ALPHA, HELD_OUT, chance, held_out_counts, why_not_trained
from robustode.bench.records.record import Record
from robustode.bench.records.store import Store
from robustode.bench.report.html.audit_lines import audit_badge
from robustode.bench.report.leaderboard.json_table import leaderboard_json
from robustode.bench.report.leaderboard.latex_table import latex
from robustode.bench.report.leaderboard.leaderboard import leaderboard
from robustode.bench.report.leaderboard.markdown_table import markdown
from robustode.bench.report.leaderboard.shown_fields import best, fields
from robustode.bench.report.leaderboard.terminal_table import terminal_table
from robustode.bench.report.report import write_report
from robustode.bench.report.statistics import summarise
from robustode.bench.runner.first_questions import count_held_out
from robustode.bench.runner.run import run_plan
from scipy.stats import binomtest
from torch import nn

DEAD = {"samples": 500, "correct": 54, "largest": 56, "predicted": 1}
ALIVE = {"samples": 500, "correct": 400, "largest": 56, "predicted": 10}


# --- the rule ---------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.data())
def test_the_rule_is_a_one_sided_binomial_test_against_the_largest_class(samples, data):
    largest = data.draw(st.integers(1, samples))
    correct = data.draw(st.integers(0, samples))
    p = binomtest(correct, samples, largest / samples, alternative="greater").pvalue
    can_be_told = (largest / samples) ** samples < ALPHA
    assert bool(chance(samples, correct, largest, 2)) == (p >= ALPHA and can_be_told and largest < samples)


@pytest.mark.parametrize(
    ("counts", "trained"),
    [
        (DEAD, False),
        ({**DEAD, "predicted": 7}, False),  # 10.8% by chance: the MobileNet of six epochs had 10.9%
        (ALIVE, True),
        ({**ALIVE, "correct": 75}, True),  # 15% is learnt
        ({"samples": 500, "correct": 480, "largest": 480, "predicted": 1}, False),
        ({"samples": 500, "correct": 497, "largest": 480, "predicted": 2}, True),
        ({"samples": 3, "correct": 3, "largest": 1, "predicted": 3}, True),  # too few to say
        ({"samples": 3, "correct": 1, "largest": 1, "predicted": 1}, False),
        ({"samples": 5, "correct": 5, "largest": 5, "predicted": 1}, True),  # one class alone: nothing to say
        ({"samples": 0, "correct": 0, "largest": 0, "predicted": 0}, True),
    ],
)
def test_who_counts_as_trained(counts, trained):
    assert bool(chance(**counts)) is not trained


def test_counts_of_predictions():
    labels = np.array([0, 0, 1, 2])
    assert held_out_counts(np.array([0, 1, 1, 1]), labels) == {
        "samples": 4, "correct": 2, "largest": 2, "predicted": 2,
    }  # fmt: skip


def test_a_sample_without_an_answer_is_wrong_and_the_others_still_count():
    data = load_data("digits")

    class Constant(nn.Module):
        def forward(self, images):
            if bool((images == data.validation.images[3]).flatten(1).all(1).any()):
                raise AssertionError("underflow in dt 0.0")
            return images.flatten(1)[:, :10] * 0

    counts = count_held_out(Constant(), data, batch_size=32, device=torch.device("cpu"))
    labels = data.validation.labels.numpy()
    assert counts["samples"] == len(labels)
    assert counts["predicted"] == 1
    assert counts["correct"] == int((np.delete(labels, 3) == 0).sum())
    assert "one class only" in chance(**counts)


def training(model: str = "node", seed: int = 0, **changes: object) -> Record:
    record = synthetic.training_record(model, seed, "2026-01-01T00:00:00Z")
    card = {**record.card, **{k: v for k, v in changes.items() if k in (HELD_OUT, MARKS)}}
    rest = {k: v for k, v in changes.items() if k not in card}
    return dataclasses.replace(record, card=card, **rest)


def test_losses_and_epochs_speak_in_records_of_older_versions_too():
    assert why_not_trained(training()) == ""
    assert "No epoch" in why_not_trained(training(measures={"best_epoch": 0.0}))
    for name in ("train_loss", "validation_loss"):
        broken = {**training().outcomes, name: np.full(30, np.nan)}
        assert "is not finite" in why_not_trained(training(outcomes=broken))
    late = {**training().outcomes, "train_loss": np.where(np.arange(30) > 28, np.nan, 1.0)}
    assert why_not_trained(training(outcomes=late)) == "", "the weights of epoch 28 are sound"


# --- the row ----------------------------------------------------------------------------------------


def rows(dead: dict[int, dict], seeds: tuple[int, ...] = (0,)) -> list[Record]:
    """Two models on digits, of which node has the higher accuracies and these counts by seed."""
    made = synthetic.records(("node", "resnet"), seeds, samples=80, training=False)
    made += [training("node", seed, **{HELD_OUT: dead.get(seed, ALIVE)}) for seed in seeds]
    return made + [training("resnet", seed, **{HELD_OUT: ALIVE}) for seed in seeds]


def test_a_constant_classifier_stands_below_everything_and_is_never_best():
    made = rows({0: DEAD})
    made += synthetic.audits(("node", "resnet"), found={("resnet", "finite"): ("flag", "")})
    made = [r for r in made if not (r.cell.model == "resnet" and r.cell.strength == 0.2)]  # incomplete too
    headline = dataclasses.replace(synthetic.HEADLINE, audits=list(synthetic.CHECKS))
    board = leaderboard(made, headline)
    assert list(board["model"]) == ["resnet", "node"]
    assert list(board["status"]) == ["incomplete", "not trained"]
    assert list(board["rank"]) == [1, 2]
    for field in fields(board):
        assert 1 not in best(board, field)
    assert list(board["audits"])[1] == "not trained"
    sheet = sheets(made, headline)["digits", "node", "quick"]
    assert not sheet.missing
    assert audit_badge(sheet).flagged, "no green badge"


def test_a_dead_network_takes_bold_type_from_nobody():
    board = leaderboard(rows({0: DEAD}), synthetic.HEADLINE)
    ranking = next(f for f in fields(board) if f.name == "linf@0.1")
    assert list(board["model"]) == ["resnet", "node"]
    assert board["linf@0.1"].iloc[1] > board["linf@0.1"].iloc[0]
    assert best(board, ranking) == {0}


def test_every_form_of_the_table_says_so(tmp_path, capsys):
    made = rows({0: DEAD})
    board = leaderboard(made, synthetic.HEADLINE)
    row = {r["model"]: r for r in json.loads(leaderboard_json(board, synthetic.HEADLINE))["rows"]}["node"]
    assert row["status"] == row["audits"] == "not trained"
    for text in (markdown(board, "x"), latex(board, "x")):
        assert "not trained" in text
        assert "one-sided binomial test" in text
    assert "one-sided binomial test" in str(terminal_table(board, None).caption)
    summary = summarise(made)
    (line,) = summary[summary["statistic"] == "not_trained"].to_dict("records")
    assert (line["model"], line["value"], line["samples"], line["seeds"]) == ("node", 1.0, 500, 1)
    synthetic.write(tmp_path, made)
    page = write_report(tmp_path).page.read_text(encoding="utf-8")
    assert "Not trained (seed 0): It predicts one class only, on 500 held-out samples." in page
    assert '<small class="bad">not trained</small>' in page


def test_one_seed_of_several_is_enough():
    board = leaderboard(rows({1: DEAD}, seeds=(0, 1, 2)), synthetic.HEADLINE)
    assert list(board["status"]) == ["ok", "not trained: 1 of 3 seeds"]


def test_without_dead_networks_nothing_is_said():
    board = leaderboard(rows({}), synthetic.HEADLINE)
    assert set(board["status"]) == {"ok"}
    assert "not trained" not in markdown(board, "x") + latex(board, "x")
    assert "not_trained" not in set(summarise(rows({}))["statistic"])


def test_a_mark_flags_the_row_unless_it_is_expected():
    marks = {"determinism": "Asked again, logits differ.", "batch-independence": "Alone, logits differ."}
    made = synthetic.records(("node", "resnet"), samples=80, training=False)
    made += [training("node"), training("resnet", **{MARKS: marks})]  # batch-independence is meant there
    board = leaderboard(made, synthetic.HEADLINE).set_index("model")
    assert list(board.index) == ["node", "resnet"]
    assert board.loc["resnet", "audits"] == "not audited, 1 flagged, 1 explained"
    assert board.loc["resnet", "audit_flags"] == "determinism"
    made += synthetic.audits(("resnet",))  # which pass
    sheet = sheets(made, Headline(audits=list(synthetic.CHECKS)))["digits", "resnet", "quick"]
    assert sheet.against == ["determinism"]
    assert (len(sheet.done), sheet.badge()) == (4, "5 passed, 1 flagged, 1 explained")


# --- runs and evaluate ------------------------------------------------------------------------------


class Dead(nn.Module):
    """Answers the same whatever it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.bias + 0 * images.flatten(1).sum(1, keepdim=True)


DEAD_SPEC = stubs.spec("dead", lambda shape, classes: Dead())


def folder_of(tmp_path, few, *specs, **options) -> tuple[Store, list[str]]:
    plan = make_plan(load_preset(str(stubs.preset_file(tmp_path))), models=list(specs), **options)
    store, said = Store(tmp_path / "out"), stubs.Listening()
    outcome = run_plan(plan, few, store, device=stubs.CPU, reporter=said)
    assert not outcome.failures
    return store, said.lines


def trainings(store: Store) -> dict[str, Record]:
    return {r.cell.model: r for r in store.load()[0] if r.cell.kind == "training"}


def test_a_run_says_and_stores_it(few, tmp_path):
    shaky = stubs.faulty("shaky", lambda z, x: z + 0.01 * torch.randn_like(z))
    meant = stubs.faulty(
        "meant", lambda z, x: z - z.mean(), expected_failures={"batch-independence": "on purpose"}
    )
    store, said = folder_of(tmp_path, few, DEAD_SPEC, shaky, meant)
    found = trainings(store)
    assert found["dead"].card[HELD_OUT]["predicted"] == 1
    assert [list(found[name].card[MARKS]) for name in ("dead", "shaky", "meant")] == [
        [], ["determinism"], ["batch-independence"],
    ]  # fmt: skip
    assert [line for line in said if line.startswith("dead seed 0 · not trained: It predicts one class only")]
    assert [line for line in said if line.startswith("shaky seed 0 · determinism: Asked ")]
    assert [line for line in said if line.startswith("meant seed 0 · expected: batch-independence: ")]
    board = write_report(store.folder).leaderboard.set_index("model")
    assert list(board.index) == ["meant", "shaky", "dead"]
    assert board.loc["dead", "status"] == "not trained"
    assert list(board["audit_flags"]) == ["", "determinism", ""]


def test_a_training_of_an_older_version_is_asked_when_the_run_goes_on(few, tmp_path):
    store, _ = folder_of(tmp_path, few, DEAD_SPEC)
    new = trainings(store)["dead"]
    store.put(
        dataclasses.replace(new, card={k: v for k, v in new.card.items() if k not in (HELD_OUT, MARKS)})
    )
    assert HELD_OUT not in trainings(store)["dead"].card
    folder_of(tmp_path, few, DEAD_SPEC)
    assert trainings(store)["dead"].card == new.card


def test_pretrained_weights_are_asked_too(few, tmp_path):
    save_tensors(tmp_path / "w.safetensors", Dead().state_dict())
    weights = PretrainedWeights.read(tmp_path / "w.safetensors")
    store, said = folder_of(tmp_path, few, DEAD_SPEC, pretrained=weights)
    assert why_not_trained(trainings(store)["dead"])
    assert [line for line in said if "not trained: It predicts one class only" in line]


def test_evaluate_warns():
    with pytest.warns(UntrainedModelWarning, match="^module: not trained: It predicts one class only"):
        robustode.evaluate(Dead(), threats="clean", samples=20)
    assert robustode.UntrainedModelWarning is UntrainedModelWarning
