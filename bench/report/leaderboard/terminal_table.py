"""The leaderboard for a terminal, within its width. No torch."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from ..text import missing, percent
from .columns import board_columns
from .ranking import ALPHA
from .row_status import PRETRAINED_NOTE, UNTRAINED_NOTE, is_pretrained, is_trained
from .shown_fields import BUSY_NOTE, Field, any_busy, best, fields, written

WIDTH = 100
_LONGEST = 24
# What is left out first when the table is too wide.
_SPARE = ("paper", "updated", "training-step", "samples", "parameters", "inference", "seeds", "nfe")


def terminal_table(board: pd.DataFrame, width: int | None = WIDTH) -> Table:
    """Make a table of the leaderboard: percentages, the best values in bold, shared ranks marked with =.

    Parameters
    ----------
    board
        What ``leaderboard.leaderboard`` returns; its texts are shown as they are, never as markup.
    width
        Columns of the terminal, None for no limit. Columns of the table that do not fit are left out in the
        order of `_spare`, never the one that ranks, and the caption counts them.
    """
    columns = fields(board) if not board.empty else []
    if not board.empty and board["dataset"].nunique() > 1:
        columns.insert(1, Field(name="dataset", group="", title="Dataset", kind="text"))
    heads = {f.name: _head(f) for f in columns}
    rows = [row for _, row in board.iterrows()]
    texts = {f.name: [_shortened(written(f, row)) + _spread(f, row) for row in rows] for f in columns}
    shared = board.duplicated(["dataset", "rank"], keep=False).tolist() if columns else []
    if columns:
        texts["rank"] = [f"={text}" if tie else text for text, tie in zip(texts["rank"], shared, strict=True)]
    widths = {name: max(_width(heads[name]), *map(cell_len, texts[name])) for name in heads}
    spare = _spare(board, columns) if width is not None else []
    names = [f.name for f in columns if f.name not in spare]
    for name in reversed(spare):
        if width is not None and sum(widths[n] + 2 for n in (*names, name)) <= width:
            names.append(name)
    visible = [f for f in columns if f.name in names]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    tied = f"= cannot be told apart (McNemar's exact test on the samples, p ≥ {ALPHA:g})"
    ranking = board_columns(board).ranking
    notes = [f"ranked by {' at '.join(filter(None, (ranking.title, ranking.at)))}"] if columns else []
    notes += [tied] if any(shared) else []
    notes += (
        ["± standard deviation over training seeds"]
        if any(_spread(f, r) for f in visible for r in rows)
        else []
    )
    notes += [f"* {BUSY_NOTE}"] if any_busy(visible, board) else []
    notes += [UNTRAINED_NOTE] if columns and not is_trained(board).all() else []
    notes += [PRETRAINED_NOTE] if columns and is_pretrained(board).any() else []
    if left_out := len(columns) - len(visible):
        notes.append(f"{left_out} column{'s' * (left_out > 1)} left out; all in leaderboard.md")
    if notes:
        table.caption = Text("\n".join(notes))
        table.caption_justify = "left"
    for f in visible:
        align = "left" if f.kind == "text" else "right"
        table.add_column(Text(heads[f.name]), justify=align, no_wrap=True, vertical="bottom")  # type: ignore[arg-type]
    tops = {f.name: _tops(board, f) for f in visible}
    for i in range(len(board)):
        ok = board["status"].iloc[i] == "ok"
        base = "" if ok else "dim"
        row = [Text(texts[f.name][i], style="bold" if i in tops[f.name] else base) for f in visible]
        table.add_row(*row)
    return table


def _spare(board: pd.DataFrame, columns: Sequence[Field]) -> list[str]:
    """Columns that may be left out, first to last: `_SPARE`, noise, other norms, audits, clean.

    Audits go first where they say the same of every row.
    """
    ranking = board_columns(board).ranking

    def order(field: Field) -> int | None:
        accuracy = field.accuracy
        if field.key in _SPARE:
            return _SPARE.index(field.key)
        if field.key == "audits":
            return len(_SPARE) + 3 if board["audits"].nunique() > 1 else -1
        if accuracy is None or accuracy == ranking:
            return None
        kinds = ("noise", "certified", "worst-case", "audits", "certified by rank", "clean")
        bounds_rank = accuracy.kind == "certified" and accuracy.of == ranking.of
        return len(_SPARE) + kinds.index("certified by rank" if bounds_rank else accuracy.kind)

    found = [(place, f.name) for f in reversed(columns) if (place := order(f)) is not None]
    return [name for _, name in sorted(found, key=lambda each: each[0])]


def _tops(board: pd.DataFrame, field: Field) -> set[int]:
    """Best rows of each dataset apart, as positions in the whole board."""
    found: set[int] = set()
    for positions in board.reset_index(drop=True).groupby("dataset").indices.values():
        found |= {int(positions[i]) for i in best(board.iloc[positions], field)}
    return found


def _head(field: Field) -> str:
    """A heading on narrow lines: the strength below the name, the device below the timing."""
    title = field.title.replace("Worst case", "Worst")
    lines = textwrap.wrap(title, 9, break_long_words=False, break_on_hyphens=False)
    if field.kind == "rate":
        lines += [_shortened(field.note, 14), "samples/s"]
    elif field.kind == "fraction":
        lines.append(field.note or "%")
    return "\n".join(lines)


def _spread(field: Field, row: pd.Series[Any]) -> str:
    """How far the training seeds of a row differ; empty for one seed."""
    value = row.get(field.accuracy.spread) if field.accuracy else None
    return "" if missing(value) else f" ±{percent(value)}"


def _shortened(text: str, longest: int = _LONGEST) -> str:
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _width(text: str) -> int:
    return max(cell_len(line) for line in text.split("\n"))
