"""Critical-difference diagram: models on the axis that ranks them, bars over those alike. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..canvas import folded, font_size, new_figure
from ..described_figure import Draw
from ..leaderboard.ranking import ALPHA, Outcomes, alike, p_values
from ..style import INK, QUIET, Style, darker

CRITICAL_MODELS = 20


def draw_critical(
    values: Mapping[str, float], found: Mapping[str, Outcomes], xlabel: str, looks: Mapping[str, Style]
) -> Draw | None:
    """Models on an axis of their value, in the manner of Demšar (JMLR 7, 2006).

    A bar joins neighbours no two of which can be told apart by `ranking.p_value`, the test that ranks: every
    pair is tested, and p-values are not corrected for the number of pairs. Demšar's axis is the average rank
    over many data sets and his test Nemenyi's; here there is one data set and its samples are paired.

    Parameters
    ----------
    values
        By label the fraction that ranks, best first; at most the first `CRITICAL_MODELS` are drawn.
    found
        By label the outcomes behind it.

    Returns
    -------
    draw
        None when fewer than two models can be compared.
    """
    labels = [label for label in values if label in found][:CRITICAL_MODELS]
    if len(labels) < 2:
        return None
    return partial(_draw, labels, values, found, xlabel, looks)


def _draw(
    labels: Sequence[str],
    values: Mapping[str, float],
    found: Mapping[str, Outcomes],
    xlabel: str,
    looks: Mapping[str, Style],
    *,
    width: float | None = None,
) -> Figure:
    runs = alike(p_values([found[label] for label in labels]))
    x = np.array([100 * values[label] for label in labels])
    levels = _levels(runs)
    half = -(-len(labels) // 2)
    bars = 1 + max(levels, default=-1)
    depth = 0.42 * bars + 0.75 + 0.62 * (half - 1) + 0.5
    note = _note(runs, len(labels), len(values))
    if width is not None:
        note = folded(note, width, 7.5)
    figure = new_figure(width or 7.6, 0.42 * depth + 0.8 + 0.12 * note.count("\n"))
    ax = figure.subplots()
    low, high = _limits(x)
    ax.set_xlim(low, high)
    ax.set_ylim(-depth, 0.0)
    for (first, last), level in zip(runs, levels, strict=True):
        y = -0.42 * (level + 1)
        margin = 0.006 * (high - low)
        ax.plot(
            [x[last] - margin, x[first] + margin], [y, y], color=INK, lw=3.6, solid_capstyle="butt", zorder=3
        )
    for i, label in enumerate(labels):
        best = i < half
        order = i if best else len(labels) - 1 - i
        y = -(0.42 * bars + 0.75 + 0.62 * order)
        _leader(ax, x[i], y, best, label, f"{x[i]:.1f}", darker(looks[label].color))
    _axis(ax, xlabel)
    figure.text(0.5, 0.005, note, ha="center", va="bottom", fontsize=font_size(7.5), color=QUIET)
    return figure


def _note(runs: Sequence[tuple[int, int]], shown: int, models: int) -> str:
    if runs:
        note = f"a bar joins models that do not differ significantly (McNemar's exact test, p ≥ {ALPHA:g})"
    else:
        note = f"all models differ significantly (McNemar's exact test, p < {ALPHA:g})"
    return note + (f" · {shown} of {models} models" if models > shown else "")


def _levels(runs: Sequence[tuple[int, int]]) -> list[int]:
    """A line for each bar so that no two on a line touch; runs are in order of their first row."""
    ends: list[int] = []
    levels = []
    for first, last in runs:
        level = next((k for k, end in enumerate(ends) if end < first), len(ends))
        ends[level : level + 1] = [last]
        levels.append(level)
    return levels


def _limits(x: np.ndarray) -> tuple[float, float]:
    span = max(float(x.max() - x.min()), 2.0)
    return max(float(x.min()) - 0.06 * span, -0.5), min(float(x.max()) + 0.06 * span, 100.5)


def _leader(
    ax: Axes, x: float, y: float, right: bool, label: str, value: str, color: tuple[float, ...]
) -> None:
    """A line from the axis down and out to the label at the side."""
    edge = 1.02 if right else -0.02
    inverse = ax.transAxes + ax.transData.inverted()
    side = float(inverse.transform((edge, 0))[0])
    ax.plot([x, x, side], [0, y, y], color=color, lw=0.9, zorder=2, clip_on=False, solid_joinstyle="miter")
    ax.plot([x], [0], "o", color=color, ms=4.5, mec="white", mew=0.6, zorder=4, clip_on=False)
    ax.annotate(
        label,
        (side, y),
        xytext=(4 if right else -4, 0),
        textcoords="offset points",
        ha="left" if right else "right",
        va="center",
        color=color,
        fontsize=font_size(8.5),
        annotation_clip=False,
    )
    ax.annotate(
        value,
        (side, y),
        xytext=(-2 if right else 2, 1.5),
        textcoords="offset points",
        ha="right" if right else "left",
        va="bottom",
        color=QUIET,
        fontsize=font_size(7),
        annotation_clip=False,
    )


def _axis(ax: Axes, xlabel: str) -> None:
    ax.xaxis.tick_top()
    ax.xaxis.set_label_position("top")
    ax.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))
    ax.set_xlabel(xlabel, labelpad=5)
    ax.set_yticks([])
    ax.grid(False)
    for name, spine in ax.spines.items():
        spine.set_visible(name == "top")
    ax.tick_params(axis="x", length=4, direction="out", pad=2)
