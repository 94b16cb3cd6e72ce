"""The leaderboard of the page: columns, cells with their details, filters. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ..leaderboard.columns import board_columns, summary_column
from ..leaderboard.row_status import PRETRAINED, PRETRAINED_NOTE, order_class
from ..leaderboard.shown_fields import BUSY_NOTE, Field, best, fields, is_busy, shown
from ..text import missing, percent
from .audit_lines import AuditBadge

NUMERIC = ("fraction", "rate", "number")
Evidence = Mapping[tuple[Any, ...], tuple[int, int]]


def evidence(summary: pd.DataFrame) -> Evidence:
    """Samples and training seeds behind each accuracy, by (dataset, model, recipe, accuracy column).

    Parameters
    ----------
    summary
        ``statistics.summarise(records)``.
    """
    accuracies = summary[summary["statistic"].isin(["accuracy", "certified_accuracy"])]
    found: dict[tuple[Any, ...], tuple[int, int]] = {}
    for row in accuracies.to_dict("records"):
        key = (row["dataset"], row["model"], row["recipe"], summary_column(row))
        if key not in found or row["protocol"] == "pixel":
            found[key] = int(row["samples"]), int(row["seeds"])
    return found


def grid(
    name: str,
    rows: pd.DataFrame,
    behind: Evidence,
    anchors: Mapping[Any, str],
    badges: Mapping[Any, AuditBadge | None],
) -> dict[str, Any]:
    """One dataset's leaderboard for the template.

    Parameters
    ----------
    rows
        The leaderboard's rows of this dataset, in order, with the column `label`.
    behind
        `evidence` of the summary.
    anchors, badges
        Each row's id, and what its audits come to (`audit_badge`), by (dataset, model, recipe).
    """
    # A row's status and its audits are shown with the model's name, before any number.
    columns = [f for f in fields(rows) if f.name not in ("status", "audits")]
    keys = rows[["dataset", "model", "recipe"]].itertuples(index=False, name=None)
    if any(badges.get(key) for key in keys):
        place = sum(f.group == "" for f in columns)
        columns.insert(place, Field(name="audits", group="", title="Audits", kind="badge"))
    groups: list[list[Any]] = []
    for f in columns:
        if not groups or groups[-1][0] != f.group:
            groups.append([f.group, 0])
        groups[-1][1] += 1
    tops = {f.name: best(rows, f) for f in columns if f.name in rows}
    lines = []
    for i, ((_, row), below) in enumerate(zip(rows.iterrows(), order_class(rows), strict=True)):
        key = row["dataset"], row["model"], row["recipe"]
        badge = badges.get(key)
        cells = [
            _badge(badge) if f.kind == "badge" else _cell(f, row, i in tops[f.name], behind) for f in columns
        ]
        lines.append(
            {
                "anchor": anchors[key],
                "label": row["label"],
                "below": int(below),
                "status": badge.status if badge and below == 1 else str(row["status"]),
                "recipe": row["recipe"],
                "flags": _flags(row, badge, int(below)),
                "cells": cells,
            }
        )
    return {
        "name": name,
        "columns": [_column(f) for f in columns],
        "groups": groups,
        "lines": lines,
        "rank": board_columns(rows).ranking.name,
        "ranks": {
            column.name: [None if missing(v) else int(v) for v in rows[column.rank]]
            for column in board_columns(rows).accuracies
            if column.rank in rows
        },
    }


def _column(field: Field) -> dict[str, Any]:
    numeric = field.kind in NUMERIC
    first = "descending" if numeric and field.group != "Cost" and field.name != "rank" else "ascending"
    return {
        "name": field.name,
        "title": field.title,
        "note": "" if field.kind == "rate" else field.note,
        "text": not numeric,
        "first": first,
        "threat": field.accuracy.of if field.accuracy else "",
        "ranks": field.kind == "fraction",
    }


def _cell(field: Field, row: pd.Series[Any], top: bool, behind: Evidence) -> dict[str, Any]:
    value = row[field.name]
    of = field.accuracy
    low, high, spread = (row.get(name) for name in (of.low, of.high, of.spread)) if of else (None,) * 3
    counts = behind.get((row["dataset"], row["model"], row["recipe"], of)) if of else None
    parts = []
    if not missing(value) and counts:
        parts.append(f"{_many(counts[0], 'sample')}, {_many(counts[1], 'seed')}")
    if not missing(spread):
        parts.append(f"standard deviation over seeds {percent(spread)}")
    if field.name == "rank":
        tests = {"p_leader": "the rank's first row", "p_above": "the row above"}
        found = [f"p = {row[name]:.2g} against {of}" for name, of in tests.items() if _there(row, name)]
        parts.append(", ".join(found))
    busy = is_busy(field, row)
    if busy:
        parts.append(BUSY_NOTE)
    pretrained = field.name == "recipe" and value == PRETRAINED
    if pretrained:
        parts.append(PRETRAINED_NOTE)
    text = shown(field, value)
    interval = "" if missing(low) or missing(value) else f"{percent(low)} – {percent(high)}"
    return {
        "text": text,
        "sort": _sort(field, value),
        "interval": "busy machine" if busy else "may have seen the test samples" if pretrained else interval,
        "tip": "; ".join(filter(None, parts)),
        "best": top,
        "kind": field.kind,
        "link": text if text.startswith("https://") else "",
        "bar": f"{100 * float(value):.1f}" if field.kind == "fraction" and not missing(value) else "",
    }


def _badge(badge: AuditBadge | None) -> dict[str, Any]:
    plain = {"interval": "", "best": False, "kind": "badge", "link": "", "bar": ""}
    if badge is None:
        return {**plain, "text": "", "sort": "", "tip": "", "tag": ""}
    tag = "flag" if badge.flagged else "" if badge.incomplete else "pass"
    return {**plain, "text": badge.text, "sort": badge.text, "tip": badge.tip, "tag": tag}


def _there(row: pd.Series[Any], name: str) -> bool:
    return name in row and not missing(row[name])


def _sort(field: Field, value: Any) -> str:
    """What a column is sorted by: a number in full, or the text."""
    if missing(value):
        return ""
    return f"{float(value):.10g}" if field.kind in NUMERIC else str(value)


def _flags(row: pd.Series[Any], badge: AuditBadge | None, below: int) -> list[str]:
    """What a reader may want to filter rows by."""
    found = {
        "audit": badge is not None and badge.flagged,
        "unaudited": badge is not None and badge.incomplete,
        "expected": bool(row.get("expected_failures")) and not missing(row.get("expected_failures")),
        "untrained": below == 3,
        "incomplete": below == 2,
    }
    return [name for name, holds in found.items() if holds]


def flags(tables: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The flags that any row carries, as (value, words)."""
    words = {
        "audit": "flagged by an audit",
        "unaudited": "not fully audited",
        "expected": "expected check failure",
        "untrained": "not trained",
        "incomplete": "failed or incomplete",
    }
    present = {flag for table in tables for line in table["lines"] for flag in line["flags"]}
    return [(flag, text) for flag, text in words.items() if flag in present]


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
