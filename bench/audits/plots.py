"""The plot behind a finding, as a small SVG: the same arrays give the same bytes. No torch."""

from __future__ import annotations

import io

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..style import QUIET, RC
from .outcome import Finding

COLOURS = ("#0072B2", "#D55E00", "#009E73")
MOST = 400
"""Points of a line that are drawn."""


def plot(finding: Finding) -> bytes:
    """Lines over ``arrays["x"]``, dots where they are few; empty bytes where there is nothing to draw."""
    x = finding.arrays.get("x")
    lines = {
        name: y for name, y in finding.arrays.items() if name != "x" and x is not None and y.size == x.size
    }
    if x is None or x.size < 2 or not lines:
        return b""
    with mpl.rc_context({**RC, "svg.fonttype": "none", "font.size": 7, "legend.fontsize": 6.5}):
        figure = Figure(figsize=(3.4, 1.9), layout="constrained")
        FigureCanvasAgg(figure)
        ax = figure.subplots()
        pick = np.unique(np.linspace(0, x.size - 1, min(MOST, x.size)).astype(int))
        for colour, (name, y) in zip(COLOURS, sorted(lines.items()), strict=False):
            marker = "o" if x.size <= 20 else None
            drawn = np.where(np.isfinite(y[pick]), y[pick], np.nan)
            ax.plot(x[pick], drawn, color=colour, marker=marker, label=name, linewidth=1.2, markersize=3)
        names = str(finding.axes[0]).split(", ")
        if len(names) == x.size and len(names) > 1:
            ax.set_xticks(x, names, rotation=15, ha="right")
        else:
            ax.set_xlabel(str(finding.axes[0]), fontsize=7)
        ax.set_ylabel(str(finding.axes[1]), fontsize=7, color=QUIET)
        ax.tick_params(labelsize=6.5)
        if len(lines) > 1:
            ax.legend()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
