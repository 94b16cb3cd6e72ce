"""One row per model: accuracy at the reported strengths, cost, audits, rank. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from ...audits.sheet import Sheet, sheets
from ...records.headline import Headline
from ...records.latest import Entry, current, entry, training_card
from ...records.record import Record
from ...throughput.machine_load import BUSY
from ..statistics import summarise
from .columns import (
    CLEAN,
    TASKS,
    AccuracyColumn,
    BoardColumns,
    TimingColumn,
    listed,
    reported_column,
    summary_column,
)
from .order import ranked
from .paper_link import paper_link
from .row_outcomes import outcomes
from .row_status import row_statuses

_MISSING: Mapping[Any, Any] = {"value": np.nan, "low": np.nan, "high": np.nan, "samples": 0, "seeds": 0}


def leaderboard(
    records: Iterable[Record],
    headline: Headline,
    summary: pd.DataFrame | None = None,
    audited: Mapping[Entry, Sheet] | None = None,
) -> pd.DataFrame:
    """Rank the models of each dataset by the worst case (or noise) that `headline` names.

    Columns: rank, dataset, model, recipe, clean, ``<noise>@<strength>``, and ``<norm>@<eps>`` for the
    worst case, ``certified-<norm>@<eps>`` for its lower bound where any model has one, each with ``_low``
    and ``_high`` and, where any model has several training seeds, ``_spread``, their standard deviation, and
    where any gave no answer for some samples, ``_no_answer``, their share;
    ``inference@<device>`` and ``training-step@<device>`` (samples per second, best over
    batch sizes); nfe, parameters, seeds, samples, status, updated (the day of the newest record),
    reference, paper (its address), expected_failures (names of the checks the model is known to fail);
    where any was timed while other work took the machine, busy (the columns of those timings);
    audits (what checks say, counted), audit_flags (those that withhold a rank) and audit_missing (those of
    `headline` that the row was not asked, none for one that counts as audited); p_leader, p_above, and
    ``rank@<column>``, the rank by each of the accuracies.
    `columns.board_columns` gives the accuracies and timings among them as data.
    Accuracies are fractions. A value that some training seed lacks is blank. A row whose status is not ``ok``
    is ranked below those whose status is, and one with an unexplained flag of an audit below those without;
    how many audits a row was asked moves no row. Rows are in the order of their values; those that McNemar's
    test cannot tell apart share a rank, as `ranking.ranks` says.

    Parameters
    ----------
    records
        Any records; superseded ones are left out here.
    headline
        What to report; a key that no record mentions gets no column.
    summary
        ``summarise(records)``, where it is at hand already.
    audited
        ``sheets(records, headline)``, where they are at hand already.
    """
    used, _ = current(records, headline.preferred)
    table = summarise(used) if summary is None else summary
    accuracy = [record for record in used if record.cell.kind == "accuracy"]
    known = {record.cell.norm or record.cell.threat for record in accuracy}
    norms = {record.cell.norm for record in accuracy} - {None}
    reported = {key: strength for key, strength in headline.reported.items() if key in known}

    accuracies = [
        CLEAN,
        *(reported_column(key, strength) for key, strength in reported.items()),
        *(
            AccuracyColumn(kind="certified", of=key, strength=round(strength, 9))
            for key, strength in reported.items()
            if key in norms
        ),
    ]
    values: dict[tuple[Entry, AccuracyColumn], Mapping[Any, Any]] = {}
    spreads: dict[tuple[Entry, AccuracyColumn], Mapping[Any, Any]] = {}
    silent: dict[tuple[Entry, AccuracyColumn], Mapping[Any, Any]] = {}
    sizes: dict[tuple[Entry, str], float] = {}
    best: dict[tuple[Entry, TimingColumn], tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for r in table.to_dict("records"):
        row: Entry = (r["dataset"], r["model"], r["recipe"])
        preferred = r["protocol"] == "pixel"
        if (column := summary_column(r)) is not None:
            kind = str(r["statistic"])
            found = spreads if kind.endswith("_spread") else silent if kind == "no_answer" else values
            if (row, column) not in found or preferred:
                found[row, column] = r
        elif r["statistic"] in ("nfe", "parameters"):
            if (row, r["statistic"]) not in sizes or preferred:
                sizes[row, r["statistic"]] = r["value"]
        elif r["statistic"] == "throughput" and r["threat"] in TASKS:  # not of a part of the model, its flow
            timing = TimingColumn(task=r["threat"], device=r["protocol"])
            best[row, timing] = max(best[row, timing], (r["value"], r["strength"]))
    timings = sorted({timing for _, timing in best}, key=lambda each: (each.device, each.task))

    preferred_rank = reported_column(headline.rank, headline.reported.get(headline.rank, 0.0))
    statuses = row_statuses(used, headline, norms)
    rows = []
    for row, (status, seeds) in statuses.items():
        line: dict[str, Any] = dict(zip(("rank", "dataset", "model", "recipe"), (0, *row), strict=True))
        samples = 0
        for column in accuracies:
            value = values.get((row, column))
            if value is None or value["seeds"] < seeds:
                value, spread, share = _MISSING, np.nan, np.nan
            else:
                spread = spreads.get((row, column), _MISSING)["value"]
                share = silent.get((row, column), {"value": 0.0})["value"]
            line |= {
                column.name: value["value"],
                column.low: value["low"],
                column.high: value["high"],
                column.spread: spread,
                column.no_answer: share,
            }
            if value["samples"] and (not samples or column == preferred_rank):
                samples = value["samples"]
        for timing in timings:
            line[timing.name] = best.get((row, timing), (np.nan,))[0]
        line["nfe"] = sizes.get((row, "nfe"), np.nan)
        line["parameters"] = sizes.get((row, "parameters"), np.nan)
        rows.append(line | {"seeds": seeds, "samples": samples, "status": status})

    board = pd.DataFrame(rows)
    if board.empty:
        board.attrs["columns"] = BoardColumns(accuracies=(), timings=(), ranking=CLEAN)
        return board
    without = [c for c in accuracies if c.kind == "certified" and board[c.name].isna().all()]
    dropped = [name for c in without for name in (c.name, c.low, c.high)]
    dropped += [c.spread for c in accuracies if board[c.spread].isna().all()]
    dropped += [c.no_answer for c in accuracies if not (board[c.no_answer] > 0).any()]
    board = board.drop(columns=dropped)
    accuracies = [c for c in accuracies if c not in without]
    trainings: dict[Entry, list[Record]] = defaultdict(list)
    for record in used:
        trainings[entry(record.cell)] += [record] if record.cell.kind == "training" else []
    cards = [training_card(trainings[row]) for row in statuses]
    references = [str(card.get("reference") or "") for card in cards]
    newest: dict[Entry, str] = defaultdict(str)
    for record in used:
        row = entry(record.cell)
        newest[row] = max(newest[row], str(record.environment.get("created") or ""))
    board["updated"] = [newest[row][:10] for row in statuses]
    board["reference"] = references
    board["paper"] = [paper_link(reference) for reference in references]
    board["expected_failures"] = [listed(sorted(card.get("expected_failures") or {})) for card in cards]
    board["parameters"] = board["parameters"].astype("Int64")
    busy = _busy(used, best)
    if busy:
        board["busy"] = [listed(sorted(busy[row])) for row in statuses]
    audited = sheets(used, headline) if audited is None else audited
    every = [audited[row] for row in statuses]
    board["audits"] = [sheet.badge() for sheet in every]
    board["audit_flags"] = [listed(sheet.against) for sheet in every]
    board["audit_missing"] = [listed(sheet.missing) for sheet in every]
    ranking = next((c for c in (preferred_rank, *accuracies[1:]) if c in accuracies), CLEAN)
    found_of = outcomes(used, accuracies)
    board = ranked(board, ranking, found_of)
    board.attrs["columns"] = BoardColumns(
        accuracies=tuple(accuracies), timings=tuple(timings), ranking=ranking
    )
    return board


def _busy(
    used: Iterable[Record], best: Mapping[tuple[Entry, TimingColumn], tuple[float, float]]
) -> Mapping[Entry, set[str]]:
    """By row the columns of timings whose best batch size was timed while other work took the machine."""
    found: dict[Entry, set[str]] = defaultdict(set)
    for record in used:
        cell, device = record.cell, record.cell.device or "unknown device"
        if record.measures.get("others_load", 0.0) > BUSY and cell.threat in TASKS:
            timing = TimingColumn(task=cell.threat, device=device)
            if (entry(cell), timing) in best and best[entry(cell), timing][1] == cell.batch_size:
                found[entry(cell)].add(timing.name)
    return found
