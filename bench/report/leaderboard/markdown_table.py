"""The leaderboard as GitHub Markdown. No torch."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ..markdown import markdown_escaped, markdown_table
from ..text import missing, percent
from .row_status import PRETRAINED_NOTE, UNTRAINED_NOTE, is_pretrained, is_trained
from .shown_fields import BUSY_NOTE, Field, any_busy, best, compact, written


def markdown(board: pd.DataFrame, title: str) -> str:
    """Write the leaderboard as GitHub Markdown: percentages, 95% intervals, best values bold.

    A model's name links to its paper; ± is the standard deviation over training seeds.
    """
    parts = [f"# {markdown_escaped(title)}", ""]
    for dataset, rows in board.groupby("dataset", sort=True):
        columns = compact(rows)
        heads = [
            " ".join(markdown_escaped(x) for x in (f.title, f.note and f"({f.note})") if x) for f in columns
        ]
        tops = {f.name: best(rows, f) for f in columns}
        lines = [
            [_cell(f, row, i in tops[f.name]) for f in columns] for i, (_, row) in enumerate(rows.iterrows())
        ]
        text = [at for at, f in enumerate(columns) if f.kind == "text"]
        parts += [f"## {markdown_escaped(dataset)}", "", *markdown_table(heads, lines, left=text), ""]
    parts += [
        "Accuracies in percent with 95% Wilson intervals; a worst case is taken per test sample over every",
        "attack of its norm, so it is an upper bound on robust accuracy; certified is a lower bound.",
        "Models of one rank cannot be told apart: McNemar's exact test on the samples, p ≥ 0.05.",
        "Blank: failed, not run, without a certificate, or (NFE) not counted.",
    ]
    parts += [f"\\*: {BUSY_NOTE}."] if any_busy(compact(board), board) else []
    parts += [f"{UNTRAINED_NOTE.capitalize()}."] if not is_trained(board).all() else []
    parts += [f"{PRETRAINED_NOTE.capitalize()}."] if is_pretrained(board).any() else []
    parts.append("")
    return "\n".join(parts)


def _cell(field: Field, row: pd.Series[Any], bold: bool) -> str:
    text = markdown_escaped(written(field, row))
    if text and bold:
        text = f"**{text}**"
    if field.name == "model" and not missing(row.get("paper")) and row["paper"]:
        text = f"[{text}]({row['paper']})"
    of = field.accuracy
    if text and of and not missing(spread := row.get(of.spread)):
        text += f" ± {percent(spread)}"
    if text and of and not missing(row[of.low]):
        text += f" [{percent(row[of.low])}, {percent(row[of.high])}]"
    return text
