"""The figures of the report, as bytes: the same records give the same bytes. No torch."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from ..records.headline import Headline
from ..records.latest import Entry, entry
from ..records.record import Record
from .leaderboard.leaderboard import cleared, rank_column
from .leaderboard.row_outcomes import outcomes
from .plots.bounds import bounds
from .plots.critical import draw_critical
from .plots.curves import draw_curves
from .plots.examples import draw_examples
from .plots.gap import draw_gap
from .plots.heatmap import draw_heatmap
from .plots.matrix import draw_transfer
from .plots.rates import draw_rates
from .plots.sandwich import draw_sandwich
from .plots.tradeoff import draw_tradeoff
from .plots.trajectories import draw_trajectories
from .rendering import Render, Words, render_here
from .statistics import CERTIFICATE, traced
from .style import NAMED_MODELS, Style, house_style, key_name, strength_symbol, styles

EXAMPLE_MODELS = 4  # with examples, where more models stand than have a name in figures; else all have them
PANELS = 12  # models of the sandwich
BARS = 40  # models of the same in bars


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One figure: file name without suffix, caption, text for those who cannot see it, and its bytes."""

    name: str
    dataset: str
    title: str
    alt: str
    svg: bytes
    png: bytes


def draw_all(
    records: list[Record],
    summary: pd.DataFrame,
    board: pd.DataFrame,
    headline: Headline,
    *,
    render: Render = render_here,
) -> Callable[[], list[Picture]]:
    """Draw every figure that the records allow, dataset by dataset.

    Returns what gives the pictures; with helpers they are being rendered until then.

    Parameters
    ----------
    records
        The records that count (`stats.current`); used for example images only.
    summary, board
        ``stats.summarise(records)`` and ``leaderboard.leaderboard(records, headline)``.
    render
        What makes bytes of figures, which takes most of the time.
    """
    with house_style():
        rendered = render(_all_figures(records, summary, board, headline))
    return lambda: [Picture(**words, svg=svg, png=png) for words, (svg, png) in rendered()]


def _all_figures(
    records: list[Record], summary: pd.DataFrame, board: pd.DataFrame, headline: Headline
) -> Iterator[tuple[Words, Figure]]:
    """Every figure, dataset by dataset, after what a `Picture` says of it."""
    names: set[str] = set()
    for dataset, rows in board.groupby("dataset", sort=True):
        rows = labelled(rows)
        table = summary[summary["dataset"] == dataset]
        table = table.merge(rows[["model", "recipe", "label", "seeds"]], on=["model", "recipe"])
        # A value that some training seed lacks is a gap in a figure, as it is on the leaderboard.
        complete = (table["seeds_x"] == table["seeds_y"]) & table["statistic"].isin(
            ["accuracy", "certified_accuracy"]
        )
        table = table[complete | (table["statistic"] == "throughput")]
        for stem, title, alt, figure in _figures(str(dataset), records, table, rows, headline):
            name = _file_name(f"{dataset}-{stem}", names)
            yield {"name": name, "dataset": str(dataset), "title": title, "alt": alt}, figure


def labelled(board: pd.DataFrame) -> pd.DataFrame:
    """Add `label`: the model's name, with its recipe where the model has several in one dataset."""
    several = board.groupby(["dataset", "model"])["recipe"].transform("size") > 1
    return board.assign(label=board["model"].where(~several, board["model"] + " (" + board["recipe"] + ")"))


