"""Per-sample outcomes of each row, for each accuracy of the leaderboard. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ...records.latest import Entry, entry
from ...records.record import SUBMISSION, Record
from ..certificates import CERTIFICATE, attacked_samples, certified, has_radii
from ..worst_case import worst_cases
from .columns import CLEAN, AccuracyColumn, reported_column
from .ranking import Outcomes


def outcomes(
    records: Iterable[Record], reported: Sequence[AccuracyColumn]
) -> dict[AccuracyColumn, dict[Entry, Outcomes]]:
    """Collect per-sample outcomes, by column and row.

    Parameters
    ----------
    records
        Those that count (`records.latest.current`).

    Returns
    -------
    found
        Rows without a usable record of a column are absent; of the others, the draws and samples that all
        of a row's seeds have.
    """
    used = list(records)
    index = {entry(r.cell): r.cell.index_sha256 for r in used if r.cell.kind == "accuracy"}
    found: dict[AccuracyColumn, dict[Entry, list[NDArray[np.bool_]]]] = {column: {} for column in reported}
    drawn: dict[tuple[AccuracyColumn, Entry], dict[str, list[NDArray[np.bool_]]]] = {}
    for record in used:
        cell = record.cell
        if cell.kind != "accuracy" or cell.norm is not None or record.status != "ok":
            continue
        column = CLEAN if cell.threat == "clean" else reported_column(cell.threat, cell.strength)
        if column in found and cell.family != SUBMISSION:
            by_protocol = drawn.setdefault((column, entry(cell)), defaultdict(list))
            by_protocol[cell.protocol].append(record.outcomes["correct"])
    for (column, row), by_protocol in drawn.items():
        found[column][row] = by_protocol["pixel" if "pixel" in by_protocol else min(by_protocol)]
    for row, protocol, norm, by_strength in worst_cases(used):
        for strength, worst in by_strength.items():
            column = reported_column(norm, strength)
            if column in found and (protocol == "pixel" or row not in found[column]):
                found[column][row] = [each.robust[None] for each in worst]
    attacked = attacked_samples(used)
    for column in reported:
        if column.kind == "certified":
            found[column] = _certified(used, column, attacked)
    return {
        column: {
            row: Outcomes(correct=_stacked(each), index=index.get(row, "")) for row, each in rows.items()
        }
        for column, rows in found.items()
    }


def _certified(
    records: list[Record], column: AccuracyColumn, attacked: Mapping[tuple[Entry, str], int]
) -> dict[Entry, list[NDArray[np.bool_]]]:
    """Which samples are certified, of those that were attacked in this norm."""
    found: dict[Entry, list[NDArray[np.bool_]]] = defaultdict(list)
    for record in records:
        if has_radii(record, CERTIFICATE):
            row = entry(record.cell)
            safe = certified(record, column.of, column.strength)
            found[row].append(safe[: attacked.get((row, column.of))][None])
    return found


def _stacked(outcomes: list[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """One array (seeds, draws, samples) of arrays (draws, samples)."""
    draws, samples = (min(each.shape[axis] for each in outcomes) for axis in (0, 1))
    return np.stack([each[:draws, :samples] for each in outcomes])
