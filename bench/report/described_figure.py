"""A figure to draw, and what is said of it: kind, title, text for those who cannot see it. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from matplotlib.figure import Figure

Draw: TypeAlias = Callable[..., Figure]
"""Draws a figure, ``width=`` inches wide where given; who wants only what is said of it does not call it."""


@dataclass(frozen=True, kw_only=True)
class DescribedFigure:
    """One figure of a dataset before it is drawn.

    Attributes
    ----------
    kind
        What it shows: ``accuracy``, ``heatmap``, ``examples`` and so on; the page captions it by this.
    of
        Which one of its kind, where a dataset has several: an architecture, a norm, a model.
    label
        The row of the leaderboard that it is about; empty for a figure about several.
    """

    kind: str
    of: str = ""
    label: str = ""
    title: str
    alt: str
    draw: Draw

    @property
    def stem(self) -> str:
        """Its file's name without dataset and suffix."""
        return f"{self.kind}-{self.of}" if self.of else self.kind
