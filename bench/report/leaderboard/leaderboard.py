"""One row a model: the reported strengths, the cost, and whether the row can be believed. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from ...audits.sheet import Sheet, sheets
from ...records.headline import Headline
from ...records.latest import Entry, current, entry
from ...records.record import TRANSFER, UNASKED, Cell, Record, digest
from ...throughput.machine_load import BUSY
from ..statistics import CERTIFICATE, WORST_CASE, summarise
from .papers import paper_link
from .ranking import Outcomes, ranks
from .row_outcomes import CERTIFIED as CERTIFIED
from .row_outcomes import outcomes

TIMINGS = ("inference", "training-step")


def column(key: str, strength: float) -> str:
    """Name the leaderboard's column of a reported threat or norm: ``linf@0.1``."""
    return f"{key}@{strength:g}"


def leaderboard(
    records: Iterable[Record],
    headline: Headline,
    summary: pd.DataFrame | None = None,
    audited: Mapping[Entry, Sheet] | None = None,
) -> pd.DataFrame:
    """Rank the models of each dataset by the worst case (or noise) that `headline` names.

    Columns: rank, dataset, model, recipe, clean, ``<noise>@<strength>``, and ``<norm>@<eps>`` for the
    worst case, ``certified-<norm>@<eps>`` for its lower bound where any model has one, each with ``_low``
    and ``_high`` and, where any model has several training seeds, ``_spread``, their standard deviation;
    ``inference@<device>`` and ``training-step@<device>`` (samples per second, best over
    batch sizes); nfe, parameters, seeds, samples, status, updated (the day of the newest record),
    reference, paper (its address), expected_failures (names of the checks the model is known to fail);
    where any was timed while other work took the machine, busy (the columns of those timings);
    where any sheet is told of also audits (what checks say, counted), audit_flags (those that withhold a
    rank) and audit_missing (those that another row was asked and this one not); p_leader, p_above, and
    ``rank@<column>``, the rank by each of the accuracies.
    Accuracies are fractions. A value that some training seed lacks is blank. A row whose status is not ``ok``
    stands below those whose status is, and one with an unexplained flag of an audit, or that was not asked
    all that another was, below those without. Rows are in the order of their values; those that McNemar's
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

    values: dict[tuple[Any, ...], tuple[float, float, float, int, int]] = {}
    best: dict[tuple[Any, ...], tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    spreads: dict[tuple[Any, ...], float] = {}
    devices: list[tuple[str, str]] = []
    for r in table.to_dict("records"):
        row = (r["dataset"], r["model"], r["recipe"])
        if r["statistic"] == "throughput":
            if r["threat"] not in TIMINGS:
                continue  # of a part of the model, its flow: never its throughput
            where = (row, r["threat"], r["protocol"])
            best[where] = max(best[where], (r["value"], r["strength"]))
            devices.append((r["threat"], r["protocol"]))
        elif r["statistic"].startswith("certified_accuracy") and r["threat"] != CERTIFICATE:
            continue  # a certificate of another classifier, the smoothed one
        elif r["statistic"] == "certified_accuracy":
            key = (row, "accuracy", f"{CERTIFIED}{r['norm']}", round(r["strength"], 9))
            values[key] = (r["value"], r["low"], r["high"], r["samples"], r["seeds"])
        elif r["statistic"] == "certified_accuracy_spread":
            spreads[row, f"{CERTIFIED}{r['norm']}", round(r["strength"], 9)] = r["value"]
        elif r["statistic"] == "accuracy_spread":
            name = r["norm"] if r["threat"] == WORST_CASE else r["threat"]
            at = (row, name, round(r["strength"], 9))
            if at not in spreads or r["protocol"] == "pixel":
                spreads[at] = r["value"]
        elif r["statistic"] in ("accuracy", "nfe", "parameters"):
            name = r["norm"] if r["threat"] == WORST_CASE else r["threat"]
            key = (row, r["statistic"], name, round(r["strength"], 9))
            if key not in values or r["protocol"] == "pixel":
                values[key] = (r["value"], r["low"], r["high"], r["samples"], r["seeds"])
    timings = sorted(set(devices), key=lambda pair: (pair[1], pair[0]))

    statuses = _statuses(used, headline, norms)
    certified = {f"{CERTIFIED}{key}": strength for key, strength in reported.items() if key in norms}
    shown = {"clean": 0.0, **reported, **certified}
    names = {key: key if key == "clean" else column(key, strength) for key, strength in shown.items()}
    rows = []
    for row, (status, seeds) in statuses.items():
        line: dict[str, Any] = dict(zip(("rank", "dataset", "model", "recipe"), (0, *row), strict=True))
        samples = 0
        for threat, strength in shown.items():
            found = values.get((row, "accuracy", threat, round(strength, 9)))
            spread = spreads.get((row, threat, round(strength, 9)), np.nan)
            if found is None or found[4] < seeds:
                found, spread = (np.nan, np.nan, np.nan, 0, 0), np.nan
            name = names[threat]
            line |= {
                name: found[0],
                f"{name}_low": found[1],
                f"{name}_high": found[2],
                f"{name}_spread": spread,
            }
            if found[3] and (not samples or threat == headline.rank):
                samples = found[3]
        for threat, device in timings:
            line[f"{threat}@{device}"] = best.get((row, threat, device), (np.nan,))[0]
        line["nfe"] = values.get((row, "nfe", "clean", 0.0), (np.nan,))[0]
        line["parameters"] = values.get((row, "parameters", "model", 0.0), (np.nan,))[0]
        rows.append(line | {"seeds": seeds, "samples": samples, "status": status})

    board = pd.DataFrame(rows)
    if board.empty:
        return board
    without = tuple(
        name for name in names.values() if name.startswith(CERTIFIED) and board[name].isna().all()
    )
    empty = [n for n in board if str(n).endswith("_spread") and board[n].isna().all()]
    board = board.drop(columns=[n for n in board if n in empty or (without and str(n).startswith(without))])
    cards = {entry(r.cell): r.card for r in used if r.cell.kind == "training"}
    references = [str(cards.get(row, {}).get("reference") or "") for row in statuses]
    newest: dict[Entry, str] = defaultdict(str)
    for record in used:
        row = entry(record.cell)
        newest[row] = max(newest[row], str(record.environment.get("created") or ""))
    board["updated"] = [newest[row][:10] for row in statuses]
    board["reference"] = references
    board["paper"] = [paper_link(reference) for reference in references]
    board["expected_failures"] = [
        "; ".join(sorted(cards.get(row, {}).get("expected_failures") or {})) for row in statuses
    ]
    board["parameters"] = board["parameters"].astype("Int64")
    busy = _busy(used, best)
    if busy:
        board["busy"] = ["; ".join(sorted(busy[row])) for row in statuses]
    audited = sheets(used, headline) if audited is None else audited
    if any(sheet.told for sheet in audited.values()):
        every = [audited[row] for row in statuses]
        board["audits"] = [sheet.badge() for sheet in every]
        board["audit_flags"] = ["; ".join(sheet.against) for sheet in every]
        board["audit_missing"] = ["; ".join(sheet.missing) for sheet in every]
    columns = {names[key]: (key, strength) for key, strength in shown.items() if names[key] in board}
    return _ranked(board, rank_column(board, headline), outcomes(used, columns))


def _busy(
    used: Iterable[Record], best: Mapping[tuple[Any, ...], tuple[float, float]]
) -> Mapping[Entry, set[str]]:
    """By row the columns of timings whose best batch size was timed while other work took the machine."""
    found: dict[Entry, set[str]] = defaultdict(set)
    for record in used:
        cell, device = record.cell, record.cell.device or "unknown device"
        if record.measures.get("others_load", 0.0) > BUSY:
            where = (entry(cell), cell.threat, device)
            if where in best and best[where][1] == cell.batch_size:
                found[entry(cell)].add(f"{cell.threat}@{device}")
    return found


def rank_column(board: pd.DataFrame, headline: Headline) -> str:
    """Name the column that ranks: the headline's, else the first reported one, else ``clean``."""
    names = [column(key, strength) for key, strength in headline.reported.items()]
    if headline.rank in headline.reported:
        names.insert(0, column(headline.rank, headline.reported[headline.rank]))
    return next((name for name in names if name in board), "clean")


