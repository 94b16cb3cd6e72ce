"""The curves of the page as compact data: what its interactive charts draw. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from matplotlib.colors import to_hex, to_rgb

from ..certificates import CERTIFICATE
from ..statistics import traced
from ..style import NORMS, certified_name, luminance, strength_name, styles, threat_name
from ..text import missing
from ..worst_case import WORST_CASE

_DARK = "#1b1f23"
_CONTRAST = 4.0  # of a line with the dark background; 3 is what WCAG asks of a graphic

Row = tuple[str, str]


def chart_data(
    summary: pd.DataFrame, board: pd.DataFrame, anchors: Mapping[Any, str]
) -> list[dict[str, Any]]:
    """The curves of each dataset, in the order of `board`.

    A dataset is ``{name, panels, rows}``. A panel is one threat, of those `traced`: ``title``, ``group``
    (panels of one group share an axis: a norm, or a noise), ``kind`` (``worst``, ``attack``, ``noise`` or
    ``certified``), ``symbol``, ``axis``, and ``x``, its strengths, 0 for the clean test set. A row is one
    model: ``id``, ``label``, colours on light and dark, ``dash``, and ``curves``, by panel a list of values,
    low ends, high ends (percent; null where missing), samples and training seeds (one number where all are
    equal); and where the model gave no answer for some samples, their share (percent).

    Parameters
    ----------
    summary
        ``statistics.summarise(records)``.
    board
        The leaderboard with the column `label`.
    anchors
        The id of each row's sheet, by (dataset, model, recipe).
    """
    certified = (summary["statistic"] == "certified_accuracy") & (summary["threat"] == CERTIFICATE)
    kept = pd.concat([traced(summary[summary["statistic"] == "accuracy"]), summary[certified]])
    silent = summary[summary["statistic"] == "no_answer"].to_dict("records")
    shares = {_place(figure): figure["value"] for figure in silent}
    by_dataset: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for figure in kept.to_dict("records"):
        share = shares.get(_place(figure), 0.0) if figure["statistic"] == "accuracy" else 0.0
        named = {str(k): v for k, v in figure.items()}
        by_dataset[str(figure["dataset"])].append({**named, "no_answer": share})
    return [
        _dataset(str(name), by_dataset[str(name)], list(rows.itertuples()), anchors)
        for name, rows in board.groupby("dataset", sort=True)
    ]


def _place(figure: Mapping[Any, Any]) -> tuple[Any, ...]:
    """What an accuracy and a share without an answer are of."""
    norm = "" if missing(figure["norm"]) else figure["norm"]
    names = ("dataset", "protocol", "model", "recipe", "threat")
    return *(figure[name] for name in names), norm, round(figure["strength"], 9)


def _dataset(
    name: str, figures: list[dict[str, Any]], rows: list[Any], anchors: Mapping[Any, str]
) -> dict[str, Any]:
    clean: dict[Row, list[dict[str, Any]]] = defaultdict(list)
    found: dict[tuple[Any, ...], dict[Row, dict[float, dict[str, Any]]]] = defaultdict(dict)
    for figure in figures:
        row = figure["model"], figure["recipe"]
        if figure["threat"] == "clean":
            clean[row].append(figure)
            continue
        norm = None if missing(figure["norm"]) else figure["norm"]
        panel = figure["threat"], norm, figure["protocol"]
        found[panel].setdefault(row, {})[round(figure["strength"], 9)] = figure
    panels = sorted(found, key=_order)
    strengths = [sorted({s for grid in found[p].values() for s in grid}) for p in panels]
    curves: dict[Row, dict[str, Any]] = defaultdict(dict)
    needed = {(row.model, row.recipe): row.seeds for row in rows}
    for number, (panel, grid) in enumerate(zip(panels, strengths, strict=True)):
        for row, points in found[panel].items():
            start = next((f for f in clean[row] if f["protocol"] == panel[2]), None)
            line = [start, *(points.get(strength) for strength in grid)]
            curves[row][str(number)] = _curve(line, needed.get(row, 0))
    looks = styles(sorted(row.label for row in rows))
    return {
        "name": name,
        "panels": [_panel(p, [0.0, *grid]) for p, grid in zip(panels, strengths, strict=True)],
        "rows": [
            {
                "id": anchors[row.dataset, row.model, row.recipe],
                "label": row.label,
                "light": looks[row.label].color,
                "dark": on_dark(looks[row.label].color),
                "dash": list(looks[row.label].dash),
                "curves": curves[row.model, row.recipe],
            }
            for row in rows
        ],
    }


def _order(panel: tuple[Any, ...]) -> tuple[Any, ...]:
    """Attacks first, L-infinity before the others; in a norm the worst case, its lower bound, its attacks."""
    threat, norm, protocol = panel
    within = {WORST_CASE: 0, CERTIFICATE: 1}.get(threat, 2)
    return norm is None, norm != "linf", norm or "", protocol != "pixel", within, threat


def _panel(panel: tuple[Any, ...], grid: list[float]) -> dict[str, Any]:
    threat, norm, _ = panel
    symbol, axis = strength_name(threat, norm)
    kind = "noise" if norm is None else {WORST_CASE: "worst", CERTIFICATE: "certified"}.get(threat, "attack")
    return {
        "title": certified_name(str(norm)) if kind == "certified" else threat_name(threat, norm),
        "group": threat_name(threat) if norm is None else NORMS.get(norm, norm),
        "key": threat if norm is None else norm,
        "kind": kind,
        "symbol": symbol,
        "axis": axis,
        "x": grid,
    }


def _curve(line: Iterable[Mapping[str, Any] | None], seeds: int) -> list[Any]:
    """Values, low ends, high ends, samples, seeds; a value that some training seed lacks is missing.

    Where some samples have no answer, their shares too.
    """
    points = [None if p is None or missing(p["value"]) or p["seeds"] < seeds else p for p in line]

    def column(name: str) -> list[float | None]:
        return [
            None if p is None or missing(p[name]) else round(100 * float(p[name]), 2) + 0.0 for p in points
        ]

    def counts(name: str) -> Any:
        values = [0 if p is None else int(p[name]) for p in points]
        some = {value for value in values if value}
        return some.pop() if len(some) == 1 else values

    found = [column("value"), column("low"), column("high"), counts("samples"), counts("seeds")]
    silent = column("no_answer")
    return [*found, silent] if any(silent) else found


def on_dark(colour: str) -> str:
    """Lighten a colour, its hue kept, until it stands out from the dark background."""
    rgb, behind = to_rgb(colour), luminance(to_rgb(_DARK))
    for step in range(21):
        mixed = [channel + (1 - channel) * step / 20 for channel in rgb]
        if (luminance(mixed) + 0.05) / (behind + 0.05) >= _CONTRAST:
            break
    red, green, blue = mixed
    return to_hex((red, green, blue))
