"""Which model's adversarial examples break which other: tables and figures, from records alone. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ...records.record import REPLAY, Record
from ..canvas import font_size, new_figure
from ..described_figure import DescribedFigure
from ..leaderboard.side_tables import SideTable
from ..markdown import markdown_escaped, markdown_table
from ..style import NORMS, QUIET, sns
from .accuracy_heatmap import HEATMAP_MODELS

MEANING = (
    "Share (%) of the stored adversarial examples of one model (row) that break another (column), of those "
    "whose sample the other classifies correctly; all attacks and training seeds together. On the diagonal "
    "are other training seeds of the same model."
)


def transfer_matrices(
    records: Iterable[Record], board: pd.DataFrame
) -> Iterator[tuple[str, str, float, pd.DataFrame, pd.DataFrame]]:
    """Examples tried and examples that broke the target, for each dataset, norm and strength with replays.

    Parameters
    ----------
    records
        The records that count.
    board
        The leaderboard with a column `label`; it gives the order.

    Yields
    ------
    dataset, norm, strength, tried, broke
        Counts, rows by the label of the source, columns by that of the target; 0 where nothing was replayed.
    """
    labels = {(r.dataset, r.model, r.recipe): str(r.label) for r in board.itertuples()}
    order = list(dict.fromkeys(labels.values()))
    found: dict[tuple[str, str, float], dict[tuple[str, str], list[int]]] = defaultdict(dict)
    for record in records:
        cell = record.cell
        target = labels.get((cell.dataset, cell.model, str(cell.recipe.get("name", ""))))
        if cell.family != REPLAY or record.status != "ok" or target is None:
            continue
        pairs = found[cell.dataset, str(cell.norm), cell.strength]
        for line in record.card.get("transfer", ()):
            source = labels.get((cell.dataset, line["model"], line["recipe"]), line["model"])
            counts = pairs.setdefault((source, target), [0, 0])
            counts[0] += line["tried"]
            counts[1] += line["broke"]
    for (dataset, norm, strength), pairs in sorted(found.items()):
        named = {name for pair in pairs for name in pair}
        names = [*(name for name in order if name in named), *sorted(named - set(order))]
        tried, broke = (
            pd.DataFrame(
                [[pairs.get((s, t), (0, 0))[i] for t in names] for s in names], index=names, columns=names
            )
            for i in (0, 1)
        )
        yield dataset, norm, strength, tried, broke


def transfer_tables(records: Iterable[Record], board: pd.DataFrame) -> list[SideTable]:
    """The matrices as text: share in percent, and ``broke / tried`` below it."""
    tables = []
    for dataset, norm, strength, tried, broke in transfer_matrices(records, board):
        rows = []
        for source, of, won in zip(tried.index, tried.to_numpy(), broke.to_numpy(), strict=True):
            pairs = list(zip(won.tolist(), of.tolist(), strict=True))
            cells = [(f"{100 * b / n:.1f}", f"{b} / {n}", "") if n else ("", "", "") for b, n in pairs]
            rows.append((str(source), cells))
        heads = [(str(target), "") for target in tried]
        title = f"{NORMS.get(norm, norm)}, ε = {strength:g}"
        tables.append(SideTable(dataset=dataset, protocol=title, meaning=MEANING, heads=heads, rows=rows))
    return tables


def transfer_markdown(tables: Sequence[SideTable]) -> str:
    """Write the matrices as GitHub Markdown."""
    parts = [MEANING, ""]
    for table in tables:
        dataset = f"{table.dataset}, " if len({t.dataset for t in tables}) > 1 else ""
        parts += [f"### {dataset}{table.protocol}", ""]
        heads = ["From \\ on", *(head for head, _ in table.heads)]
        rows = [
            [markdown_escaped(label), *(f"{share} ({counts})" if share else "" for share, counts, _ in cells)]
            for label, cells in table.rows
        ]
        parts += [*markdown_table(heads, rows), ""]
    return "\n".join(parts)


def draw_transfer(records: Sequence[Record], board: pd.DataFrame) -> Iterator[DescribedFigure]:
    """The matrices in colour, one figure for each norm and strength."""
    for _, norm, strength, tried, broke in transfer_matrices(records, board):
        tried, broke = (counts.iloc[:HEATMAP_MODELS, :HEATMAP_MODELS] for counts in (tried, broke))
        budget = f"{NORMS.get(norm, norm)}, ε = {strength:g}"
        yield DescribedFigure(
            kind="transfer",
            of=norm,
            title=f"Transfer between models, {budget}",
            alt=f"Matrix in colour, {budget}: "
            "share of each model's adversarial examples that break each other model.",
            draw=partial(_draw, 100 * broke / tried.where(tried > 0)),
        )


def _draw(share: pd.DataFrame, *, width: float | None = None) -> Figure:
    size = 0.55 * len(share)
    narrow = width is not None and width < size + 2.4
    figure = new_figure(width or max(4.2, size + 3.0), max(2.4, 0.36 * len(share) + 1.5))
    ax = figure.subplots()
    sns.heatmap(
        share.astype(float),
        annot=share.map(lambda value: "" if np.isnan(value) else f"{value:.0f}"),
        fmt="",
        vmin=0,
        vmax=100,
        cmap=sns.color_palette("blend:#FBFBF6,#F3D9C4,#E09A6B,#B5532B,#5C1F10", as_cmap=True),
        mask=share.isna(),
        linewidths=1.2,
        linecolor="white",
        annot_kws={"fontsize": font_size(8.5)},
        cbar=not narrow,
        cbar_kws={"label": "examples that break the target (%)", "aspect": 14, "pad": 0.015},
        ax=ax,
    )
    for y, x in zip(*np.nonzero(share.isna().to_numpy()), strict=True):
        ax.add_patch(Rectangle((x, y), 1, 1, fc="#F1F2F4", ec="#D5D8DD", hatch="////", lw=0, zorder=0))
    ax.xaxis.tick_top()
    ax.xaxis.set_label_position("top")
    ax.tick_params(length=0)
    ax.set_xticklabels(list(share.columns), rotation=90 if narrow else 35, ha="center" if narrow else "left")
    ax.set_yticklabels(list(share.index), rotation=0)
    ax.set_xlabel("target model", color=QUIET)
    ax.set_ylabel("source model", color=QUIET)
    ax.grid(False)
    return figure