def _statuses(used: list[Record], headline: Headline, norms: set[str | None]) -> dict[Entry, tuple[str, int]]:
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
    """Which rows are complete, have no unexplained flag of an audit and were asked all that others were."""
    fine = board["status"] == "ok"
    if "audit_flags" in board:
        fine &= (board["audit_flags"] == "") & (board["audit_missing"] == "")
    return fine


def _asked(cell: Cell) -> bool:
    """Whether every model answers this cell's question: not what was submitted against one, or replayed."""
    return cell.kind == "accuracy" and cell.family not in UNASKED


def _question(cell: Cell) -> tuple[Any, ...]:
    return cell.protocol, cell.threat, cell.norm, round(cell.strength, 9)


def _settings(cell: Cell) -> str:
    return digest([dict(cell.parameters), cell.draws, cell.samples, cell.attack_seed])


def _below(board: pd.DataFrame) -> pd.Series[int]:
    """What rows are ordered by before their values: 0, 1 where not cleared, 2 where not complete."""
    doubted = (~cleared(board)).astype(int)
    return doubted.where(board["status"] == "ok", 2)


def _ranked(board: pd.DataFrame, by: str, found: Mapping[str, Mapping[Entry, Outcomes]]) -> pd.DataFrame:
    """Sort within each dataset by `_below`, then by `by`; number the rows by it and by every other column."""
    board = board.assign(_below=_below(board))
    board = board.loc[_order(board, by)].reset_index(drop=True)
    numbers = {name: _numbers(board, name, found.get(name, {})) for name in dict.fromkeys((by, *found))}
    board["rank"] = numbers[by]["rank"]
    board[["p_leader", "p_above"]] = numbers[by][["p_leader", "p_above"]]
    for name in found:
        board[f"rank@{name}"] = numbers[name]["rank"].astype("Int64").where(board[name].notna())
    return board.drop(columns="_below")


def _order(board: pd.DataFrame, by: str) -> pd.Index[int]:
    """Labels of the rows, dataset by dataset, best first."""
    keyed = board.assign(_value=-board[by].round(9).fillna(-1.0))
    return keyed.sort_values(["dataset", "_below", "_value", "model", "recipe"], kind="stable").index


def _numbers(board: pd.DataFrame, by: str, found: Mapping[Entry, Outcomes]) -> pd.DataFrame:
    """Ranks by one column and the p-values behind them, with the labels of `board`."""
    ordered = board.loc[_order(board, by)]
    parts = []
    for _, rows in ordered.groupby("dataset", sort=False):
        names = rows[["dataset", "model", "recipe"]].itertuples(index=False, name=None)
        kept = [
            found.get(name) if known else None for name, known in zip(names, rows[by].notna(), strict=True)
        ]
        numbers = ranks(rows[by].tolist(), rows["_below"].tolist(), kept)
        columns = dict(zip(("rank", "p_leader", "p_above"), numbers, strict=True))
        parts.append(pd.DataFrame(columns, index=rows.index))
    return pd.concat(parts)
