"""The leaderboard as a LaTeX table for a paper; it needs the package booktabs and no other. No torch.

``Styler.to_latex`` of pandas is not used: it writes no rule under a group of columns, and its escaping leaves
ε, σ, ± and ℓ∞ as they are, which pdfLaTeX does not print.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

import pandas as pd

from ..tex import tex_escaped
from ..text import missing, percent
from .row_status import UNTRAINED_NOTE, is_trained
from .shown_fields import BUSY_NOTE, Field, any_busy, best, compact, written


def latex(board: pd.DataFrame, title: str) -> str:
    """Write one floating table per dataset: percentages, spread over seeds, best values bold.

    Parameters
    ----------
    board
        What ``leaderboard.leaderboard`` returns.
    """
    parts = ["% Made by robustode; needs \\usepackage{booktabs}.", ""]
    for dataset, rows in board.groupby("dataset", sort=True):
        parts += _table(str(dataset), rows, title)
    return "\n".join(parts)


def _table(dataset: str, rows: pd.DataFrame, title: str) -> list[str]:
    columns = compact(rows)
    align = "".join("l" if f.kind == "text" else "r" for f in columns)
    caption = (
        f"{tex_escaped(title)} ({tex_escaped(dataset)}). Accuracies in percent; a worst case, over every "
        "attack of its norm, bounds robust accuracy from above, a certificate from below. Models of one rank "
        "cannot be told apart by McNemar's exact test on the samples ($p \\geq 0.05$)."
    )
    if any(f"{f.name}_spread" in rows for f in columns):
        caption += " $\\pm$: standard deviation over training seeds."
    if any_busy(columns, rows):
        caption += f" *: {tex_escaped(BUSY_NOTE)}."
    if not is_trained(rows).all():
        caption += f" {tex_escaped(UNTRAINED_NOTE.capitalize())}."
    label = re.sub(r"[^A-Za-z0-9-]+", "-", dataset).strip("-") or "dataset"
    tops = {f.name: best(rows, f) for f in columns}
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
    return [*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}", ""]


def _groups(columns: list[Field]) -> list[str]:
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


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
