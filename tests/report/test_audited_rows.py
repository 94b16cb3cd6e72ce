"""What audits do to a leaderboard: a flag moves its own row, and nothing else does anything to any row."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st
from robustode.bench.audits.library import names_of
from robustode.bench.audits.sheet import sheets
from robustode.bench.records.headline import Headline
from robustode.bench.records.latest import current
from robustode.bench.records.record import Record
from robustode.bench.report.figures import labelled
from robustode.bench.report.html.audit_lines import audit_badge
from robustode.bench.report.html.leaderboard_table import evidence, grid
from robustode.bench.report.leaderboard.json_table import leaderboard_json
from robustode.bench.report.leaderboard.latex_table import latex
from robustode.bench.report.leaderboard.leaderboard import leaderboard
from robustode.bench.report.leaderboard.markdown_table import markdown
from robustode.bench.report.leaderboard.shown_fields import best, fields
from robustode.bench.report.leaderboard.terminal_table import terminal_table
from robustode.bench.report.statistics import summarise
from test_stats import outcome

CHECKS = tuple(synthetic.CHECKS)
HEADLINE = Headline(reported={"linf": 0.1}, rank="linf", audits=CHECKS)
NAMES = ("a", "b", "c", "d")
SAMPLES = 100
Asked = dict[str, dict[str, str]]
"""By row, the answer of each audit that it was asked."""


def of_row(name: str, survivors: int) -> list[Record]:
    order = np.arange(SAMPLES)
    clean = outcome(name, "clean", 0.0, order < min(SAMPLES, survivors + 30))
    return [clean, outcome(name, "pgd-linf", 0.1, order < survivors)]


def answer(name: str, check: str, verdict: str, created: str = "2026-01-01", **changes: Any) -> Record:
    exempt = "meant" if verdict == "exempt" else ""
    plain = "flag" if exempt else "pass" if verdict in ("error", "timeout") else verdict
    record = synthetic.audit_record(name, 0, check, created, plain, exempt, **changes)
    return synthetic.failed(record, "boom", verdict) if verdict in ("error", "timeout") else record


def records_of(values: Sequence[int], asked: Asked) -> list[Record]:
    rows = [record for name, value in zip(NAMES, values, strict=False) for record in of_row(name, value)]
    return rows + [
        answer(name, check, verdict) for name, answers in asked.items() for check, verdict in answers.items()
    ]


def shown(records: list[Record], headline: Headline = HEADLINE) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The leaderboard, and what each of its forms says of each row's badge and bold type."""
    audited = sheets(records, headline)
    summary = summarise(records)
    board = leaderboard(records, headline, summary, audited)
    keys = list(board[["dataset", "model", "recipe"]].itertuples(index=False, name=None))
    anchors = {key: key[1] for key in keys}
    badges = {key: audit_badge(audited[key]) for key in keys}
    page = grid("digits", labelled(board), evidence(summary), anchors, badges)
    table = terminal_table(board, None)
    by_terminal = zip(*(column._cells for column in table.columns), strict=True)
    program = {row["model"]: row for row in json.loads(leaderboard_json(board, headline))["rows"]}
    bold = {f.name: {board["model"][i] for i in best(board, f)} for f in fields(board)}
    forms = {
        name: {
            "badge": board.set_index("model").loc[name, "audits"],
            "json": (program[name]["audits"], program[name]["audited"]),
            "bold": sorted(column for column, names in bold.items() if name in names),
        }
        for name in board["model"]
    }
    for line in page["lines"]:
        cells = dict(zip([c["name"] for c in page["columns"]], line["cells"], strict=True))
        forms[line["label"]]["page"] = (
            cells["audits"]["text"],
            cells["audits"]["tag"],
            sorted(name for name, cell in cells.items() if cell["best"]),
        )
    for cells in by_terminal:
        forms[str(cells[1])]["terminal"] = [cell.style == "bold" for cell in cells]
    for line in markdown(board, "x").splitlines():
        if match := re.match(r"\| *\d+ \| (\w) ", line):
            forms[match[1]]["markdown"] = line.count("**"), "not audited" in line
    for line in latex(board, "x").splitlines():
        if match := re.match(r"\d+ & (\w) ", line):
            forms[match[1]]["latex"] = line.count("textbf"), "not audited" in line
    return board, forms


def order(board: pd.DataFrame) -> list[str]:
    return list(board["model"])


def flagged(answers: dict[str, str]) -> bool:
    return bool({"flag", "error", "timeout"} & set(answers.values()))


every = dict.fromkeys(CHECKS, "pass")
verdicts = st.sampled_from(["pass", "flag", "exempt", "not applicable", "not asked", "error", "timeout"])
answers = st.dictionaries(st.sampled_from(CHECKS), verdicts)
values = st.lists(st.integers(0, 70), min_size=2, max_size=4)


