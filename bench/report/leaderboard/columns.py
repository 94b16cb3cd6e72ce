"""The leaderboard as text and Markdown cells, and what each of its columns means. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ...throughput.machine_load import BUSY
from ..style import key_name, strength_symbol
from ..text import count, missing, percent
from .leaderboard import TIMINGS, cleared

BUSY_NOTE = f"other work took more than {BUSY:.0%} of the machine while this was timed"
_SPARED = ("training-step", "updated", "paper")


@dataclass(frozen=True, kw_only=True)
class Field:
    """One column of the shown leaderboard.

    Attributes
    ----------
    name
        The column of the leaderboard's DataFrame.
    group, title, note
        Heading of the columns it stands with, its own heading, and the small print under that.
    kind
        ``fraction``, ``rate``, ``number`` or ``text``.
    """

    name: str
    group: str
    title: str
    note: str = ""
    kind: str = "number"


def fields(board: pd.DataFrame) -> list[Field]:
    """List the columns to show, in order; what no row has a value for is left out."""
    found = [
        Field(name="rank", group="", title="#"),
        Field(name="model", group="", title="Model", kind="text"),
    ]
    if "recipe" in board and (board["recipe"].nunique() > 1 or "given" in set(board["recipe"])):
        found.append(Field(name="recipe", group="", title="Recipe", kind="text"))
    for name in board.columns:
        key, _, rest = str(name).partition("@")
        if name == "clean":
            found.append(Field(name=name, group="Accuracy (%)", title="Clean", kind="fraction"))
        elif key in TIMINGS:
            title = "Inference" if key == "inference" else "Training step"
            found.append(Field(name=name, group=f"Samples / s, {rest}", title=title, note=rest, kind="rate"))
        elif rest and f"{name}_low" in board:
            strength = f"{strength_symbol(key)} = {rest}"
            found.append(
                Field(name=name, group="Accuracy (%)", title=_short(key), note=strength, kind="fraction")
            )
    found.append(Field(name="nfe", group="Cost", title="NFE", note="per forward"))
    found.append(Field(name="parameters", group="Cost", title="Parameters"))
    found = [f for f in found if f.group in ("", "Accuracy (%)") or board[f.name].notna().any()]
    found.append(Field(name="seeds", group="Evidence", title="Seeds"))
    found.append(Field(name="samples", group="Evidence", title="Samples"))
    if "audits" in board and (board["audits"] != "").any():
        found.append(Field(name="audits", group="Evidence", title="Audits", kind="text"))
    for name, title in (("updated", "Date"), ("paper", "Paper")):
        if name in board and (board[name] != "").any():
            found.append(Field(name=name, group="Evidence", title=title, kind="text"))
    if (board["status"] != "ok").any():
        found.append(Field(name="status", group="Evidence", title="Status", kind="text"))
    return found


def compact(board: pd.DataFrame) -> list[Field]:
    """List the columns for a page of paper or a README: `fields` without what a reader can do without."""
    return [f for f in fields(board) if f.name.partition("@")[0] not in _SPARED]


def _short(key: str) -> str:
    return key_name(key).removesuffix(" noise").replace("Salt-and-pepper", "Salt & pepper")


def shown(field: Field, value: Any) -> str:
    """Write one value of `field` for people; a missing one is blank."""
    if missing(value):
        return ""
    if field.kind == "fraction":
        return percent(value)
    if field.kind == "rate" or field.name == "parameters":
        return count(value)
    return f"{value:.3g}" if isinstance(value, float | np.floating) else str(value)


def is_busy(field: Field, row: pd.Series[Any]) -> bool:
    """Whether `field` is a timing that was taken while other work took the machine."""
    return field.kind == "rate" and field.name in str(row.get("busy", "")).split("; ")


def any_busy(columns: Sequence[Field], rows: pd.DataFrame) -> bool:
    """Whether one of these columns has a star in one of the rows."""
    return any(is_busy(field, row) for _, row in rows.iterrows() for field in columns)


def written(field: Field, row: pd.Series[Any]) -> str:
    """`shown`, with a star where `is_busy`."""
    text = shown(field, row[field.name])
    return f"{text}*" if text and is_busy(field, row) else text


def best(board: pd.DataFrame, field: Field) -> set[int]:
    """Positions of the rows whose shown value is the best of `field`'s column; none where all are equal.

    Only rows that `cleared` names compete, and only in columns where more is better.
    """
    if field.kind not in ("fraction", "rate") or len(board) < 2:
        return set()
    values = board[field.name].where(cleared(board))
    if values.isna().all():
        return set()
    top = shown(field, values.max())
    tops = {i for i, value in enumerate(values) if shown(field, value) == top}
    equal = all(shown(field, value) == top for value in board[field.name])
    return set() if equal else tops


def markdown(board: pd.DataFrame, title: str) -> str:
    """Write the leaderboard as GitHub Markdown: percentages, 95% intervals, best values bold.

    A model's name leads to its paper, a spread over training seeds stands behind ±.
    """
    parts = [f"# {_plain(title)}", ""]
    for dataset, rows in board.groupby("dataset", sort=True):
        columns = compact(rows)
        heads = [" ".join(_plain(x) for x in (f.title, f.note and f"({f.note})") if x) for f in columns]
        parts += [f"## {_plain(dataset)}", "", _line(heads)]
        parts.append(_line(["---" if f.kind == "text" else "---:" for f in columns]))
        tops = {f.name: best(rows, f) for f in columns}
        for i, (_, row) in enumerate(rows.iterrows()):
            parts.append(_line([_cell(f, row, i in tops[f.name]) for f in columns]))
        parts.append("")
    parts += [
        "Accuracies in percent with 95% Wilson intervals; a worst case is taken per test sample over every",
        "attack of its norm, so it is an upper bound on robust accuracy; certified is a lower bound.",
        "Models of one rank cannot be told apart: McNemar's exact test on the samples, p ≥ 0.05.",
        "Blank: failed, not run, without a certificate, or (NFE) not counted.",
    ]
    parts += [f"\\*: {BUSY_NOTE}."] if any_busy(compact(board), board) else []
    parts.append("")
    return "\n".join(parts)


def _cell(field: Field, row: pd.Series[Any], bold: bool) -> str:
    text = _plain(written(field, row))
    if text and bold:
        text = f"**{text}**"
    if field.name == "model" and not missing(row.get("paper")) and row["paper"]:
        text = f"[{text}]({row['paper']})"
    spread = row.get(f"{field.name}_spread")
    if text and not missing(spread):
        text += f" ± {percent(spread)}"
    low = row.get(f"{field.name}_low")
    if text and not missing(low):
        text += f" [{percent(low)}, {percent(row[f'{field.name}_high'])}]"
    return text


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: object) -> str:
    """Escape what Markdown or HTML would read as markup, and keep it on one line."""
    text = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", text) if text != "#" else "#"
