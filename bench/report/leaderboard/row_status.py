"""Whether a row of the leaderboard is complete, and how many training seeds it has. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Any

import pandas as pd

from ...audits.sheet import NOT_TRAINED
from ...records.headline import Headline
from ...records.held_out import ALPHA, why_not_trained
from ...records.latest import Entry, entry
from ...records.record import TRANSFER, UNASKED, Cell, Record, digest

UNTRAINED_NOTE = (
    "not trained: on held-out samples no better than always answering with the largest class (one-sided "
    f"binomial test, p ≥ {ALPHA:g}), or without a finite loss"
)
"""What the status says, for a note below a table."""

PRETRAINED = "given"
"""The recipe's name in records of pretrained weights."""
PRETRAINED_NOTE = (
    f"{PRETRAINED}: pretrained weights, whose training is unknown here: they may have seen the test samples"
)
"""What that means, for a note below a table."""


def row_statuses(
    used: list[Record], headline: Headline, norms: Collection[str | None]
) -> dict[Entry, tuple[str, int]]:
    """Status and number of training seeds of each row, in a fixed order.

    A row answers a question (a threat at a strength) only at the settings, samples and draws of the
    dataset's newest record of it, or of the one that the last run asked for.
    """
    settings: dict[Any, tuple[tuple[bool, str], str]] = {}
    for record in used:
        if _asked(record.cell):
            age = (record.cell.key() in headline.preferred, str(record.environment.get("created", "")))
            where = (record.cell.dataset, _question(record.cell))
            settings[where] = max(settings.get(where, ((False, ""), "")), (age, _settings(record.cell)))
    other: set[Entry] = set()
    questions: dict[str, set[Any]] = defaultdict(set)
    answered: dict[Entry, set[Any]] = defaultdict(set)
    seeds: dict[Entry, set[int]] = defaultdict(set)
    solved = {entry(record.cell) for record in used if record.cell.solver is not None}
    through: set[Any] = set()
    failed: dict[Entry, int] = defaultdict(int)
    untrained: dict[Entry, int] = defaultdict(int)
    for record in used:
        cell, row = record.cell, entry(record.cell)
        seeds[row].add(cell.training_seed)
        failed[row] += record.status != "ok" and cell.kind != "audit"
        untrained[row] += cell.kind == "training" and record.status == "ok" and bool(why_not_trained(record))
        if _asked(cell):
            question = _question(cell)
            if settings[cell.dataset, question][1] != _settings(cell):
                other.add(row)
            questions[cell.dataset].add(question)
            through |= {question} if cell.family == TRANSFER else set()
            answered[row].add((cell.training_seed, question))
    statuses = {}
    for row in sorted(seeds):
        asked = questions[row[0]] if row in solved else questions[row[0]] - through
        strengths = {(norm if norm in norms else threat, strength) for _, threat, norm, strength in asked}
        wanted = {("clean", 0.0), *((key, round(strength, 9)) for key, strength in headline.reported.items())}
        missing = len(seeds[row]) * len(asked) > len(answered[row]) or not wanted <= strengths
        status = "incomplete" if missing else "ok"
        if row in other:
            status = "other settings"
        if n := failed[row]:
            status = f"failed: {n} cell{'s' if n > 1 else ''}"
        if n := untrained[row]:
            status = NOT_TRAINED if n == len(seeds[row]) else f"{NOT_TRAINED}: {n} of {len(seeds[row])} seeds"
        statuses[row] = (status, len(seeds[row]))
    return statuses


def cleared(board: pd.DataFrame) -> pd.Series[bool]:
    """Which rows are complete and unflagged; how many audits were asked does not count."""
    return (board["status"] == "ok") & (board["audit_flags"] == "")


def is_trained(board: pd.DataFrame) -> pd.Series[bool]:
    """Which rows are of networks that have learnt something; the others compete with none."""
    return ~board["status"].str.startswith(NOT_TRAINED)


def is_pretrained(board: pd.DataFrame) -> pd.Series[bool]:
    """Which rows are of pretrained weights."""
    return board["recipe"] == PRETRAINED


def order_class(board: pd.DataFrame) -> pd.Series[int]:
    """What rows are ordered by before their values: 0, 1 where flagged, 2 not complete, 3 not trained."""
    doubted = (~cleared(board)).astype(int).where(board["status"] == "ok", 2)
    return doubted.where(is_trained(board), 3)


def _asked(cell: Cell) -> bool:
    """Whether every model answers this cell's question: not what was submitted against one, or replayed."""
    return cell.kind == "accuracy" and cell.family not in UNASKED


def _question(cell: Cell) -> tuple[Any, ...]:
    return cell.protocol, cell.threat, cell.norm, round(cell.strength, 9)


def _settings(cell: Cell) -> str:
    return digest([dict(cell.parameters), cell.draws, cell.samples, cell.attack_seed])
