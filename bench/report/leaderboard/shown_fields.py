"""Which columns of the leaderboard people are shown, under which headings, and their cells as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ...throughput.machine_load import BUSY
from ..text import count, missing, percent
from .columns import AccuracyColumn, TimingColumn, board_columns, entries
from .row_status import cleared, is_pretrained, is_trained

BUSY_NOTE = f"other work took more than {BUSY:.0%} of the machine while this was timed"
_OMITTED = ("training-step", "updated", "paper")


@dataclass(frozen=True, kw_only=True)
class Field:
    """One column of the shown leaderboard.

    Attributes
    ----------
    name
        The column of the leaderboard's DataFrame.
    group, title, note
        Heading of its group of columns, its own heading, and the small print under that.
    kind
        ``fraction``, ``rate``, ``number``, ``text`` or ``badge``.
    accuracy, timing
        What it is of, for the kinds ``fraction`` and ``rate``.
    """

    name: str
    group: str
    title: str
    note: str = ""
    kind: str = "number"
    accuracy: AccuracyColumn | None = None
    timing: TimingColumn | None = None

    @property
    def key(self) -> str:
        """Its name, or the task of a timing."""
        return self.timing.task if self.timing else self.name


def fields(board: pd.DataFrame) -> list[Field]:
    """List the columns to show, in order; what no row has a value for is left out."""
    found = [
        Field(name="rank", group="", title="#"),
        Field(name="model", group="", title="Model", kind="text"),
    ]
    if "recipe" in board and (board["recipe"].nunique() > 1 or is_pretrained(board).any()):
        found.append(Field(name="recipe", group="", title="Recipe", kind="text"))
    columns = board_columns(board)
    for accuracy in columns.accuracies:
        note, title = accuracy.at, _short(accuracy.title)
        found.append(
            Field(
                name=accuracy.name,
                group="Accuracy (%)",
                title=title,
                note=note,
                kind="fraction",
                accuracy=accuracy,
            )
        )
    for timing in columns.timings:
        title = "Inference" if timing.task == "inference" else "Training step"
        group = f"Samples / s, {timing.device}"
        found.append(
            Field(name=timing.name, group=group, title=title, note=timing.device, kind="rate", timing=timing)
        )
    found.append(Field(name="nfe", group="Cost", title="NFE", note="per forward"))
    found.append(Field(name="parameters", group="Cost", title="Parameters"))
    found = [f for f in found if f.group in ("", "Accuracy (%)") or board[f.name].notna().any()]
    found.append(Field(name="seeds", group="Evidence", title="Seeds"))
    found.append(Field(name="samples", group="Evidence", title="Samples"))
    if "audits" in board:
        found.append(Field(name="audits", group="Evidence", title="Audits", kind="text"))
    for name, title in (("updated", "Date"), ("paper", "Paper")):
        if name in board and (board[name] != "").any():
            found.append(Field(name=name, group="Evidence", title=title, kind="text"))
    if (board["status"] != "ok").any():
        found.append(Field(name="status", group="Evidence", title="Status", kind="text"))
    return found


def compact(board: pd.DataFrame) -> list[Field]:
    """List the columns for a page of paper or a README: `fields` without what a reader can do without."""
    return [f for f in fields(board) if f.key not in _OMITTED]


def _short(title: str) -> str:
    return title.removesuffix(" noise").replace("Salt-and-pepper", "Salt & pepper")


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
    return field.kind == "rate" and field.name in entries(row.get("busy"))


def any_busy(columns: Sequence[Field], rows: pd.DataFrame) -> bool:
    """Whether one of these columns has a star in one of the rows."""
    return any(is_busy(field, row) for _, row in rows.iterrows() for field in columns)


def written(field: Field, row: pd.Series[Any]) -> str:
    """`shown`, with a star where `is_busy`."""
    text = shown(field, row[field.name])
    return f"{text}*" if text and is_busy(field, row) else text


def best(board: pd.DataFrame, field: Field) -> set[int]:
    """Positions of the rows in bold: those that `cleared` names and that no row beats as shown.

    Only in columns where more is better, and none where all values are equal. A row that is not cleared still
    beats others, so that what is found out about one row never sets another in bold; one that is not trained
    beats none.
    """
    if field.kind not in ("fraction", "rate") or len(board) < 2:
        return set()
    values = board[field.name].where(is_trained(board))
    if values.isna().all():
        return set()
    top = shown(field, values.max())
    best_shown = [shown(field, value) == top for value in board[field.name]]
    if all(best_shown):
        return set()
    return {
        i
        for i, (is_best, clear) in enumerate(zip(best_shown, cleared(board), strict=True))
        if is_best and clear
    }


def single_best(board: pd.DataFrame, field: Field) -> set[int]:
    """The position of the row in bold: where `best` names one alone that is neither busy nor 0; else none."""
    found = best(board, field)
    if len(found) != 1:
        return set()
    row = board.iloc[next(iter(found))]
    worthless = shown(field, row[field.name]) == shown(field, 0.0)
    return set() if worthless or is_busy(field, row) else found
