"""Every defective model is flagged by the right audit and its control is not; with -m slow on three seeds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from gallery import DEFECTS, HONEST, audit_case
from gallery.table import confusion, count_flags, models
from robustode.bench.audits.library import all_audits, audit_names
from robustode.bench.audits.registry import AuditResult

SEEDS = (0, 1, 2)
each_seed = pytest.mark.parametrize(
    "seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in SEEDS[1:])]
)
TABLE = Path(__file__).parents[1] / "gallery" / "confusion.md"
audit_names()  # registers every check


def outcome(found: AuditResult | str) -> str:
    return found if isinstance(found, str) else found.verdict


NO_FLAG = ("pass", "not applicable", "not asked")


@each_seed
@pytest.mark.parametrize("name", DEFECTS)
def test_each_defective_model_is_flagged_by_the_right_check(name, seed):
    defect = DEFECTS[name]
    found = audit_case(defect.defective(seed), seed, [defect.flagged_by])
    assert outcome(found[defect.flagged_by]) == "flag"


@each_seed
@pytest.mark.parametrize("name", DEFECTS)
def test_each_control_passes_the_audit_that_its_defective_model_fails(name, seed):
    defect = DEFECTS[name]
    found = audit_case(defect.control(seed), seed, [defect.flagged_by])
    assert outcome(found[defect.flagged_by]) == "pass"


@each_seed
@pytest.mark.parametrize("name", [name for name, honest in HONEST.items() if not honest.heavy])
def test_no_fast_audit_flags_an_honest_network(name, seed):
    fast = [audit.name for audit in all_audits() if audit.fast]
    found = audit_case(HONEST[name].case(seed), seed, fast)
    assert {n: f for n, f in found.items() if outcome(f) not in NO_FLAG} == {}


def test_the_fast_checks_flag_nothing_of_a_sound_model():
    fast = [audit.name for audit in all_audits() if audit.fast]
    found = audit_case(DEFECTS["softmax_outputs"].control(0), 0, fast)
    assert {name: outcome(f) for name, f in found.items() if outcome(f) not in NO_FLAG} == {}


def rows() -> dict[tuple[str, str], dict[str, str]]:
    """The committed table: flags by (defect, kind) and check."""
    head, _, *lines = [line for line in TABLE.read_text().splitlines() if line.startswith("|")]
    columns = [cell.strip() for cell in head.split("|")[3:-1]]
    found = {}
    for line in lines:
        name, kind, *cells = [cell.strip() for cell in line.split("|")[1:-1]]
        found[name.replace(" ", "_"), kind] = {c: t for c, t in zip(columns, cells, strict=True) if t}
    return found


def test_the_committed_table_shows_no_miss():
    table = rows()
    assert list(table)[: 2 * len(DEFECTS)] == list(models(DEFECTS))
    assert set(table) <= set(models((*DEFECTS, *HONEST)))
    for name, defect in DEFECTS.items():
        assert table[name, "defective"][defect.flagged_by] == "**3/3**"


@pytest.mark.parametrize("name", [*DEFECTS, *HONEST])
def test_the_committed_table_shows_no_false_alarm(name):
    assert rows().get((name, "honest" if name in HONEST else "control"), {}) == {}


def test_the_table_of_counts():
    counts = {("stochastic", "defective"): {"determinism": 3, "black-box": 1}, ("stochastic", "control"): {}}
    text = confusion(counts)
    assert "| stochastic | defective | **3/3** | 1/3 |" in text
    assert re.search(r"\| stochastic \| control \|  \|  \|", text)
    silent = text.splitlines()[-1]
    assert {"finite", "logits", "monotone-in-eps"} <= set(re.findall(r"[a-z][a-z-]+", silent))
    assert "determinism" not in silent


@pytest.mark.slow
def test_the_committed_table_is_what_the_gallery_makes():
    assert confusion(count_flags()) == TABLE.read_text()
