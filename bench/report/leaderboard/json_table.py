"""The leaderboard for programs: JSON with numbers as numbers and null for what is missing. No torch.

``schemas/leaderboard.schema.json`` beside this file describes it (JSON Schema 2020-12). Its version is raised
when a field is removed or changes its meaning.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd

from ...records.headline import Headline
from ..style import NORMS
from ..text import missing
from .leaderboard import TIMINGS, rank_column
from .ranking import ALPHA
from .row_outcomes import CERTIFIED

SCHEMA_VERSION = 1
SCHEMA = "leaderboard.schema.json"


def schema() -> dict[str, Any]:
    """Read the JSON Schema of `leaderboard_json`."""
    text = (files("robustode.bench") / "schemas" / SCHEMA).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def leaderboard_json(board: pd.DataFrame, headline: Headline) -> str:
    """Write the leaderboard as JSON: fractions for accuracies, samples per second, one object a row.

    Parameters
    ----------
    board
        What ``leaderboard.leaderboard`` returns.
    """
    by = rank_column(board, headline)
    body = {
        "schema_version": SCHEMA_VERSION,
        "preset": headline.preset,
        "title": headline.title,
        "ranked_by": _what(by),
        "alpha": ALPHA,
        "rows": [_row(row, [str(name) for name in board.columns]) for row in board.to_dict("records")],
    }
    return json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _row(row: dict[Any, Any], columns: list[str]) -> dict[str, Any]:
    accuracies = [
        {
            **_what(name),
            "value": _number(row[name]),
            **{part: _number(row.get(f"{name}_{part}")) for part in ("low", "high", "spread")},
            "rank": _whole(row.get(f"rank@{name}")),
        }
        for name in columns
        if f"{name}_low" in row
    ]
    rates = [
        {"task": task, "device": device, "samples_per_second": _number(row[name])}
        for name in columns
        for task, at, device in [name.partition("@")]
        if at and task in TIMINGS
    ]
    busy = [name for name in str(row.get("busy") or "").split("; ") if name]
    expected, flags = str(row["expected_failures"]), str(row.get("audit_flags") or "")
    return {
        "rank": _whole(row["rank"]),
        **{name: str(row[name]) for name in ("dataset", "model", "recipe", "status")},
        "p_leader": _number(row["p_leader"]),
        "p_above": _number(row["p_above"]),
        "accuracies": accuracies,
        "throughput": rates,
        **({"busy": busy} if busy else {}),
        "nfe": _number(row["nfe"]),
        "parameters": _whole(row["parameters"]),
        "seeds": int(row["seeds"]),
        "samples": int(row["samples"]),
        **{name: str(row[name]) or None for name in ("updated", "reference", "paper")},
        "expected_failures": expected.split("; ") if expected else [],
        "audits": str(row.get("audits") or "") or None,
        "audit_flags": flags.split("; ") if flags else [],
    }


def _what(name: str) -> dict[str, Any]:
    """What an accuracy is of: its column, its kind, its noise or norm, its strength."""
    key, _, strength = name.partition("@")
    norm = key.removeprefix(CERTIFIED)
    if key == "clean":
        kind = "clean"
    elif key != norm:
        kind = "certified"
    else:
        kind = "worst-case" if key in NORMS else "noise"
    what = {"noise": key, "clean": None}.get(kind, norm)
    return {"column": name, "kind": kind, "of": what, "strength": float(strength or 0.0)}


def _number(value: Any) -> float | None:
    return None if missing(value) or not np.isfinite(value) else float(f"{float(value):.10g}")


def _whole(value: Any) -> int | None:
    return None if missing(value) else int(value)
