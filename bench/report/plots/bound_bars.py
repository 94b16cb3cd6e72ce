"""Certified, undecided and broken samples at the reported strengths: one bar per model. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...records.headline import Headline
from ..canvas import font_size, legend_columns, new_figure
from ..described_figure import Draw
from ..style import INK, NORMS, QUIET, Style, darker, mixed
from .bound_curves import BROKEN, CERTIFIED, NO_ANSWER, UNDECIDED, any_unanswered, areas
from .bounds import Bounds


def draw_bound_bars(
    found: Mapping[str, Mapping[str, Bounds]],
    labels: Sequence[str],
    looks: Mapping[str, Style],
    headline: Headline,
) -> Draw | None:
    """A column for each norm, and in it a bar for each model: certified, undecided, no answer, broken.

    Parameters
    ----------
    found
        What `bounds` returns.
    labels
        The models to draw, best first.

    Returns
    -------
    draw
        None when fewer than two models were attacked at a reported strength, or none has a certificate.
    """
    norms = [norm for norm in ("linf", "l2") if headline.reported.get(norm) and found.get(norm)]
    rows = [label for label in labels if any(label in found[norm] for norm in norms)]
    if len(rows) < 2 or all(one.radii is None for norm in norms for one in found[norm].values()):
        return None
    return partial(_draw, found, norms, rows, looks, headline)


def _draw(
    found: Mapping[str, Mapping[str, Bounds]],
    norms: Sequence[str],
    rows: Sequence[str],
    looks: Mapping[str, Style],
    headline: Headline,
    *,
    width: float | None = None,
) -> Figure:
    lines = len(norms) if width is not None and width < 1.4 + 2.2 * len(norms) else 1
    height = 0.27 * len(rows) * lines + 1.0 + 0.55 * (lines - 1)
    figure = new_figure(width or 1.9 + 3.2 * len(norms), height)
    axes = figure.subplots(lines, len(norms) // lines, squeeze=False, sharey=True).ravel()
    for ax, norm in zip(axes, norms, strict=True):
        _column(ax, found[norm], rows, looks, headline.reported[norm])
        ax.set_xlabel(f"{NORMS[norm]} accuracy (%), ε = {headline.reported[norm]:g}")
    axes[0].set_yticks(range(len(rows)), rows)
    for ax in axes[:lines]:
        for tick, label in zip(ax.get_yticklabels(), rows, strict=True):
            tick.set_color(darker(looks[label].color))
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    broken = "broken, or misclassified clean"
    handles = areas("certified", "undecided", broken, no_answer=any_unanswered(found, rows))
    entries = len(handles)
    if width is not None:
        entries = legend_columns((str(handle.get_label()) for handle in handles), width)
    figure.legend(handles=handles, loc="outside upper center", ncols=entries)
    return figure


def _column(
    ax: Axes, found: Mapping[str, Bounds], rows: Sequence[str], looks: Mapping[str, Style], eps: float
) -> None:
    ax.grid(False)
    for place, label in enumerate(rows):
        one = found.get(label)
        if one is None:
            continue
        low, high = (100 * bound for bound in one.at(eps))
        color = looks[label].color
        ax.barh(place, 100, 0.72, color=BROKEN)
        if one.no_answer is not None:
            ax.barh(place, high + 100 * one.unanswered(eps), 0.72, color=NO_ANSWER)
        ax.barh(place, high, 0.72, color=mixed(color, UNDECIDED))
        ax.barh(place, low, 0.72, color=mixed(color, CERTIFIED))
        known = f"{low:.1f} – {high:.1f}" if one.radii is not None else f"? – {high:.1f}"
        ax.text(
            102,
            place,
            known,
            va="center",
            fontsize=font_size(7.5),
            color=INK if one.radii is not None else QUIET,
        )
    ax.set_xlim(0, 100)
    ax.tick_params(left=False)
    for side in ("left", "top", "right"):
        ax.spines[side].set_visible(False)
