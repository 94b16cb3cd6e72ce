"""What stands on the page, as plain data for the template. No torch."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .audits.page import audit_lines
from .audits.sheet import Sheet
from .figures import Picture, labelled
from .headline import Headline
from .leaderboard import unflagged
from .protocols import SideTable
from .records import SUBMISSION, Record
from .selection import Entry, entry
from .style import key_name, strength_symbol
from .tables import Field, best, fields, shown
from .template import template
from .text import duration, missing, percent
from .timing_tables import timing_tables


def render(
    *,
    records: list[Record],
    summary: pd.DataFrame,
    board: pd.DataFrame,
    headline: Headline,
    pictures: Sequence[Picture],
    protocols: Sequence[SideTable],
    smoothing: Sequence[SideTable],
    problems: Sequence[tuple[str, str]],
    benchmarks: bool,
    superseded: int,
    audited: Mapping[Entry, Sheet],
) -> str:
    """Render the page: one HTML text that needs no network and no other file.

    Parameters
    ----------
    records
        The records that count.
    problems
        Pairs of a file's name and why it was not used.
    benchmarks
        Whether ``benchmarks.html`` stands beside the page.
    audited
        The audit sheets, by row.
    """
    by_row: dict[Entry, list[Record]] = defaultdict(list)
    for record in records:
        by_row[entry(record.cell)].append(record)
    failures = [(r.cell.dataset, r.cell.label(), r.error or r.status) for r in records if r.status != "ok"]
    rank_by = "clean accuracy"
    if headline.rank in headline.reported:
        name, symbol = key_name(headline.rank), strength_symbol(headline.rank)
        rank_by = f"{name[0].lower()}{name[1:]}, {symbol} = {headline.reported[headline.rank]:g}"
    rows: list[Any] = list(labelled(board).itertuples())
    text = template("index.html.j2").render(
        headline=headline,
        rank_by=rank_by,
        datasets=[_dataset(str(name), rows, pictures) for name, rows in board.groupby("dataset", sort=True)],
        protocols=protocols,
        smoothing=smoothing,
        throughput=timing_tables(summary, records),
        submissions=[_submission(r) for r in records if r.cell.family == SUBMISSION],
        cards=[
            {
                **_card(row, by_row[row.dataset, row.model, row.recipe]),
                "audits": audit_lines(audited.get((row.dataset, row.model, row.recipe))),
            }
            for row in rows
        ],
        audited=bool(audited),
        failures=failures,
        problems=problems,
        benchmarks=benchmarks,
        superseded=superseded,
        environments=_environments(records),
        counts={"records": len(records), "models": board["model"].nunique(), "failed": len(failures)},
    )
    return str(text)


def _dataset(name: str, rows: pd.DataFrame, pictures: Sequence[Picture]) -> dict[str, Any]:
    columns = [f for f in fields(rows) if f.name != "status"]  # it stands under the model's name
    groups: list[list[Any]] = []
    for f in columns:
        if not groups or groups[-1][0] != f.group:
            groups.append([f.group, 0])
        groups[-1][1] += 1
    tops = {f.name: best(rows, f) for f in columns}
    lines = [
        {
            "ok": fine,
            "status": row["status"] if row["status"] != "ok" else f"flagged: {row.get('audit_flags', '')}",
            "cells": [_cell(f, row, i in tops[f.name]) for f in columns],
        }
        for i, ((_, row), fine) in enumerate(zip(rows.iterrows(), unflagged(rows), strict=True))
    ]
    mine = [p for p in pictures if p.dataset == name]
    images = [
        {
            "title": p.title,
            "alt": p.alt,
            "name": p.name,
            "uri": _data_uri(p.svg),
            "example": "-examples-" in p.name,
        }
        for p in mine
    ]
    return {"name": name, "columns": columns, "groups": groups, "lines": lines, "images": images}


def _cell(field: Field, row: pd.Series[Any], top: bool) -> dict[str, Any]:
    value = row[field.name]
    low, high = row.get(f"{field.name}_low"), row.get(f"{field.name}_high")
    interval = "" if missing(low) else f"{percent(low)} – {percent(high)}"
    sort = "" if missing(value) else value if field.kind == "text" else f"{float(value):.10g}"
    anchor = _anchor(row["dataset"], row["model"], row["recipe"]) if field.name == "model" else ""
    return {
        "text": shown(field, value),
        "sort": sort,
        "interval": interval,
        "best": top,
        "kind": field.kind,
        "anchor": anchor,
        "bar": f"{100 * float(value):.1f}" if field.kind == "fraction" and not missing(value) else "",
    }


def _submission(record: Record) -> dict[str, Any]:
    cell, count = record.cell, int(record.card["adversarial"]["count"])
    name, symbol = key_name(str(cell.norm)), strength_symbol(str(cell.norm))
    return {
        "model": f"{cell.model} seed {cell.training_seed}",
        "what": f"{name[0].lower()}{name[1:]}, {symbol} = {cell.strength:g}",
        "count": count,
        "origin": str(cell.parameters["origin"]),
    }


def _card(row: Any, records: list[Record]) -> dict[str, Any]:
    card: Mapping[str, Any] = next((r.card for r in records if r.cell.kind == "training"), {})
    cell = records[0].cell
    training = sorted((r for r in records if r.cell.kind == "training"), key=lambda r: r.cell.training_seed)
    claims = card.get("claims") or []
    expected = card.get("expected_failures") or {}
    return {
        "label": row.label,
        "anchor": _anchor(row.dataset, row.model, row.recipe),
        "dataset": row.dataset,
        "rank": row.rank,
        "status": row.status,
        "summary": str(card.get("summary") or ""),
        "reference": str(card.get("reference") or ""),
        "claims": [str(c) for c in claims] if isinstance(claims, list | tuple) else [str(claims)],
        "expected": {str(k): str(v) for k, v in expected.items()} if isinstance(expected, Mapping) else {},
        "settings": {
            "Hyperparameters": _pairs(cell.hyperparameters),
            "Recipe": _pairs(cell.recipe),
            **{f"Trained flow, seed {r.cell.training_seed}": _flow(r) for r in training},
        },
        "parameters": "" if missing(row.parameters) else f"{int(row.parameters):,}",
        "last_epoch": cell.recipe.get("select") == "last",
        "version": cell.model_version,
        "seeds": sorted({r.cell.training_seed for r in records}),
        "training": [_training(record) for record in training if record.status == "ok"],
        "failures": [(r.cell.label(), r.status, r.error or "") for r in records if r.status != "ok"],
    }


def _flow(record: Record) -> list[tuple[str, str]]:
    """What is proven of the trained flow: Lipschitz bounds, contraction constants."""
    others = ("best_epoch", "parameters")
    return [(name, f"{value:.4g}") for name, value in sorted(record.measures.items()) if name not in others]


def _training(record: Record) -> dict[str, Any]:
    curve = {name: np.asarray(values, float).ravel() for name, values in record.outcomes.items()}
    epochs = max((values.size for values in curve.values()), default=0)
    chosen = record.measures.get("best_epoch")
    # Ten epochs at most, the first and the last among them.
    rows = sorted({round(i) for i in np.linspace(0, epochs - 1, min(10, epochs))}) if epochs else []

    def at(name: str, i: int) -> float | None:
        values = curve.get(name)
        return float(values[i]) if values is not None and i < values.size and np.isfinite(values[i]) else None

    names = ("train_loss", "validation_loss", "validation_accuracy")
    return {
        "seed": record.cell.training_seed,
        "epochs": epochs,
        "best": "" if missing(chosen) else f"{chosen:g}",
        "seconds": duration(record.seconds),
        "rows": [(i + 1, *(at(name, i) for name in names)) for i in rows],
    }


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    def text(value: Any) -> str:
        plain = isinstance(value, str | int | float)
        return str(value) if plain else json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)

    return [(str(name), text(values[name])) for name in sorted(values)]


def _environments(records: list[Record]) -> list[list[tuple[str, str]]]:
    """What made the numbers: each different environment once, the time of writing left out."""
    found = {tuple(_pairs({k: v for k, v in r.environment.items() if k != "created"})) for r in records}
    return [list(one) for one in sorted(found) if one]


def _anchor(*names: str) -> str:
    return "model-" + "-".join("".join(c if c.isalnum() else "_" for c in name) for name in names)


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")
