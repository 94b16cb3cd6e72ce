"""From records to what each row did on each test sample, for the columns of the leaderboard. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from ...records.latest import Entry, entry
from ...records.record import SUBMISSION, Record
from ..statistics import CERTIFICATE, worst_cases
from .ranking import Outcomes

CERTIFIED = "certified-"
"""Before a norm: the lower bound beside its worst case."""
Reported = Mapping[str, tuple[str, float]]


def outcomes(records: Iterable[Record], reported: Reported) -> dict[str, dict[Entry, Outcomes]]:
    """Collect per-sample outcomes, by column and row.

    Parameters
    ----------
    records
        Those that count (`selection.current`).
    reported
        By column its key (``clean``, a noise, a norm for its worst case, ``certified-<norm>``) and strength.

    Returns
    -------
    found
        Rows without a usable record of a column are absent; of the others, the draws and samples that all
        of a row's seeds have.
    """
    used = list(records)
    columns = {(key, round(strength, 9)): name for name, (key, strength) in reported.items()}
    index: dict[Entry, str] = {}
    attacked: dict[tuple[Entry, str], int] = {}
    drawn: dict[tuple[str, Entry], dict[str, list[NDArray[np.bool_]]]] = {}
    for record in used:
        cell, row = record.cell, entry(record.cell)
        if cell.kind != "accuracy":
            continue
        index[row] = cell.index_sha256
        if cell.norm is not None:
            where = (row, cell.norm)
            attacked[where] = min(attacked.get(where, cell.samples), cell.samples)
        elif record.status == "ok" and cell.family != SUBMISSION:
            column = columns.get((cell.threat, round(cell.strength, 9)))
            if column is not None:
                by_protocol = drawn.setdefault((column, row), defaultdict(list))
                by_protocol[cell.protocol].append(record.outcomes["correct"])
    found: dict[str, dict[Entry, list[NDArray[np.bool_]]]] = {name: {} for name in reported}
    for (column, row), by_protocol in drawn.items():
        found[column][row] = by_protocol["pixel" if "pixel" in by_protocol else min(by_protocol)]
    for row, protocol, norm, survived in worst_cases(used):
        for strength, kept in survived.items():
            column = columns.get((norm, round(strength, 9)))
            if column is not None and (protocol == "pixel" or row not in found[column]):
                found[column][row] = [each[None] for each in kept]
    for name, (key, strength) in reported.items():
        if key.startswith(CERTIFIED):
            found[name] = _certified(used, key.removeprefix(CERTIFIED), strength, attacked)
    return {
        name: {row: Outcomes(correct=_stacked(kept), index=index.get(row, "")) for row, kept in rows.items()}
        for name, rows in found.items()
    }


def _certified(
    records: list[Record], norm: str, strength: float, attacked: Mapping[tuple[Entry, str], int]
) -> dict[Entry, list[NDArray[np.bool_]]]:
    """Which samples are certified, of those that were attacked in this norm."""
    found: dict[Entry, list[NDArray[np.bool_]]] = defaultdict(list)
    for record in records:
        cell, radius = record.cell, record.outcomes.get("radius")
        if cell.kind == "certificate" and cell.threat == CERTIFICATE and radius is not None:
            scale = 1.0 if norm == "l2" else float(np.sqrt(record.measures["pixels"]))
            row = entry(cell)
            found[row].append((radius[: attacked.get((row, norm), radius.size)] > strength * scale)[None])
    return found


def _stacked(kept: list[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """One array (seeds, draws, samples) of arrays (draws, samples)."""
    draws, samples = (min(each.shape[axis] for each in kept) for axis in (0, 1))
    return np.stack([each[:draws, :samples] for each in kept])
