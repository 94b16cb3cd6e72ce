"""The figures of the report, as bytes: the same records give the same bytes. No torch."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import pandas as pd

from ..records.headline import Headline
from ..records.latest import Entry, entry
from ..records.record import Record
from .certificates import CERTIFICATE
from .described_figure import DescribedFigure, Draw
from .leaderboard.columns import AccuracyColumn, board_columns
from .leaderboard.row_outcomes import outcomes
from .leaderboard.row_status import cleared
from .plots.accuracy_curves import draw_curves
from .plots.accuracy_heatmap import draw_heatmap
from .plots.bound_bars import draw_bound_bars
from .plots.bound_curves import draw_bound_curves
from .plots.bounds import bounds
from .plots.contraction_rates import draw_rates
from .plots.critical_difference import draw_critical
from .plots.example_images import draw_examples
from .plots.flow_dynamics import draw_trajectories
from .plots.robustness_throughput import draw_tradeoff
from .plots.transfer_matrix import draw_transfer
from .rendering import Render, Words, render_here
from .statistics import traced
from .style import NAMED_MODELS, Style, house_style, styles

EXAMPLE_MODELS = 4  # with examples, where more models stand than have a name in figures; else all have them
PANELS = 12  # models of the sandwich
BARS = 40  # models of the same in bars


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One rendered figure.

    Attributes
    ----------
    name
        File name without suffix.
    kind, label, title, alt
        As `DescribedFigure` has them.
    svg, png
        Its bytes.
    """

    name: str
    dataset: str
    kind: str
    label: str = ""
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
    """Every figure that the records allow, dataset by dataset.

    Returns what gives the pictures; with helpers they are being rendered until then.

    Parameters
    ----------
    records
        The records that count (`records.latest.current`); used for example images only.
    summary, board
        ``statistics.summarise(records)`` and ``leaderboard.leaderboard(records, headline)``.
    render
        What makes bytes of figures, which takes most of the time.
    """
    with house_style():
        rendered = render(all_figures(records, summary, board, headline))
    return lambda: [Picture(**words, svg=svg, png=png) for words, (svg, png) in rendered()]


def all_figures(
    records: list[Record], summary: pd.DataFrame, board: pd.DataFrame, headline: Headline
) -> Iterator[tuple[Words, Draw]]:
    """How to draw every figure, dataset by dataset, each after the words of its `Picture`."""
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
        for one in _figures(str(dataset), records, table, rows, headline):
            words = {
                "name": _file_name(f"{dataset}-{one.stem}", names),
                "dataset": str(dataset),
                **{part: getattr(one, part) for part in ("kind", "label", "title", "alt")},
            }
            yield words, one.draw


def labelled(board: pd.DataFrame) -> pd.DataFrame:
    """Add `label`: the model's name, with its recipe where the model has several in one dataset."""
    several = board.groupby(["dataset", "model"])["recipe"].transform("size") > 1
    return board.assign(label=board["model"].where(~several, board["model"] + " (" + board["recipe"] + ")"))


def _figures(
    dataset: str, records: list[Record], table: pd.DataFrame, board: pd.DataFrame, headline: Headline
) -> Iterator[DescribedFigure]:
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
        yield DescribedFigure(
            kind="accuracy",
            title="Accuracy against strength",
            alt=f"Line plots, one per threat: accuracy falls as strength grows. Highest ranked: {best}.",
            draw=partial(draw_curves, curves, board, looks, certified),
        )
    silent = table[(table["statistic"] == "no_answer") & (table["protocol"] == "pixel")]
    both = bounds(accuracy, ours, silent)
    draw = draw_bound_bars(both, list(ours)[:BARS], looks, headline)
    if draw is not None:
        yield DescribedFigure(
            kind="gap",
            title="Certified, undecided and broken samples at the reported strengths (?: no certificate)",
            alt="Bars, one per model and norm: certified accuracy, worst-case accuracy, and the gap between.",
            draw=draw,
        )
    draw = draw_bound_curves(both, list(ours)[:PANELS], looks, headline)
    if draw is not None:
        yield DescribedFigure(
            kind="sandwich",
            title="Lower and upper bound on robust accuracy",
            alt="Area plots, one per model and norm, against strength: certified accuracy below, "
            "worst-case accuracy above, and the gap between them.",
            draw=draw,
        )
    if not accuracy.empty:
        yield DescribedFigure(
            kind="heatmap",
            title="Accuracy at the reported strengths",
            alt=f"Table of accuracies in colour, models by threats, best ranked ({best}) on top.",
            draw=partial(draw_heatmap, accuracy, board, headline),
        )
    yield from draw_transfer([r for r in records if r.cell.dataset == dataset], board)
    ranking = board_columns(board).ranking
    what = f"{ranking.title} accuracy{f' at {ranking.at}' if ranking.at else ''}"
    draw = _critical(records, board, ranking, f"{what} (%)", looks)
    if draw is not None:
        yield DescribedFigure(
            kind="critical",
            title="Critical-difference diagram",
            alt=f"Models on an axis of {what}; bars join those that cannot be told apart. Best: {best}.",
            draw=draw,
        )
    rates = table[(table["statistic"] == "throughput") & (table["threat"] == "inference")]
    if not rates.empty and board[ranking.name].notna().any():
        draw = draw_tradeoff(rates, board, ranking.name, f"{what} (%)", looks, NAMED_MODELS)
        if draw is not None:
            yield DescribedFigure(
                kind="tradeoff",
                title="Robustness against throughput",
                alt=f"Scatter plot per device: {what} against samples per second, one mark per model.",
                draw=draw,
            )
    for family, draw in draw_rates(ours, board):
        yield DescribedFigure(
            kind="rate",
            of=family,
            title=f"Accuracy against contraction rate: {family}",
            alt=f"Line plot: accuracies of {family} against its contraction rate.",
            draw=draw,
        )
    yield from draw_trajectories({k: ours[k] for k in list(ours)[:NAMED_MODELS]}, looks)
    shown = len(ours) if len(ours) <= NAMED_MODELS else EXAMPLE_MODELS
    for label, mine in list(ours.items())[:shown]:
        draw = draw_examples(mine, headline, f"{label} on {dataset}")
        if draw is not None:
            yield DescribedFigure(
                kind="examples",
                of=label,
                label=label,
                title=f"Examples: {label}",
                alt=f"Test images of {dataset} under each threat, with what {label} predicts for them.",
                draw=draw,
            )


def _critical(
    records: list[Record], board: pd.DataFrame, by: AccuracyColumn, xlabel: str, looks: Mapping[str, Style]
) -> Draw | None:
    """The critical-difference diagram of the rows that are complete and that audits clear."""
    rows = board[cleared(board) & board[by.name].notna()]
    rows = rows.sort_values(by.name, ascending=False, kind="stable")
    labels = {(row.dataset, row.model, row.recipe): str(row.label) for row in rows.itertuples()}
    found = outcomes(records, [by])[by]
    mine = {labels[row]: each for row, each in found.items() if row in labels}
    return draw_critical(dict(zip(rows["label"], rows[by.name], strict=True)), mine, xlabel, looks)


def _file_name(text: str, taken: set[str]) -> str:
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "figure"
    name, n = stem, 1
    while name.lower() in taken:
        n += 1
        name = f"{stem}-{n}"
    taken.add(name.lower())
    return name
