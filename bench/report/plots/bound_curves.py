"""Certified and worst-case accuracy against strength, and the undecided samples between. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ...records.headline import Headline
from ..canvas import Panel, font_size, grid, legend_columns, new_figure, panels
from ..described_figure import Draw
from ..style import INK, NORMS, Style, darker, mixed, strength_name
from ..worst_case import WORST_CASE
from .bounds import Bounds

WIDE = 4  # panels beside each other, at most
BROKEN = "#F4F5F7"
NO_ANSWER = "#E9B949"
UNDECIDED, CERTIFIED = 0.28, 0.85  # of a model's colour


def draw_bound_curves(
    found: Mapping[str, Mapping[str, Bounds]],
    labels: Sequence[str],
    looks: Mapping[str, Style],
    headline: Headline,
) -> Draw | None:
    """A panel for each model and norm: certified accuracy below, worst-case accuracy above.

    Parameters
    ----------
    found
        What `bounds` returns.
    labels
        The models to draw, best first.

    Returns
    -------
    draw
        None when none of the models was attacked, or none has a certificate.
    """
    norms = sorted((norm for norm in found if set(labels) & found[norm].keys()), key=lambda n: n != "linf")
    if all(found[norm][label].radii is None for norm in norms for label in labels if label in found[norm]):
        return None
    return partial(_draw, found, norms, labels, looks, headline)


def _draw(
    found: Mapping[str, Mapping[str, Bounds]],
    norms: Sequence[str],
    labels: Sequence[str],
    looks: Mapping[str, Style],
    headline: Headline,
    *,
    width: float | None = None,
) -> Figure:
    shown = {norm: [label for label in labels if label in found[norm]] for norm in norms}
    most = max(map(len, shown.values()))
    # A single model has its norms side by side; else each norm has lines of its own.
    across = grid(len(norms) if most == 1 else min(WIDE, most), 2.1, 0.7, width, 4.9)
    single = most == 1 and across.columns == len(norms)
    lines = {norm: -(-len(shown[norm]) // across.columns) for norm in norms}
    total = 1 if single else sum(lines.values())
    figure = new_figure(across.width, 1.95 * across.scale * total + 0.8)
    axes = figure.subplots(total, across.columns, squeeze=False, sharey=True)
    start = 0
    for column, norm in enumerate(norms):
        # One range of eps per norm, so that panels can be compared: until no sample is robust.
        at = headline.reported.get(norm, 0.0)
        end = 1.05 * max(at, *(_end(found[norm][label]) for label in shown[norm]))
        if single:
            places = [Panel(ax=axes[0, column], left=True, bottom=True)]
        else:
            places = panels(axes[start : start + lines[norm]], len(shown[norm]))
        for place, label in zip(places, shown[norm], strict=True):
            ax, first = place.ax, place.left
            _panel(ax, found[norm][label], end, looks[label], at)
            ax.set_title(across.title(label), color=darker(looks[label].color), fontsize=font_size(9))
            ax.tick_params(left=first, labelleft=first, labelbottom=True)
            ax.set_ylabel(f"{NORMS[norm]} accuracy (%)" if first else "")
            ax.set_xlabel(across.folded(strength_name(WORST_CASE, norm)[1]) if place.bottom else "")
        start += lines[norm]
    axes[0, 0].set_ylim(0, 100)
    axes[0, 0].set_yticks(range(0, 101, 25))
    line: Any = {"marker": "o", "ms": 3.5, "mec": "white", "mew": 0.5}
    handles = [
        Line2D([], [], color=INK, lw=1.4, label="worst-case accuracy", **line),
        *reversed(areas("certified", "undecided", "broken", no_answer=any_unanswered(found, labels))),
    ]
    entries = len(handles) if across.columns > 2 else 2
    if width is not None:
        entries = legend_columns((str(handle.get_label()) for handle in handles), width)
    figure.legend(handles=handles, loc="outside upper center", ncols=entries)
    return figure


def any_unanswered(found: Mapping[str, Mapping[str, Bounds]], labels: Sequence[str]) -> bool:
    """Whether some sample of the models `labels` had no answer, so that its area needs a name."""
    return any(
        one.no_answer is not None for by in found.values() for name, one in by.items() if name in labels
    )


def areas(certified: str, undecided: str, broken: str, *, no_answer: bool) -> list[Patch]:
    """The legend of the areas, in grey for a model's own colour, with `no_answer` where there is one."""
    grey = "#7A828E"
    return [
        Patch(fc=mixed(grey, CERTIFIED), lw=0, label=certified),
        Patch(fc=mixed(grey, UNDECIDED), lw=0, label=undecided),
        *([Patch(fc=NO_ANSWER, lw=0, label="no answer")] if no_answer else []),
        Patch(fc=BROKEN, ec="#D5D8DD", lw=0.6, label=broken),
    ]


def _end(one: Bounds) -> float:
    """The first attacked strength at which at most 1% of samples are robust, or the last one."""
    gone = one.eps[one.attacked <= 0.01]
    return float(gone[0] if gone.size else one.eps[-1])


def _panel(ax: Axes, one: Bounds, end: float, look: Style, at: float) -> None:
    known = one.eps <= end
    eps, attacked = (
        np.append(one.eps[known], end),
        100 * np.append(one.attacked[known], one.attacked[known][-1]),
    )
    ax.set_facecolor(BROKEN)
    ax.set_axisbelow(False)
    ax.grid(True, color="white", alpha=0.5)
    if one.no_answer is not None:
        silent = 100 * np.append(one.no_answer[known], one.no_answer[known][-1])
        ax.fill_between(eps, attacked, attacked + silent, step="post", color=NO_ANSWER, lw=0, zorder=1)
    ax.fill_between(eps, 0, attacked, step="post", color=mixed(look.color, UNDECIDED), lw=0, zorder=1)
    if one.radii is not None:
        fine = np.linspace(0, min(end, float(one.radii[-1])), 81)
        proven = 100 * one.certified(fine)
        ax.fill_between(fine, 0, proven, color=mixed(look.color, CERTIFIED), lw=0, zorder=1.5)
    ax.step(eps, attacked, where="post", color=look.color, lw=1.4, zorder=3)
    ax.plot(
        eps[:-1],
        attacked[:-1],
        "o",
        color=look.color,
        ms=3.5,
        mec="white",
        mew=0.5,
        zorder=3.5,
        clip_on=False,
    )
    ax.set_xlim(0, end)
    ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    if at and one.radii is not None:
        low, high = (100 * bound for bound in one.at(at))
        ax.plot([at, at], [low, high], color=INK, lw=1.0, zorder=4)
        left = at > 0.6 * end
        ax.annotate(
            f"gap {high - low:.0f}",
            (at, min(max((low + high) / 2, 7.0), 93.0)),
            xytext=(-5 if left else 5, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=font_size(7.5),
            color=INK,
            bbox={"fc": "white", "alpha": 0.7, "lw": 0, "pad": 1.2},
            zorder=5,
        )
    if one.radii is None:
        ax.text(
            0.96,
            0.93,
            "no certificate",
            transform=ax.transAxes,
            ha="right",
            va="top",
            fontsize=font_size(7.5),
        )
