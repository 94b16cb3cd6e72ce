"""The paper that a figure is drawn on: its size, and which panel stands where. No torch."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

FONT_SIZE = 8.5
"""Of text in figures, in points."""
NARROWEST = 0.45
"""A panel may be this share of its own width before fewer stand side by side."""
_LETTER = 0.0085
"""Width of a letter in inches, about, for each point of its size."""


class ReportFigure(Figure):
    """A figure made without pyplot, which a notebook shows all the same."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png", dpi=144)
        return png.getvalue()


def new_figure(width: float, height: float, layout: Any = "constrained") -> Figure:
    """An empty figure of this size in inches."""
    figure = ReportFigure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


@dataclass(frozen=True, kw_only=True)
class Grid:
    """How many panels stand side by side, and how large they are.

    Attributes
    ----------
    columns
        Panels side by side.
    width
        Of the figure, in inches.
    scale
        Of a panel's height: below 1 where panels are narrower than their own width.
    panel
        Width of a panel, in inches; infinite where it is its own.
    """

    columns: int
    width: float
    scale: float = 1.0
    panel: float = float("inf")

    def folded(self, text: str) -> str:
        """An axis label in as many lines as a narrow panel needs."""
        return folded(text, self.panel)

    def title(self, text: str) -> str:
        """A title, whose letters are larger and bold, in as many lines."""
        return folded(text, self.panel, 11.5)


def grid(most: int, panel: float, margin: float, width: float | None, least: float = 0.0) -> Grid:
    """`most` panels side by side, or as many as `width` has room for.

    Parameters
    ----------
    panel, margin
        Width of a panel, and what the figure needs beside its panels, in inches.
    width
        Of the figure, in inches; None for as much as `most` panels need, at least `least`.
    """
    if width is None:
        return Grid(columns=most, width=max(panel * most + margin, least))
    columns = max(1, min(most, int((width - margin) / (NARROWEST * panel))))
    room = (width - margin) / columns
    return Grid(columns=columns, width=width, scale=min(1.15, max(0.7, room / panel)), panel=room)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Axes in a grid: `left` where none stand to their left, `bottom` where none stand below."""

    ax: Axes
    left: bool
    bottom: bool


def panels(axes: NDArray[Any], count: int) -> list[Panel]:
    """The axes of `count` panels, line by line, in a grid (rows, columns); the rest is hidden.

    No panel stands alone in the last line: lines are balanced, or, where they hold two, the last panel fills
    its line.
    """
    columns = axes.shape[1]
    for ax in axes.flat:
        ax.set_visible(False)
    lines = [columns] * (count // columns) + [count % columns] * bool(count % columns)
    alone = len(lines) > 1 and lines[-1] == 1
    if alone and columns > 2:
        lines = [count // len(lines) + (i < count % len(lines)) for i in range(len(lines))]
    found = []
    for row, length in enumerate(lines):
        below = lines[row + 1] if row + 1 < len(lines) else 0
        fills = alone and columns == 2 and row + 1 == len(lines) - 1
        for column in range(length):
            ax = axes[row, column]
            ax.set_visible(True)
            found.append(Panel(ax=ax, left=column == 0, bottom=column >= below and not fills))
    if alone and columns == 2:
        last = found[-1].ax
        place: Any = last.get_subplotspec()
        last.set_subplotspec(place.get_gridspec()[place.rowspan.start, :])
    return found


def font_size(size: float) -> float:
    """A size of letters, larger or smaller where a style sets ``font.size`` to another than ours."""
    return size * float(mpl.rcParams["font.size"]) / FONT_SIZE


def legend_columns(labels: Iterable[str], width: float, points: float = 8.5) -> int:
    """How many entries of a legend fit side by side."""
    longest = max((len(label) for label in labels), default=1)
    return max(1, int(width / (longest * _LETTER * points + 0.5)))


def folded(text: str, width: float, points: float = 8.5) -> str:
    """`text` in lines of at most `width` inches, about."""
    if width == float("inf"):
        return text
    return textwrap.fill(text, max(8, int(width / (_LETTER * points))))
