"""Every sinner is flagged by the right check and its honest twin is not, on three seeds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from gallery import SINS, audit_case
from gallery.table import confusion, count_flags
from robustode.bench.audits.library import all_audits, audit_names
from robustode.bench.audits.registry import Verdict

SEEDS = (0, 1, 2)
TABLE = Path(__file__).parents[1] / "gallery" / "confusion.md"
audit_names()  # registers every check


def outcome(found: Verdict | str) -> str:
    return found if isinstance(found, str) else found.outcome


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SINS)
def test_each_sinner_is_flagged_by_the_right_check(name, seed):
    sin = SINS[name]
    found = audit_case(sin.sinner(seed), seed, [sin.flagged_by])
    assert outcome(found[sin.flagged_by]) == "flag"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SINS)
def test_each_twin_passes_the_check_that_its_sinner_fails(name, seed):
    sin = SINS[name]
    found = audit_case(sin.twin(seed), seed, [sin.flagged_by])
    assert outcome(found[sin.flagged_by]) == "pass"


def test_the_fast_checks_flag_nothing_of_an_honest_model():
    fast = [audit.name for audit in all_audits() if audit.fast]
    found = audit_case(SINS["softmax_outputs"].twin(0), 0, fast)
    assert {
        name: outcome(f) for name, f in found.items() if outcome(f) not in ("pass", "not applicable")
    } == {}


def rows() -> dict[tuple[str, str], dict[str, str]]:
    """The committed table: flags by (sin, kind) and check."""
    head, _, *lines = [line for line in TABLE.read_text().splitlines() if line.startswith("|")]
    columns = [cell.strip() for cell in head.split("|")[3:-1]]
    found = {}
    for line in lines:
        name, kind, *cells = [cell.strip() for cell in line.split("|")[1:-1]]
        found[name.replace(" ", "_"), kind] = {c: t for c, t in zip(columns, cells, strict=True) if t}
    return found


def test_the_committed_table_shows_no_miss():
    table = rows()
    assert list(table) == [(name, kind) for name in SINS for kind in ("sinner", "twin")]
    for name, sin in SINS.items():
        assert table[name, "sinner"][sin.flagged_by] == "**3/3**"


@pytest.mark.parametrize("name", SINS)
def test_the_committed_table_shows_no_false_alarm(name):
    assert rows()[name, "twin"] == {}


def test_the_table_of_counts():
    counts = {("stochastic", "sinner"): {"determinism": 3, "black-box": 1}, ("stochastic", "twin"): {}}
    text = confusion(counts)
    assert "| stochastic | sinner | **3/3** | 1/3 |" in text
    assert re.search(r"\| stochastic \| twin \|  \|  \|", text)
    silent = text.splitlines()[-1]
    assert {"finite", "logits", "monotone-in-eps"} <= set(re.findall(r"[a-z][a-z-]+", silent))
    assert "determinism" not in silent


@pytest.mark.slow
def test_the_committed_table_is_what_the_gallery_makes():
    assert confusion(count_flags()) == TABLE.read_text()
