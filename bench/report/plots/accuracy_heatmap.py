"""Models by threats in colour, at the reported strengths. No torch."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ...records.headline import Headline
from ..canvas import font_size, new_figure
from ..style import QUIET, readable_on, sns, strength_name, threat_name
from ..worst_case import WORST_CASE

HEATMAP_MODELS = 40
WIDEST_LINE = 14  # characters of a threat's name above its column


def draw_heatmap(
    table: pd.DataFrame, board: pd.DataFrame, headline: Headline, *, width: float | None = None
) -> Figure:
    """Accuracy at the reported strengths: models, best first, by threats; what failed is a dash."""
    strengths = table["threat"].map(lambda threat: 0.0 if threat == "clean" else np.nan)
    keys = table["norm"].where(table["norm"].notna(), table["threat"])
    strengths = strengths.fillna(keys.map(dict(headline.reported)))
    at = table[np.isclose(table["strength"], strengths.astype(float))]
    order = sorted(
        {
            (t, None if pd.isna(n) else n, s)
            for t, n, s in zip(at["threat"], at["norm"], at["strength"], strict=True)
        },
        key=lambda c: (
            c[0] != "clean",
            c[1] is not None,
            c[1] != "linf",
            c[1] or "",
            c[0] == WORST_CASE,
            c[0],
        ),
    )
    shown = board["label"].head(HEATMAP_MODELS)
    names, grid = [], []
    for threat, norm, strength in order:
        column_ = at[(at["threat"] == threat) & (at["norm"].fillna("") == (norm or ""))]
        grid.append(100 * column_.drop_duplicates("label").set_index("label")["value"].reindex(shown))
        symbol = strength_name(threat, norm)[0]
        at_strength = "" if threat == "clean" else f"\n{symbol} = {strength:g}"
        names.append(threat_name(threat, norm).replace("Salt-and-pepper", "Salt-pepper") + at_strength)
    values = pd.DataFrame(grid, index=names, dtype=float).T
    cell = 0.95 if width is None else (width - 1.5) / len(names)
    narrow = cell < 0.8  # no room for a bar of colours, nor for names that lie above their columns
    height = 0.36 * len(shown) + (2.6 if narrow else 1.5)
    figure = new_figure(width or max(5.0, 0.95 * len(names) + 2.2), height)
    ax = figure.subplots()
    text = values.map(lambda value: "–" if np.isnan(value) else f"{value:.1f}")
    colours = sns.color_palette("blend:#FBFBF6,#BFD9DC,#5E9DB5,#2B5C8A,#14264B", as_cmap=True)
    sns.heatmap(
        values,
        annot=text,
        fmt="",
        vmin=0,
        vmax=100,
        cmap=colours,
        mask=values.isna(),
        linewidths=1.2,
        linecolor="white",
        annot_kws={"fontsize": font_size(max(5.0, min(8.5, 17 * cell)))},
        cbar=not narrow,
        cbar_kws={"label": "accuracy (%)", "shrink": min(1.0, 2.6 / height), "aspect": 14, "pad": 0.015},
        ax=ax,
    )
    for number in ax.texts:
        column, row = (int(place) for place in number.get_position())
        number.set_in_layout(False)  # it lies in its cell; hundreds of them take long to measure
        number.set_color(readable_on(colours(values.to_numpy(float)[row, column] / 100)))
    for y, x in zip(*np.nonzero(values.isna().to_numpy()), strict=True):
        ax.add_patch(Rectangle((x, y), 1, 1, fc="#F1F2F4", ec="#D5D8DD", hatch="////", lw=0, zorder=0))
        ax.text(x + 0.5, y + 0.5, "n/a", ha="center", va="center", color=QUIET, fontsize=font_size(8))
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    if narrow:
        ax.set_xticklabels([name.replace("\n", ", ") for name in names], rotation=90)
    else:
        ax.set_xticklabels([_wrapped(name) for name in names], rotation=0, linespacing=1.25, va="baseline")
    ax.tick_params(axis="x", pad=6)
    for x in range(1, len(order)):
        if order[x][1] != order[x - 1][1] or order[x - 1][0] == "clean":
            ax.axvline(x, color="white", lw=5)
    failed = dict(zip(board["label"], board["status"] != "ok", strict=True))
    ax.set_yticklabels([label + (" †" if failed[label] else "") for label in shown], rotation=0)
    ax.set(xlabel="", ylabel="")
    ax.grid(False)
    notes = ["† failed or missing cells, ranked below the others"] if any(failed[x] for x in shown) else []
    notes += [f"the {len(shown)} highest ranked of {len(board)} models"] if len(board) > len(shown) else []
    if notes:
        ax.set_xlabel(" · ".join(notes), color=QUIET, fontsize=font_size(8), loc="left", labelpad=8)
    return figure


def _wrapped(name: str) -> str:
    """A threat in three lines or more: its name in at least two, of which one may be empty; its strength."""
    head, _, tail = name.partition("\n")
    first, _, last = head.rpartition(" ")
    lines = [first, last] if first else [last, ""]
    if len(first) > WIDEST_LINE:
        lines = textwrap.wrap(head, WIDEST_LINE)
    return "\n".join([*lines, tail]) if tail else head
