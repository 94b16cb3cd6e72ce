"""Robustness against throughput, one panel per device, with direct labels that do not overlap. No torch."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from ..canvas import folded, font_size, new_figure, panels
from ..described_figure import Draw
from ..leaderboard.columns import TimingColumn, entries
from ..leaderboard.shown_fields import BUSY_NOTE
from ..style import INK, OTHER, QUIET, Style, darker

FRONTIER: Any = {"color": QUIET, "ls": (0, (3, 2)), "lw": 0.9}


def draw_tradeoff(
    rates: pd.DataFrame, board: pd.DataFrame, by: str, ylabel: str, looks: dict[str, Style], named: int
) -> Draw | None:
    """`board[by]` (a fraction, shown in percent) against the best throughput of each device.

    A dashed line is the Pareto frontier: the highest value among all models at least that fast. A star and a
    hollow mark tell a timing that was taken while other work took the machine.

    Parameters
    ----------
    rates
        Rows of the summary with statistic ``throughput`` and a `label`; `protocol` is the device.
    named
        How many of the highest ranked models get a colour and a label; the others are grey dots.

    Returns
    -------
    draw
        None when no model has both a robustness value and a throughput.
    """
    fastest = rates.sort_values(["protocol", "label", "value"], kind="stable")
    fastest = fastest.drop_duplicates(["protocol", "label"], keep="last")
    crowded = board["busy"] if "busy" in board else pd.Series("", index=board.index)
    points = board[["label", by, f"{by}_low", f"{by}_high"]].assign(crowded=crowded)
    points = fastest.merge(points, on="label").dropna(subset=[by])
    if points.empty:
        return None
    points["busy"] = [
        TimingColumn(task="inference", device=device).name in entries(names)
        for device, names in zip(points["protocol"], points["crowded"], strict=True)
    ]
    return partial(_draw, points, list(board["label"].head(named)), by, ylabel, looks)


def _draw(
    points: pd.DataFrame,
    chosen: list[str],
    by: str,
    ylabel: str,
    looks: dict[str, Style],
    *,
    width: float | None = None,
) -> Figure:
    points = points.assign(y=100 * points[by], y0=100 * points[f"{by}_low"], y1=100 * points[f"{by}_high"])
    devices = sorted(points["protocol"].unique())
    columns = min(2, len(devices)) if width is None or width >= 6 else 1
    lines = -(-len(devices) // columns)
    figure = new_figure(width or 4.9 * columns + (1.1 if columns == 1 else 0), 3.7 * lines)
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    places = [panel.ax for panel in panels(axes, len(devices))]
    room = float("inf") if width is None else width / columns - 0.6
    for ax, device in zip(places, devices, strict=True):
        here = points[points["protocol"] == device].set_index("label")
        _panel(ax, here, [label for label in chosen if label in here.index], looks)
        ax.set_title(folded(device, room))
        ax.set_xlabel(folded("inference throughput (samples / s, best batch size)", room))
        ax.tick_params(labelleft=True)
    for row in axes:
        row[0].set_ylabel(ylabel)
    figure.legend(handles=[Line2D([], [], label="Pareto frontier", **FRONTIER)], loc="outside upper right")
    if points["busy"].any():
        note = folded(f"* {BUSY_NOTE}", float("inf") if width is None else width, 7.5)
        figure.supxlabel(note, fontsize=font_size(7.5), color=QUIET)
    span = float(points["y1"].max() - points["y0"].min())
    bottom, top = points["y0"].min() - 0.08 * span - 1, points["y1"].max() + 0.08 * span + 1
    axes[0, 0].set_ylim(max(-2.0, bottom), min(103.0, top))
    figure.draw_without_rendering()  # settle the layout before the labels look for room
    for ax, device in zip(places, devices, strict=True):
        here = points[points["protocol"] == device].set_index("label")
        _labels(ax, here, [label for label in chosen if label in here.index], looks)
    return figure


def frontier(points: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that no other beats in both `value` and `y`, slowest and most robust first."""
    ordered = points.sort_values(["value", "y"], ascending=False, kind="stable")
    y = ordered["y"].astype(float)
    return ordered[y > y.cummax().shift(fill_value=-np.inf)][::-1]


