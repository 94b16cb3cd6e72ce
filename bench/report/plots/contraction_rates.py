"""Accuracy against contraction rate, over the rows of one architecture: what a sweep shows. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ...records.record import Record
from ..canvas import folded, legend_columns, new_figure
from ..described_figure import Draw
from ..leaderboard.columns import board_columns
from ..style import sns

FEWEST = 3
"""Rows of one architecture and recipe that make a curve."""


def draw_rates(records: Mapping[str, Sequence[Record]], board: pd.DataFrame) -> Iterator[tuple[str, Draw]]:
    """Clean, reported and certified accuracy against rho, for each architecture with enough rows.

    Those of its commonest training recipe: a line between two recipes would show these, not the rate.

    Parameters
    ----------
    records
        The records that count, by the label of their row; rho is the mean over their training seeds.
    """
    for family, rates in sorted(_families(records).items()):
        rows = board[board["label"].isin(rates)]
        rows = rows[rows["recipe"].isin(rows["recipe"].mode().head(1))]
        if len(rows) < FEWEST:
            continue
        rows = rows.assign(rate=rows["label"].map(rates)).sort_values("rate", kind="stable")
        yield family, partial(_draw, rows, family)


def _families(records: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for label, mine in records.items():
        trainings = [r for r in mine if r.cell.kind == "training" and r.measures.get("rho", 0) > 0]
        if trainings:
            family = str(trainings[0].card.get("architecture", trainings[0].cell.model))
            found[family][label] = float(np.mean([r.measures["rho"] for r in trainings]))
    return found


def _draw(rows: pd.DataFrame, family: str, *, width: float | None = None) -> Figure:
    figure = new_figure(width or 7.2, 3.8)
    ax = figure.subplots()
    shown = [c for c in board_columns(rows).accuracies if rows[c.name].notna().any()]
    colors = sns.color_palette("colorblind", len(shown))
    for column, color in zip(shown, colors, strict=True):
        label = f"{column.title}, {column.at}" if column.at else column.title
        ax.fill_between(
            rows["rate"], 100 * rows[column.low], 100 * rows[column.high], color=color, alpha=0.12, lw=0
        )
        ax.plot(
            rows["rate"],
            100 * rows[column.name],
            color=color,
            marker="o",
            ls=":" if column.kind == "certified" else "-",
            label=label,
        )
    ax.set_xscale("log")
    label = f"contraction rate ρ of the trained {family} (per unit of time)"
    ax.set_xlabel(label if width is None else folded(label, width - 0.5))
    ax.set_ylabel("accuracy (%)")
    ax.set_ylim(-2, 102)
    if width is not None and width < 6:
        entries = legend_columns((str(line.get_label()) for line in ax.lines), width)
        figure.legend(loc="outside lower center", ncols=entries)
    else:
        figure.legend(loc="outside right upper")
    return figure
