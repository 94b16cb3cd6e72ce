"""What a results folder reports: its plan, or what follows from its records where no plan can be read."""

from __future__ import annotations

import dataclasses

import pytest
import stubs
from robustode.bench.records.headline import Headline, headline_of, preferred_keys, stated_headline
from robustode.bench.records.record import Record

STATED = Headline(preset="mine", reported={"linf": 0.3}, rank="linf", cells={"digits/net/0": ["a", "b"]})


def record(strength: float) -> Record:
    cell = dataclasses.replace(stubs.cell_for("pgd-linf", strength, 2), recipe={"name": "plain"})
    return Record(cell=cell, environment={"created": "2026-01-01"})


@pytest.mark.parametrize("damage", [None, "{}", "no json"])
def test_a_folder_without_a_plan_that_can_be_read_reports_the_middle_strengths(tmp_path, damage):
    if damage is not None:
        (tmp_path / "plan.json").write_text(damage)
    assert stated_headline(tmp_path) is None
    assert preferred_keys(tmp_path) == frozenset()
    guessed = headline_of(tmp_path, [record(0.1), record(0.2), record(0.4)])
    assert (guessed.reported, guessed.rank) == ({"linf": 0.2}, "linf")


def test_a_folder_reports_what_its_plan_states(tmp_path):
    STATED.write(tmp_path)
    assert stated_headline(tmp_path) == STATED
    assert preferred_keys(tmp_path) == {"a", "b"}
    assert headline_of(tmp_path, [record(0.1)]) == STATED