def _figures(
    dataset: str, records: list[Record], table: pd.DataFrame, board: pd.DataFrame, headline: Headline
) -> Iterator[tuple[str, str, str, Figure]]:
    looks = styles(sorted(board["label"]))
    best = board["label"].iloc[0]
    by_row: dict[Entry, list[Record]] = defaultdict(list)
    for record in records:
        by_row[entry(record.cell)].append(record)
    ours = {str(row.label): by_row[dataset, str(row.model), str(row.recipe)] for row in board.itertuples()}
    accuracy = table[(table["statistic"] == "accuracy")]
    certified = table[(table["statistic"] == "certified_accuracy") & (table["threat"] == CERTIFICATE)]
    curves = traced(accuracy)
    if (curves["threat"] != "clean").any():
        alt = f"Line plots, one per threat: accuracy falls as strength grows. Highest ranked: {best}."
        yield "accuracy", "Accuracy against strength", alt, draw_curves(curves, board, looks, certified)
    both = bounds(accuracy, ours)
    figure = draw_gap(both, list(ours)[:BARS], looks, headline)
    if figure is not None:
        alt = (
            "Bars, one per model and norm: the proven share of samples, the share that survives every attack."
        )
        what = "Proven, broken, and neither, at the reported strengths (?: no certificate)"
        yield "gap", what, alt, figure
    figure = draw_sandwich(both, list(ours)[:PANELS], looks, headline)
    if figure is not None:
        alt = "Area plots, one per model and norm, over the perturbation: the proven share of samples below, "
        alt += "the share that survives every attack above, and the gap between them."
        yield "sandwich", "Certified to attacked: what is proven, what is broken, and the gap", alt, figure
    if not accuracy.empty:
        alt = f"Table of accuracies in colour, models by threats, best ranked ({best}) on top."
        yield "heatmap", "Accuracy at the reported strengths", alt, draw_heatmap(accuracy, board, headline)
    yield from draw_transfer([r for r in records if r.cell.dataset == dataset], board)
    by = rank_column(board, headline)
    key, _, strength = by.partition("@")
    what = f"{key_name(key)} accuracy" + (f" at {strength_symbol(key)} = {strength}" if strength else "")
    figure = _critical(records, board, by, f"{what} (%)", looks)
    if figure is not None:
        alt = f"Models on an axis of {what}; bars join those that cannot be told apart. Best: {best}."
        yield "critical", "Which models can be told apart", alt, figure
    rates = table[(table["statistic"] == "throughput") & (table["threat"] == "inference")]
    if not rates.empty and board[by].notna().any():
        alt = f"Scatter plot per device: {what} against samples per second, one mark per model."
        figure = draw_tradeoff(rates, board, by, f"{what} (%)", looks, NAMED_MODELS)
        if figure is not None:
            yield "tradeoff", "Robustness against throughput", alt, figure
    for family, figure in draw_rates(ours, board, headline):
        alt = f"Line plot: accuracies of {family} against its contraction rate."
        yield f"rate-{family}", f"Accuracy against contraction rate: {family}", alt, figure
    for stem, title, alt, figure in draw_trajectories({k: ours[k] for k in list(ours)[:NAMED_MODELS]}, looks):
        yield stem, title, alt, figure
    shown = len(ours) if len(ours) <= NAMED_MODELS else EXAMPLE_MODELS
    for label, mine in list(ours.items())[:shown]:
        figure = draw_examples(mine, headline, f"{label} on {dataset}")
        if figure is not None:
            alt = f"Test images of {dataset} under each threat, with what {label} predicts for them."
            yield f"examples-{label}", f"Examples: {label}", alt, figure


def _critical(
    records: list[Record], board: pd.DataFrame, by: str, xlabel: str, looks: Mapping[str, Style]
) -> Figure | None:
    """The critical-difference diagram of the rows that are complete and that audits clear."""
    rows = board[cleared(board) & board[by].notna()].sort_values(by, ascending=False, kind="stable")
    labels = {(row.dataset, row.model, row.recipe): str(row.label) for row in rows.itertuples()}
    key, _, strength = by.partition("@")
    found = outcomes(records, {by: (key, float(strength or 0.0))})[by]
    mine = {labels[row]: each for row, each in found.items() if row in labels}
    return draw_critical(dict(zip(rows["label"], rows[by], strict=True)), mine, xlabel, looks)


def _file_name(text: str, taken: set[str]) -> str:
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "figure"
    name, n = stem, 1
    while name.lower() in taken:
        n += 1
        name = f"{stem}-{n}"
    taken.add(name.lower())
    return name
