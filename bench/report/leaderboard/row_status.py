"""Whether a row of the leaderboard is complete, and how many training seeds it has. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Any

import pandas as pd

from ...records.headline import Headline
from ...records.latest import Entry, entry
from ...records.record import TRANSFER, UNASKED, Cell, Record, digest


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
    for record in used:
        cell, row = record.cell, entry(record.cell)
        seeds[row].add(cell.training_seed)
        failed[row] += record.status != "ok" and cell.kind != "audit"
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
        statuses[row] = (status, len(seeds[row]))
    return statuses


def cleared(board: pd.DataFrame) -> pd.Series[bool]:
    """Which rows are complete and unflagged; how many audits were asked does not count."""
    return (board["status"] == "ok") & (board["audit_flags"] == "")


def order_class(board: pd.DataFrame) -> pd.Series[int]:
    """What rows are ordered by before their values: 0, 1 where flagged, 2 where not complete."""
    doubted = (~cleared(board)).astype(int)
    return doubted.where(board["status"] == "ok", 2)


def _asked(cell: Cell) -> bool:
    """Whether every model answers this cell's question: not what was submitted against one, or replayed."""
    return cell.kind == "accuracy" and cell.family not in UNASKED


def _question(cell: Cell) -> tuple[Any, ...]:
    return cell.protocol, cell.threat, cell.norm, round(cell.strength, 9)


def _settings(cell: Cell) -> str:
    return digest([dict(cell.parameters), cell.draws, cell.samples, cell.attack_seed])
