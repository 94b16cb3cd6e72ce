"""Dynamics of the ODE blocks over time: distance of states, backward sensitivity, energy. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ...records.record import Record
from ..canvas import Grid, Panel, font_size, grid, legend_columns, new_figure, panels
from ..described_figure import DescribedFigure
from ..style import INK, QUIET, Style

COLUMNS = 4
_TIME = "time t / T"


def draw_trajectories(
    records: Mapping[str, Sequence[Record]], looks: Mapping[str, Style]
) -> Iterator[DescribedFigure]:
    """Contraction, sensitivity and energy.

    Parameters
    ----------
    records
        The records that count, by the label of their row. Of several training seeds the first is drawn.
    """
    found = {label: _first(mine, "dynamics", "growth_random") for label, mine in records.items()}
    flows = {label: record for label, record in found.items() if record is not None}
    if not flows:
        return
    rates = {
        label: record.measures.get("rho")
        for label in flows
        if (record := _first(records[label], "training", "train_loss")) is not None
    }
    yield DescribedFigure(
        kind="contraction",
        title="Distance between trajectories",
        alt="Small line plots, one per model: distance of pairs of states along the flow, on a log scale.",
        draw=partial(_contraction, flows, rates, looks),
    )
    if any(r.outcomes["sensitivity_trained"].size for r in flows.values()):
        yield DescribedFigure(
            kind="sensitivity",
            title="Backward sensitivity",
            alt="Two line plots: norm of the backward sensitivity matrix against time, "
            "before and after training.",
            draw=partial(_sensitivity, flows, looks),
        )
    energies = {label: r for label, r in flows.items() if "energy_drift" in r.outcomes}
    if energies:
        yield DescribedFigure(
            kind="energy",
            title="Energy along the flow",
            alt="Small line plots, one per Hamiltonian model: relative change of energy H along the flow.",
            draw=partial(_energy, energies, looks),
        )


def _first(records: Sequence[Record], kind: str, outcome: str) -> Record | None:
    mine = [r for r in records if r.cell.kind == kind and outcome in r.outcomes]
    return min(mine, key=lambda r: r.cell.training_seed, default=None)


def _contraction(
    flows: Mapping[str, Record],
    rates: Mapping[str, float | None],
    looks: Mapping[str, Style],
    *,
    width: float | None = None,
) -> Figure:
    """Random pairs as a band from the smallest to the largest, the adversarial maximum, exp(-rho t)."""
    figure, places, across = _panels(len(flows), width, share=True)
    for place, (label, record) in zip(places, flows.items(), strict=True):
        ax = place.ax
        time, color = record.outcomes["time"], looks[label].color
        random, worst = record.outcomes["growth_random"], record.outcomes["growth_adversarial"]
        ax.axhline(1, color=QUIET, lw=0.7)
        ax.fill_between(time / time[-1], random.min(1), random.max(1), color=color, alpha=0.18, lw=0)
        ax.plot(time / time[-1], np.median(random, 1), color=color, lw=1, label="random pairs: range, median")
        ax.plot(
            time / time[-1], worst.max(1), color=color, lw=1.8, ls="--", label="adversarial pairs: maximum"
        )
        rho = rates.get(label)
        if rho is not None and rho > 0:
            smooth = np.linspace(0, time[-1], 50)
            ax.plot(smooth / time[-1], np.exp(-rho * smooth), color=INK, ls=":", lw=1.3)
        ax.set_title(across.title(label) + ("" if rho is None else f"\nρ = {rho:.2g}"))
        _log(ax, np.concatenate([worst.max(1), random.min(1)]))
    _label(figure, places, "distance / initial distance")
    handles, names = _contraction_legend()
    entries = min(3, len(flows)) if width is None else legend_columns(names, width)
    figure.legend(handles, names, loc="outside lower center", ncols=entries)
    return figure


def _contraction_legend() -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Patch(color=INK, alpha=0.18, lw=0),
        Line2D([], [], color=INK, ls="--", lw=1.8),
        Line2D([], [], color=INK, ls=":", lw=1.3),
    ]
    return handles, [
        "random pairs (range, median)",
        "adversarial pairs (maximum)",
        "exp(−ρ t), the exact flow",
    ]


def _sensitivity(
    flows: Mapping[str, Record], looks: Mapping[str, Style], *, width: float | None = None
) -> Figure:
    """The largest norm over the states, one line per model."""
    narrow = width is not None and width < 6
    figure = new_figure(width or 8.2, 4.8 if narrow else 3.4)
    axes = figure.subplots(*((2, 1) if narrow else (1, 2)), sharey=True)
    for ax, (name, title) in zip(
        axes, (("initial", "At initialisation"), ("trained", "After training")), strict=True
    ):
        ax.axhline(1, color=QUIET, lw=0.7)
        values = []
        for label, record in flows.items():
            norms, look = record.outcomes[f"sensitivity_{name}"], looks[label]
            if not norms.size:
                continue
            grid = np.linspace(0, 1, len(norms))  # its own steps: training may change their number
            dash: Any = (0, look.dash) if look.dash else "-"
            ax.plot(grid, norms.max(1), color=look.color, ls=dash, label=label, lw=1.5)
            values.append(norms.max(1))
        ax.set_title(title)
        ax.set_xlabel(_TIME)
        _log(ax, np.concatenate(values))
    for ax in axes if narrow else axes[:1]:
        ax.set_ylabel("largest |∂x(T)/∂x(t)|₂")
    handles, labels = axes[1].get_legend_handles_labels()
    if width is not None and narrow:
        figure.legend(handles, labels, loc="outside lower center", ncols=legend_columns(labels, width))
    else:
        figure.legend(handles, labels, loc="outside right upper")
    return figure


def _energy(flows: Mapping[str, Record], looks: Mapping[str, Style], *, width: float | None = None) -> Figure:
    """Median and range over the states, layer by layer: each begins anew, with an energy of its own."""
    figure, places, across = _panels(len(flows), width, share=False)
    for place, (label, record) in zip(places, flows.items(), strict=True):
        ax = place.ax
        time, drift = record.outcomes["time"], 100 * record.outcomes["energy_drift"]
        number, color = record.outcomes["layer"], looks[label].color
        ax.axhline(0, color=QUIET, lw=0.7)
        for layer in np.unique(number):
            steps = np.flatnonzero(number[1:] == layer) + 1
            at = np.concatenate([time[steps[:1] - 1], time[steps]]) / time[-1]
            mine = np.concatenate([np.zeros((1, drift.shape[1])), drift[steps]])
            ax.fill_between(at, mine.min(1), mine.max(1), color=color, alpha=0.18, lw=0)
            ax.plot(at, np.median(mine, 1), color=color, marker=".", ms=4)
        if np.abs(drift).max() > 1000:
            ax.set_yscale("symlog", linthresh=10)
        ax.set_title(across.title(label))
    _label(figure, places, "change of H in its layer (%)")
    return figure


def _panels(count: int, width: float | None, *, share: bool) -> tuple[Figure, list[Panel], Grid]:
    across = grid(min(COLUMNS, count), 2.5, 0.5, width, 4.2)
    rows = -(-count // across.columns)
    figure = new_figure(across.width, 2.2 * across.scale * rows + 0.8)
    axes = figure.subplots(rows, across.columns, squeeze=False, sharey=share, sharex=True)
    return figure, panels(axes, count), across


def _label(figure: Figure, places: Sequence[Panel], what: str) -> None:
    figure.supylabel(what, fontsize=font_size(8.5))
    for place in places:
        if place.bottom:
            place.ax.set_xlabel(_TIME)
            place.ax.tick_params(labelbottom=True)


def _log(ax: Axes, values: NDArray[np.float64]) -> None:
    """A log scale that no zero or infinity breaks."""
    ax.set_yscale("log", nonpositive="mask")
    seen = values[np.isfinite(values) & (values > 0)]
    if seen.size:
        low, high = ax.get_ylim()
        ax.set_ylim(max(min(low, float(seen.min()) / 2), 1e-12), max(high, float(seen.max()) * 2))
