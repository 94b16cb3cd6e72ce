"""Accuracy against strength: one panel per threat, with 95% bands and certified lower bounds. No torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..canvas import Panel, grid, legend_columns, new_figure, panels
from ..style import INK, NAMED_MODELS, OTHER, Style, strength_name, threat_name
from ..worst_case import WORST_CASE


def draw_curves(
    table: pd.DataFrame,
    board: pd.DataFrame,
    looks: dict[str, Style],
    certified: pd.DataFrame | None = None,
    *,
    width: float | None = None,
) -> Figure:
    """Accuracy against strength: one panel per threat, one row per family, 95% bands.

    Certified accuracy, where there is any, is drawn below the worst case of its norm: thin, dotted.
    """
    threats = table.loc[table["threat"] != "clean", ["threat", "norm"]].drop_duplicates()
    rows: dict[tuple[bool, str], list[tuple[str, str | None]]] = {}
    for threat, norm in sorted(
        ((t, None if pd.isna(n) else n) for t, n in threats.itertuples(index=False)),
        key=lambda pair: (pair[1] is not None, pair[1] or "", pair[0] != WORST_CASE, pair[0]),
    ):
        rows.setdefault((norm is not None, norm or ""), []).append((threat, norm))
    across = grid(min(3, max(len(row) for row in rows.values())), 3.1, 0.5, width)
    columns = across.columns
    families = [row for _, row in sorted(rows.items(), key=lambda i: (i[0][0], i[0][1] != "linf", i[0][1]))]
    heights = [-(-len(row) // columns) for row in families]
    shown = board[board["label"].isin(table["label"])]
    named = list(shown["label"].head(NAMED_MODELS))
    figure = new_figure(across.width, 2.35 * across.scale * sum(heights) + 0.6)
    axes = figure.subplots(sum(heights), columns, squeeze=False, sharey=True)
    places: list[tuple[Panel, tuple[str, str | None]]] = []
    for row, height in zip(families, heights, strict=True):
        places += zip(panels(axes[:height], len(row)), row, strict=True)
        axes = axes[height:]
    clean = table[table["threat"] == "clean"]
    for panel, (threat, norm) in places:
        ax = panel.ax
        mine = table[(table["threat"] == threat) & (table["norm"].fillna("") == (norm or ""))]
        # A protocol that clips elsewhere changes images at strength 0 too: its lines do not start clean.
        same = clean["protocol"].isin(mine["protocol"])
        start = clean[clean["label"].isin(mine["label"]) & clean["value"].notna() & same]
        _curve(ax, pd.concat([start, mine], ignore_index=True), named, looks)
        if threat == WORST_CASE and certified is not None:
            _lower_bounds(ax, certified[certified["norm"] == norm], start, named, looks)
        ax.set_title(across.title(threat_name(threat, norm)))
        ax.set_xlabel(across.folded(strength_name(threat, norm)[1]))
        ax.set_xlim(left=0)
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        ax.tick_params(labelleft=panel.left, labelbottom=True)
        ax.set_ylabel("accuracy (%)" if panel.left else "")
    places[0][0].ax.set_ylim(-2, 103)
    places[0][0].ax.set_yticks(range(0, 101, 20))
    handles = [_handle(looks[label], label) for label in named]
    if len(shown) > len(named):
        handles.append(Line2D([], [], color=OTHER, lw=1, label=f"{len(shown) - len(named)} other models"))
    if certified is not None and not certified.empty:
        handles.append(Line2D([], [], color=INK, ls=":", lw=1.3, label="certified"))
    entries = 3 * columns - 3 or 2
    if width is not None:
        entries = legend_columns((str(handle.get_label()) for handle in handles), width)
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), entries))
    return figure


def _curve(ax: Axes, data: pd.DataFrame, named: list[str], looks: dict[str, Style]) -> None:
    data = data.drop_duplicates(["label", "strength"])
    strengths = np.sort(data["strength"].unique())
    # By label a line over all strengths; a strength that failed is NaN, and a gap.
    wide = data.pivot(index="label", columns="strength", values=["value", "low", "high"]) * 100.0
    names = [str(label) for label in wide.index]
    values, lows, highs = (wide[part].to_numpy(float) for part in ("value", "low", "high"))
    lines = [
        np.column_stack([strengths, line])
        for name, line in zip(names, values, strict=True)
        if name not in named
    ]
    if lines:
        ax.add_collection(LineCollection(lines, colors=OTHER, linewidths=0.7, zorder=1))
        ax.autoscale_view()
    shown = [label for label in named if label in names]
    alpha = 0.14 if len(shown) <= 6 else 0.06
    for label in shown:
        i, look = names.index(label), looks[label]
        value = values[i]
        ax.fill_between(strengths, lows[i], highs[i], color=look.color, alpha=alpha, lw=0)
        whole = np.flatnonzero(~np.isnan(value))
        # The line stops before a gap and begins anew after it.
        for run in np.split(whole, np.flatnonzero(np.diff(whole) > 1) + 1):
            ax.plot(
                strengths[run],
                value[run],
                color=look.color,
                marker=look.marker,
                ls=(0, look.dash) if look.dash else "-",
                markeredgecolor="white",
                markeredgewidth=0.5,
            )


def _lower_bounds(
    ax: Axes, data: pd.DataFrame, clean: pd.DataFrame, named: list[str], looks: dict[str, Style]
) -> None:
    """Certified accuracy of each named model, from its clean accuracy on.

    In steps: between two strengths no more is proven here than at the larger one.
    """
    for label in [name for name in named if name in set(data["label"])]:
        start = clean[clean["label"] == label]
        line = pd.concat([start, data[data["label"] == label]]).sort_values("strength")
        proven: Any = {"drawstyle": "steps-pre", "ls": ":", "lw": 1.3, "zorder": 1.5}
        ax.plot(line["strength"], 100 * line["value"], color=looks[label].color, **proven)


def _handle(look: Style, label: str) -> Line2D:
    dash = (0, look.dash) if look.dash else "-"
    return Line2D(
        [], [], color=look.color, marker=look.marker, ls=dash, label=label, markeredgecolor="white", mew=0.5
    )
