"""Cost and success of each part of an attack, from the measures of records. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from ...records.latest import entry
from ...records.record import Record
from ..style import strength_symbol
from ..text import count, missing, time_text

PREFIX = "part."
_WHAT = ("samples", "broken", "seconds", "forwards", "backwards", "evaluations")
_KEYS = ("dataset", "model", "recipe", "threat", "strength", "part")
COLUMNS = (*_KEYS, *_WHAT, "seeds")
_ORDER = (
    "start",
    "fmn",
    "apgd-ce",
    "apgd-t",
    "fab-t",
    "square",
    "slopes",
    "carried",
    "shrink",
)


def attack_parts(records: Iterable[Record]) -> pd.DataFrame:
    """One row for each part of an attack at a strength, columns `COLUMNS`; means over training seeds.

    `samples` are those that no earlier part broke, `broken` those of them that this part broke; `evaluations`
    are evaluations of the field times samples, over all forward passes, missing in records of before they
    were counted. Where the strengths of a curve were done in one run, what it cost is the strength's share.
    """
    found: dict[tuple[Any, ...], list[list[float]]] = defaultdict(list)
    for record in records:
        cell = record.cell
        names = {k[len(PREFIX) :].rpartition(".")[0] for k in record.measures if k.startswith(PREFIX)}
        for name in names:
            values = [record.measures.get(f"{PREFIX}{name}.{what}", np.nan) for what in _WHAT]
            found[(*entry(cell), cell.threat, cell.strength, name)].append(values)
    rows = [(*where, *np.mean(values, axis=0), len(values)) for where, values in found.items()]
    rows.sort(key=lambda row: (*row[:5], _ORDER.index(row[5]) if row[5] in _ORDER else len(_ORDER), row[5]))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def parts_tables(parts: pd.DataFrame) -> list[dict[str, Any]]:
    """Tables for the page, one per dataset, model and recipe, with formatted numbers."""
    tables = []
    for (dataset, model, recipe), rows in parts.groupby(["dataset", "model", "recipe"], sort=True):
        lines = [
            {
                "threat": row.threat,
                "strength": f"{row.strength:g}",
                "part": row.part,
                "numbers": [
                    ("" if missing(value) else written(value), "" if missing(value) else f"{value:.10g}")
                    for written, value in (
                        (lambda value: f"{value:.4g}", row.samples),
                        (lambda value: f"{value:.4g}", row.broken),
                        (time_text, row.seconds),
                        (count, row.forwards),
                        (count, row.backwards),
                        (count, row.evaluations),
                    )
                ],
            }
            for row in rows.itertuples()
        ]
        symbol = strength_symbol("linf")
        tables.append(
            {"dataset": dataset, "model": model, "recipe": recipe, "symbol": symbol, "lines": lines}
        )
    return tables