def _panel(ax: Axes, points: pd.DataFrame, named: list[str], looks: dict[str, Style]) -> None:
    edge = frontier(points)
    x = [edge["value"].iloc[0] / 1e3, *edge["value"], edge["value"].iloc[-1]]  # on to the panel's edges
    y = [edge["y"].iloc[0], *edge["y"], -100.0]
    ax.plot(x, y, drawstyle="steps-pre", zorder=0.9, **FRONTIER)
    others = points[~points.index.isin(named)]
    faces = ["white" if busy else OTHER for busy in others["busy"]]
    ax.scatter(others["value"], others["y"], s=12, c=faces, edgecolors=OTHER, zorder=1)
    for label in named:
        p, look = points.loc[label], looks[label]
        dx = np.array([[max(p["value"] - p["low"], 0)], [max(p["high"] - p["value"], 0)]])
        dy = np.array([[max(p["y"] - p["y0"], 0)], [max(p["y1"] - p["y"], 0)]])
        ax.errorbar(
            p["value"],
            p["y"],
            xerr=None if np.isnan(dx).any() else dx,
            yerr=None if np.isnan(dy).any() else dy,
            fmt=look.marker,
            color=look.color,
            markersize=7,
            markeredgecolor=look.color if p["busy"] else "white",
            markerfacecolor="white" if p["busy"] else look.color,
            markeredgewidth=1.2 if p["busy"] else 0.8,
            elinewidth=1.2,
            zorder=3,
        )
    ax.set_xscale("log")
    low, high = float(points["value"].min()), float(points["value"].max())
    pad = max((high / low) ** 0.14, 1.35)
    ax.set_xlim(low / pad, high * pad)
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 60 else (1.0,)))
    ax.xaxis.set_major_formatter(FuncFormatter(_count))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _labels(ax: Axes, points: pd.DataFrame, named: list[str], looks: dict[str, Style]) -> None:
    """Put each label at the first place around its mark that is free, with a leader if it is far."""
    canvas: Any = ax.figure.canvas
    renderer = canvas.get_renderer()
    scale = ax.figure.dpi / 72
    frame = ax.get_window_extent(renderer)
    taken: list[tuple[float, float, float, float]] = []
    centres = {}
    for label, p in points.iterrows():
        x, y = ax.transData.transform((p["value"], p["y"]))
        half = 5.5 * scale
        taken.append((x - half, y - half, x + half, y + half))
        centres[label] = (x, y)
        if label in named:
            _, y0 = ax.transData.transform((p["value"], p["y0"]))
            _, y1 = ax.transData.transform((p["value"], p["y1"]))
            taken.append((x - 1.5 * scale, y0, x + 1.5 * scale, y1))
            x0, _ = ax.transData.transform((p["low"] if p["low"] > 0 else p["value"], p["y"]))
            x1, _ = ax.transData.transform((p["high"] if p["high"] > 0 else p["value"], p["y"]))
            taken.append((x0, y - 1.5 * scale, x1, y + 1.5 * scale))
    for label in named:
        others = np.array([centre for name, centre in centres.items() if name != label]).reshape(-1, 2)
        shown = f"{label}*" if points.loc[label, "busy"] else label
        text = ax.annotate(
            shown,
            (0, 0),
            xycoords="figure pixels",
            color=INK,
            fontsize=font_size(8.5),
            va="center",
            ha="center",
            zorder=5,
        )
        size = text.get_window_extent(renderer)
        w, h = size.width / 2, size.height / 2
        cx, cy = centres[label]
        best, cost, leader = (cx, cy), np.inf, False
        for radius in (9, 16, 24, 34, 46, 60, 78):
            for angle in np.deg2rad([45, 315, 135, 225, 0, 180, 90, 270, 20, 340, 160, 200]):
                x = cx + np.cos(angle) * radius * scale + np.sign(round(np.cos(angle), 6)) * w
                y = cy + np.sin(angle) * (radius * scale + 0.5 * h)
                box = Bbox.from_extents(x - w, y - h, x + w, y + h)
                outside = not (
                    frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
                )
                stray = bool(
                    (_distance(box, others) < _distance(box, np.array([[cx, cy]])) + 6 * scale).any()
                )
                trouble = 50 * outside + 10 * _overlaps(box, np.array(taken)) + radius / 25 + stray
                if trouble < cost:
                    best, cost, leader = (x, y), trouble, stray or radius > 20
            if cost < 1:
                break
        x, y = best
        taken.append((x - w - 2, y - h - 1, x + w + 2, y + h + 1))
        # Offsets in points from the mark, so that they hold at any resolution.
        text.remove()
        ax.annotate(
            shown,
            (points.loc[label, "value"], points.loc[label, "y"]),
            xytext=((x - cx) / scale, (y - cy) / scale),
            textcoords="offset points",
            ha="center",
            va="center",
            color=darker(looks[label].color),
            fontsize=font_size(8.5),
            zorder=5,
            arrowprops={"arrowstyle": "-", "color": QUIET, "lw": 0.6, "shrinkA": 1, "shrinkB": 5}
            if leader
            else None,
        )


def _overlaps(box: Bbox, others: NDArray[np.float64]) -> int:
    """Count the boxes (x0, y0, x1, y1), shape (n, 4), that share a point with this one."""
    x0, y0, x1, y1 = others.T
    apart = (x0 > box.x1) | (x1 < box.x0) | (y0 > box.y1) | (y1 < box.y0)
    return int((~apart).sum())


def _distance(box: Bbox, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances in pixels from a box to points of shape (n, 2); zero inside."""
    low, high = np.array([box.x0, box.y0]), np.array([box.x1, box.y1])
    outside = np.maximum(np.maximum(low - points, points - high), 0)
    return np.asarray(np.hypot(outside[:, 0], outside[:, 1]), float)


def _count(value: float, _: object) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"
