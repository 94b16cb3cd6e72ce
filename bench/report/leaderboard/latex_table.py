"""The leaderboard as a LaTeX table, whole or of chosen columns for a paper. No torch.

The whole one needs the package booktabs, that of a paper graphicx too.

``Styler.to_latex`` of pandas is not used: it writes no rule under a group of columns, and its escaping leaves
ε, σ, ± and ℓ∞ as they are, which pdfLaTeX does not print.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import Any

import pandas as pd

from ...._registry import unknown_name
from ..tex import tex_escaped
from ..text import missing, percent
from .row_status import PRETRAINED_NOTE, UNTRAINED_NOTE, is_pretrained, is_trained
from .shown_fields import BUSY_NOTE, Field, any_busy, best, compact, fields, single_best, written


def latex(board: pd.DataFrame, title: str) -> str:
    """Write one floating table per dataset: percentages, spread over seeds, best values bold.

    Parameters
    ----------
    board
        What ``leaderboard.leaderboard`` returns.
    """
    parts = ["% Made by robustode; needs \\usepackage{booktabs}.", ""]
    for dataset, rows in board.groupby("dataset", sort=True):
        columns = compact(rows)
        parts += _table(str(dataset), rows, title, columns, {f.name: best(rows, f) for f in columns})
    return "\n".join(parts)


def chosen_fields(board: pd.DataFrame, names: Sequence[str], *, ranked: bool) -> list[Field]:
    """The columns of a paper's table: the model, and `names` in their order, or what a reader needs.

    Parameters
    ----------
    names
        Columns of ``leaderboard.csv``; ``inference`` and ``training-step`` are those of all devices.
    ranked
        Whether ranks are among the columns where `names` is empty.

    Raises
    ------
    UnknownName
        When the board has no such column.
    """
    every = fields(board)
    if not names:
        plain = [f for f in compact(board) if f.name not in ("audits", "samples", "status")]
        return [f for f in plain if ranked or f.name != "rank"]
    known = {name for f in every for name in (f.key, f.name)}
    for name in names:
        if name not in known:
            raise unknown_name("column", name, sorted(known))
    found = [f for name in names for f in every if name in (f.key, f.name)]
    return [*(f for f in every if f.name == "model" and "model" not in names), *found]


def paper_table(board: pd.DataFrame, title: str, columns: Sequence[Field], *, intervals: bool = False) -> str:
    """Write one floating table per dataset, shrunk to the width of a column of text where it is wider.

    A value is bold where it is the best one alone, neither timed on a busy machine nor 0.

    Parameters
    ----------
    board
        What ``leaderboard.leaderboard`` returns, or some rows of it.
    intervals
        Whether accuracies have their 95% intervals, in a line of their own.
    """
    parts = ["% Made by robustode; needs \\usepackage{booktabs,graphicx}.", ""]
    for dataset, rows in board.groupby("dataset", sort=True):
        tops = {f.name: single_best(rows, f) for f in columns}
        lines = _table(str(dataset), rows, title, columns, tops, intervals=intervals)
        begin = next(i for i, line in enumerate(lines) if line.startswith("\\begin{tabular}"))
        end = lines.index("\\end{tabular}")
        shrunk = "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%"
        lines = [*lines[:begin], shrunk, *lines[begin:end], "\\end{tabular}}", *lines[end + 1 :]]
        parts += lines
    return "\n".join(parts)


def _table(
    dataset: str,
    rows: pd.DataFrame,
    title: str,
    columns: Sequence[Field],
    tops: Mapping[str, Collection[int]],
    *,
    intervals: bool = False,
) -> list[str]:
    align = "".join("l" if f.kind == "text" else "r" for f in columns)
    caption = (
        f"{tex_escaped(title)} ({tex_escaped(dataset)}). Accuracies in percent; a worst case, over every "
        "attack of its norm, bounds robust accuracy from above, a certificate from below. Models of one rank "
        "cannot be told apart by McNemar's exact test on the samples ($p \\geq 0.05$)."
    )
    if any(f"{f.name}_spread" in rows for f in columns):
        caption += " $\\pm$: standard deviation over training seeds."
    if intervals:
        caption += " Brackets: 95\\% intervals."
    if any_busy(columns, rows):
        caption += f" *: {tex_escaped(BUSY_NOTE)}."
    if not is_trained(rows).all():
        caption += f" {tex_escaped(UNTRAINED_NOTE.capitalize())}."
    if is_pretrained(rows).any():
        caption += f" {tex_escaped(PRETRAINED_NOTE.capitalize())}."
    label = re.sub(r"[^A-Za-z0-9-]+", "-", dataset).strip("-") or "dataset"
    lines = [
        "\\begin{table}",
        "\\centering\\footnotesize",
        "\\setlength{\\tabcolsep}{4pt}",
        f"\\caption{{{caption}}}",
        f"\\label{{tab:robustode-{label}}}",
        f"\\begin{{tabular}}{{{align}}}",
        "\\toprule",
        *_groups(columns),
        _line([tex_escaped(f.title) for f in columns]),
        _line([f"{{\\scriptsize {tex_escaped(_note(f))}}}" if _note(f) else "" for f in columns]),
        "\\midrule",
    ]
    for i, (_, row) in enumerate(rows.iterrows()):
        lines.append(_line([_cell(f, row, i in tops[f.name]) for f in columns]))
        if intervals:
            lines.append(_line([_interval(f, row) for f in columns]))
    return [*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}", ""]


def _groups(columns: Sequence[Field]) -> list[str]:
    """Headings over the columns that stand together, each with its rule."""
    heads, rules, at = [], [], 1
    for group, members in groupby(columns, key=lambda f: f.group):
        span = len(list(members))
        heads.append(
            f"\\multicolumn{{{span}}}{{c}}{{{tex_escaped(group)}}}" if group else " & ".join([""] * span)
        )
        if group:
            rules.append(f"\\cmidrule(lr){{{at}-{at + span - 1}}}")
        at += span
    return [_line(heads), "".join(rules)]


def _note(field: Field) -> str:
    return "" if field.kind == "rate" else field.note  # the device is in the group's heading


def _cell(field: Field, row: pd.Series[Any], bold: bool) -> str:
    text = tex_escaped(written(field, row))
    if text and bold:
        text = f"\\textbf{{{text}}}"
    spread = row.get(f"{field.name}_spread")
    if text and not missing(spread):
        text += f"\\,{{\\scriptsize$\\pm$\\,{percent(spread)}}}"
    return text


def _interval(field: Field, row: pd.Series[Any]) -> str:
    of = field.accuracy
    if of is None or missing(row[of.low]):
        return ""
    return f"{{\\scriptsize [{percent(row[of.low])}, {percent(row[of.high])}]}}"


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