def test_a_lower_accuracy_is_not_lifted_by_one_more_check():
    """47.0% stood above 56.0% after 7 checks against 6, in bold and with a green badge."""
    for headline in (Headline(reported={"linf": 0.1}, rank="linf"), HEADLINE):
        records = [*of_row("more", 47), *of_row("better", 56)]
        asked = {"better": CHECKS[:2], "more": CHECKS[:3]}
        records += [answer(name, check, "pass") for name, mine in asked.items() for check in mine]
        board = leaderboard(records, headline)
        assert order(board) == ["better", "more"]
        ranking = next(f for f in fields(board) if f.name == "linf@0.1")
        assert best(board, ranking) == {0}


def test_two_flags_without_an_audit_stand_by_value_among_the_flagged():
    """A row with two flags that was not audited stood above an audited one with one."""
    one_flag = {**every, CHECKS[0]: "flag"}
    two_flags = {CHECKS[0]: "flag", CHECKS[1]: "flag"}
    board, forms = shown(records_of([30, 60, 20], {"a": one_flag, "b": two_flags}))
    assert order(board) == ["c", "b", "a"]
    board, forms = shown(records_of([60, 30, 20], {"a": one_flag, "b": two_flags}))
    assert order(board) == ["c", "a", "b"]
    assert forms["c"]["badge"] == "not audited"


@given(values, st.dictionaries(st.sampled_from(NAMES), answers))
@settings(max_examples=25)
def test_rows_stand_by_their_flags_and_then_by_their_values_alone(values: list[int], asked: Asked):
    asked = {name: mine for name, mine in asked.items() if name in NAMES[: len(values)]}
    board, _ = shown(records_of(values, asked))
    expected = sorted(
        zip(NAMES, values, strict=False), key=lambda row: (flagged(asked.get(row[0], {})), -row[1], row[0])
    )
    assert order(board) == [name for name, _ in expected]


@given(values, st.dictionaries(st.sampled_from(NAMES), answers), answers)
@settings(max_examples=25)
def test_auditing_one_row_changes_nothing_about_the_others(values: list[int], asked: Asked, more: Any):
    asked = {name: mine for name, mine in asked.items() if name in NAMES[: len(values)]}
    before, forms_before = shown(records_of(values, asked))
    after, forms_after = shown(records_of(values, asked | {"a": asked.get("a", {}) | more}))
    others = [name for name in order(before) if name != "a"]
    assert [name for name in order(after) if name != "a"] == others
    assert {name: forms_before[name] for name in others} == {name: forms_after[name] for name in others}


@pytest.mark.parametrize(
    ("answers", "badge", "tag", "below"),
    [
        ({}, "not audited", "", 0),
        (every, "4 passed", "pass", 0),
        (every | {CHECKS[0]: "exempt"}, "3 passed, 1 explained", "pass", 0),
        (every | {CHECKS[0]: "not applicable"}, "3 passed", "pass", 0),
        (every | {CHECKS[0]: "not asked"}, "3 of 4 model checks, 3 passed", "", 0),
        (every | {CHECKS[0]: "error"}, "3 passed, 1 flagged", "flag", 1),
        (every | {CHECKS[0]: "timeout"}, "3 passed, 1 flagged", "flag", 1),
        ({CHECKS[0]: "flag"}, "1 of 4 model checks, 1 flagged", "flag", 1),
        ({"black-box": "pass"}, "not audited", "", 0),
        ({"black-box": "flag"}, "not audited, 1 flagged", "flag", 1),
    ],
)
def test_what_a_badge_says(answers: dict[str, str], badge: str, tag: str, below: int):
    records = of_row("a", 50)
    for check, verdict in answers.items():
        record = answer("a", CHECKS[1] if check == "black-box" else check, verdict)
        if check == "black-box":
            cell = synthetic.cell("a", kind="audit", threat=check, family="audit", samples=128)
            record = Record(**(record.__dict__ | {"cell": cell}))
        records.append(record)
    _, forms = shown([*records, *of_row("b", 40)])
    text, found, _ = forms["a"]["page"]
    assert (text, found) == (badge, tag)
    assert forms["a"]["badge"] == badge
    assert forms["a"]["json"][1] is (tag == "pass" or badge == "3 passed, 1 flagged")
    board, _ = shown([*records, *of_row("b", 40)])
    assert order(board).index("a") == below


def test_an_older_audit_gives_way_to_the_newer():
    old = [answer("a", check, "flag", threat_version=1) for check in CHECKS]
    new = [answer("a", check, "pass", "2026-02-01", threat_version=2) for check in CHECKS]
    used, superseded = current([*of_row("a", 50), *old, *new])
    _, forms = shown([*used, *of_row("b", 40)])
    assert (superseded, forms["a"]["badge"]) == (len(CHECKS), "4 passed")


def test_a_preset_names_its_audits_and_every_plan_before_that_means_all(tmp_path):
    HEADLINE.write(tmp_path)
    assert list(Headline.read(tmp_path).audits) == list(CHECKS)
    Headline(reported={"linf": 0.1}, rank="linf").write(tmp_path)
    assert Headline.read(tmp_path).audits is None
    assert "audits" not in json.loads((tmp_path / "plan.json").read_text())
    (sheet,) = sheets(of_row("a", 50), Headline.read(tmp_path)).values()
    assert tuple(sheet.missing) == names_of("model")
