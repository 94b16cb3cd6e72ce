"""Verdicts as records, sheets and ranks: what a flag does to a row."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import stubs
import synthetic
from gallery.base import Case, context_of
from robustode._errors import TimeLimitExceeded
from robustode.bench.audits.audit_model import run_audit
from robustode.bench.audits.audit_record import SeedResult, audit_cell, audit_record, stored_result
from robustode.bench.audits.library import audit_names, names_of, records_audits
from robustode.bench.audits.registry import AUDITS, AuditResult, measured, not_applicable
from robustode.bench.audits.sheet import Sheet, sheets
from robustode.bench.records.headline import Headline
from robustode.bench.records.record import Record
from robustode.bench.report.leaderboard.columns import entries
from robustode.bench.report.leaderboard.leaderboard import leaderboard
from robustode.bench.report.leaderboard.markdown_table import markdown
from robustode.bench.report.leaderboard.shown_fields import best, fields
from torch import nn

audit_names()  # registers every check


def plain() -> nn.Module:
    return stubs.Linear((1, 8, 8), 10).eval()


def told_record(
    model: str, verdict: AuditResult, name: str = "finite", exempt: str = "", seed: int = 0
) -> Record:
    training = synthetic.training_record(model, seed, "2026").cell
    sha256 = synthetic.cell(model, seed).checkpoint_sha256
    audit = AUDITS.get(name)
    context = context_of(Case(plain()), 0)
    cell = audit_cell(training, sha256, audit, context.settings())
    return audit_record(cell, verdict, audit.title, exempt, environment={"created": "2026"})


def test_a_verdict_comes_back_from_its_record():
    verdict = measured(
        2.0, 1.0, "Too much.", unit="points", arrays={"x": np.arange(3.0), "y": np.ones(3)}, axes=("a", "b")
    )
    record = stubs.stored_again(told_record("node", verdict, exempt="because"))
    found = stored_result(record)
    assert (found.name, found.verdict, found.value, found.threshold) == ("finite", "flag", 2.0, 1.0)
    assert (found.sentence, found.unit, found.exempt, found.seed) == ("Too much.", "points", "because", 0)
    assert found.title == AUDITS.get("finite").title
    assert set(found.arrays) == {"x", "y"}
    assert not found.counts_against
    assert record.cell.label() == "node seed 0 · finite"


def test_an_infinite_value_is_stored_without_its_number():
    found = stored_result(stubs.stored_again(told_record("node", measured(math.inf, 1.0, "Gone."))))
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
    assert stored_result(record).counts_against
    assert stored_result(record).verdict == "failed"


def test_what_a_check_asks_is_counted():
    context = context_of(Case(plain()), 0)
    record = run_audit(AUDITS.get("determinism"), context, told_record("node", not_applicable("x")).cell, {})
    assert record.forwards == 5 * len(context.images)
    assert record.status == "ok"


def finding(name: str, verdict: str, seed: int = 0, exempt: str = "") -> SeedResult:
    return SeedResult(name=name, seed=seed, verdict=verdict, sentence="x", exempt=exempt)


def test_a_sheet_counts_each_check_once_over_seeds():
    sheet = Sheet(
        results=[
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


def test_without_audits_every_row_says_so():
    board = board_of()
    assert list(board["audits"]) == ["not audited"] * 2
    assert [f for f in fields(board) if f.name == "audits"]
    assert list(board["model"]) == ["ch-node", "node"]


def test_an_unexplained_flag_withholds_the_rank():
    fine = told_record("node", measured(0.0, 0.0, "Good."))
    board = board_of(told_record("ch-node", measured(1.0, 0.0, "Bad.")), fine)
    assert list(board["model"]) == ["node", "ch-node"]
    assert list(board["rank"]) == [1, 2]
    assert list(board["audit_flags"]) == ["", "finite"]
    clean = next(f for f in fields(board) if f.name == "clean")
    assert best(board, clean) in (set(), {0}), "a flagged row is never the best"
    assert "1 of 18 model checks, 2 passed, 1 flagged" in markdown(board, "x")


def test_nothing_is_best_where_all_are_equal_whoever_is_flagged():
    board = board_of(
        told_record("ch-node", measured(1.0, 0.0, "Bad.")), told_record("node", measured(0, 0, ""))
    )
    clean = next(f for f in fields(board) if f.name == "clean")
    assert best(board.assign(clean=0.5), clean) == set()
    assert best(board.assign(clean=[0.5, 0.4]), clean) == {0}
    assert best(board.assign(clean=[0.5, 0.6]), clean) == set(), "what a flagged row beats is not the best"


def test_a_row_that_nobody_asked_stands_above_one_that_was_asked_and_flagged():
    board = board_of(told_record("ch-node", measured(1.0, 0.0, "Bad.")))
    assert list(board["model"]) == ["node", "ch-node"]
    assert next(iter(board["audits"])) == "not audited"
    assert [len(entries(each)) for each in board["audit_missing"]] == [18, 17]


def test_a_pass_moves_no_row():
    board = board_of(told_record("node", measured(0.0, 1.0, "Good.")))
    assert list(board["model"]) == ["ch-node", "node"]


@pytest.mark.parametrize(
    ("asked", "badges"),
    [
        ({("a", 0), ("a", 1), ("b", 0), ("b", 1)}, ["", ""]),
        ({("a", 0), ("a", 1), ("b", 0)}, ["", "1 of 2 model checks"]),
        ({("a", 0)}, ["", "not audited"]),
        (set(), ["", "not audited"]),
    ],
)
def test_what_the_preset_names_is_asked_at_each_seed(asked, badges):
    names = {"a": "finite", "b": "determinism"}
    records = synthetic.records(["ch-node", "node"], samples=60, seeds=(0, 1))
    fine = not_applicable("x")
    records += [told_record("ch-node", fine, names[c], seed=s) for c in names for s in (0, 1)]
    records += [told_record("node", fine, names[c], seed=s) for c, s in sorted(asked)]
    found = sheets(records, Headline(audits=list(names.values())))
    assert [found["digits", model, "quick"].coverage() for model in ("ch-node", "node")] == badges
    assert bool(found["digits", "node", "quick"].missing) == (len(asked) < 4)


def test_a_model_of_one_seed_owes_no_other_seeds():
    records = synthetic.records(["ch-node"], samples=60, seeds=(0, 1)) + synthetic.records(
        ["node"], samples=60
    )
    for model, seed in (("ch-node", 0), ("ch-node", 1), ("node", 0)):
        records.append(told_record(model, not_applicable("x"), seed=seed))
    assert not any(sheet.missing for sheet in sheets(records, Headline(audits=["finite"])).values())


def test_a_row_that_was_asked_everything_says_no_more():
    names = names_of("model")
    records = synthetic.records(["node"], samples=60)
    records += [told_record("node", not_applicable("x"), name) for name in names]
    (sheet,) = sheets(records, Headline()).values()
    assert (sheet.coverage(), len(sheet.done)) == ("", 18)


def test_a_check_of_records_flags_where_nobody_was_audited():
    made = synthetic.records(["ch-node", "node"], samples=60)
    bad = [synthetic.record_of(r.cell, r.outcomes["correct"] | (r.cell.strength == 0.2)) for r in made
           if r.cell.model == "ch-node" and r.cell.threat == "pgd-linf"]  # fmt: skip
    other = [r for r in made if not (r.cell.model == "ch-node" and r.cell.threat == "pgd-linf")]
    board = leaderboard([*other, *bad], synthetic.HEADLINE)
    assert list(board["model"]) == ["node", "ch-node"]
    assert list(board["audit_flags"]) == ["", "monotone-in-eps"]
    assert list(board["audits"]) == ["not audited", "not audited, 1 flagged"]


def test_an_explained_flag_does_not():
    fine = told_record("node", measured(0.0, 0.0, "Good."))
    board = board_of(told_record("ch-node", measured(1.0, 0.0, "Bad."), exempt="on purpose"), fine)
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
        told_record("node", measured(0.0, 1.0, "x")),
    ]
    found = sheets(records, Headline())
    read = {audit.name for audit in records_audits()}
    assert {row[1]: {f.name for f in sheet.results} for row, sheet in found.items()} == {
        "ch-node": read,
        "node": {"finite", *read},
    }
