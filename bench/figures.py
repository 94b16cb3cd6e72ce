"""The figures of the report, as bytes: the same records give the same bytes. No torch."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from .examples import draw_examples
from .headline import Headline
from .heatmap import draw_heatmap
from .leaderboard import rank_column
from .records import Record
from .stats import WORST_CASE
from .style import INK, OTHER, RC, Style, key_name, sns, strength_name, strength_symbol, styles, threat_name
from .tradeoff import draw_tradeoff

NAMED_MODELS = 12  # a legend longer than this cannot be read; the others are drawn in grey
EXAMPLE_MODELS = 8


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
    records: list[Record], summary: pd.DataFrame, board: pd.DataFrame, headline: Headline
) -> list[Picture]:
    """Draw every figure that the records allow, dataset by dataset.

    Parameters
    ----------
    records
        The records that count (`stats.current`); used for example images only.
    summary, board
        ``stats.summarise(records)`` and ``leaderboard.leaderboard(records, headline)``.
    """
    pictures: list[Picture] = []
    names: set[str] = set()
    with mpl.rc_context(RC):
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
                svg, png = _save(figure, "svg"), _save(figure, "png")
                pictures.append(
                    Picture(name=name, dataset=str(dataset), title=title, alt=alt, svg=svg, png=png)
                )
    return pictures


def labelled(board: pd.DataFrame) -> pd.DataFrame:
    """Add `label`: the model's name, with its recipe where the model has several in one dataset."""
    several = board.groupby(["dataset", "model"])["recipe"].transform("size") > 1
    return board.assign(label=board["model"].where(~several, board["model"] + " (" + board["recipe"] + ")"))


def _figures(
    dataset: str, records: list[Record], table: pd.DataFrame, board: pd.DataFrame, headline: Headline
) -> Iterator[tuple[str, str, str, Figure]]:
    looks = styles(sorted(board["label"]))
    best = board["label"].iloc[0]
    accuracy = table[(table["statistic"] == "accuracy")]
    certified = table[(table["statistic"] == "certified_accuracy")]
    if (accuracy["threat"] != "clean").any():
        alt = f"Line plots, one per threat: accuracy falls as strength grows. Highest ranked: {best}."
        yield "accuracy", "Accuracy against strength", alt, draw_curves(accuracy, board, looks, certified)
    if not accuracy.empty:
        alt = f"Table of accuracies in colour, models by threats, best ranked ({best}) on top."
        yield "heatmap", "Accuracy at the reported strengths", alt, draw_heatmap(accuracy, board, headline)
    by = rank_column(board, headline)
    rates = table[(table["statistic"] == "throughput") & (table["threat"] == "inference")]
    if not rates.empty and board[by].notna().any():
        key, _, strength = by.partition("@")
        what = f"{key_name(key)} accuracy" + (f" at {strength_symbol(key)} = {strength}" if strength else "")
        alt = f"Scatter plot per device: {what} against samples per second, one mark per model."
        figure = draw_tradeoff(rates, board, by, f"{what} (%)", looks, NAMED_MODELS)
        if figure is not None:
            yield "tradeoff", "Robustness against throughput", alt, figure
    for row in board.head(EXAMPLE_MODELS).itertuples():
        mine = [r for r in records if (r.cell.dataset, r.cell.model) == (dataset, row.model)]
        mine = [r for r in mine if str(r.cell.recipe.get("name", "")) == row.recipe]
        figure = draw_examples(mine, headline, f"{row.label} on {dataset}")
        if figure is not None:
            alt = f"Test images of {dataset} under each threat, with what {row.label} predicts for them."
            yield f"examples-{row.label}", f"Examples: {row.label}", alt, figure


def draw_curves(
    table: pd.DataFrame, board: pd.DataFrame, looks: dict[str, Style], certified: pd.DataFrame | None = None
) -> Figure:
    """Accuracy against strength: a panel per threat, a row per family, bands of 95%.

    Certified accuracy, where there is any, is drawn below the worst case of its norm: thin, dotted.
    """
    threats = table.loc[table["threat"] != "clean", ["threat", "norm"]].drop_duplicates()
    rows: dict[tuple[bool, str], list[tuple[str, str | None]]] = {}
    for threat, norm in sorted(
        ((t, None if pd.isna(n) else n) for t, n in threats.itertuples(index=False)),
        key=lambda pair: (pair[1] is not None, pair[1] or "", pair[0] != WORST_CASE, pair[0]),
    ):
        rows.setdefault((norm is not None, norm or ""), []).append((threat, norm))
    width = min(3, max(len(row) for row in rows.values()))
    places: list[tuple[int, int, str, str | None]] = []
    line = 0
    for _, row in sorted(rows.items(), key=lambda item: (item[0][0], item[0][1] != "linf", item[0][1])):
        places += [(line + i // width, i % width, *panel) for i, panel in enumerate(row)]
        line += -(-len(row) // width)
    shown = board[board["label"].isin(table["label"])]
    named = list(shown["label"].head(NAMED_MODELS))
    figure = Figure(figsize=(3.1 * width + 0.5, 2.35 * line + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(line, width, squeeze=False, sharey=True)
    for ax in axes.flat:
        ax.set_visible(False)
    clean = table[table["threat"] == "clean"]
    for r, c, threat, norm in places:
        ax = axes[r, c]
        ax.set_visible(True)
        mine = table[(table["threat"] == threat) & (table["norm"].fillna("") == (norm or ""))]
        start = clean[clean["label"].isin(mine["label"]) & clean["value"].notna()]
        _curve(ax, pd.concat([start, mine], ignore_index=True), named, looks)
        if threat == WORST_CASE and certified is not None:
            _lower_bounds(ax, certified[certified["norm"] == norm], start, named, looks)
        ax.set_title(threat_name(threat, norm))
        ax.set_xlabel(strength_name(threat, norm)[1])
        ax.set_xlim(left=0)
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        ax.tick_params(labelleft=c == 0, labelbottom=True)
        ax.set_ylabel("accuracy (%)" if c == 0 else "")
    axes[0, 0].set_ylim(-2, 103)
    axes[0, 0].set_yticks(range(0, 101, 20))
    handles = [_handle(looks[label], label) for label in named]
    if len(shown) > len(named):
        handles.append(Line2D([], [], color=OTHER, lw=1, label=f"{len(shown) - len(named)} other models"))
    if certified is not None and not certified.empty:
        handles.append(Line2D([], [], color=INK, ls=":", lw=1.3, label="certified"))
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 3 * width - 3 or 2))
    return figure


def _curve(ax: Axes, data: pd.DataFrame, named: list[str], looks: dict[str, Style]) -> None:
    grid = pd.MultiIndex.from_product([data["label"].unique(), sorted(data["strength"].unique())])
    data = data.drop_duplicates(["label", "strength"]).set_index(["label", "strength"])
    data = 100 * data[["value", "low", "high"]].reindex(grid.set_names(["label", "strength"]))
    data = data.reset_index()
    # A strength that failed is a gap: the line stops before it and begins anew after it.
    data["run"] = data["value"].isna().cumsum()
    for _, rest in data[~data["label"].isin(named)].groupby("label"):
        ax.plot(rest["strength"], rest["value"], color=OTHER, lw=0.7, zorder=1)
    shown = [label for label in named if label in set(data["label"])]
    alpha = 0.14 if len(shown) <= 6 else 0.06
    for label in shown:
        band = data[data["label"] == label]
        ax.fill_between(
            band["strength"], band["low"], band["high"], color=looks[label].color, alpha=alpha, lw=0
        )
    lines = data[data["label"].isin(shown)].dropna(subset=["value"])
    if not lines.empty:
        sns.lineplot(
            data=lines,
            x="strength",
            y="value",
            hue="label",
            style="label",
            units="run",
            hue_order=shown,
            style_order=shown,
            palette={label: looks[label].color for label in shown},
            markers={label: looks[label].marker for label in shown},
            dashes={label: looks[label].dash for label in shown},
            estimator=None,
            legend=False,
            markeredgewidth=0.5,
            ax=ax,
        )


def _lower_bounds(
    ax: Axes, data: pd.DataFrame, clean: pd.DataFrame, named: list[str], looks: dict[str, Style]
) -> None:
    """Certified accuracy of each named model, from its clean accuracy on."""
    for label in [name for name in named if name in set(data["label"])]:
        start = clean[clean["label"] == label]
        line = pd.concat([start, data[data["label"] == label]]).sort_values("strength")
        ax.plot(line["strength"], 100 * line["value"], color=looks[label].color, ls=":", lw=1.3, zorder=1.5)


def _handle(look: Style, label: str) -> Line2D:
    dash = (0, look.dash) if look.dash else "-"
    return Line2D(
        [], [], color=look.color, marker=look.marker, ls=dash, label=label, markeredgecolor="white", mew=0.5
    )


def _save(figure: Figure, kind: str) -> bytes:
    """Render without dates or versions, so that the bytes depend on the picture alone."""
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()


def _file_name(text: str, taken: set[str]) -> str:
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "figure"
    name, n = stem, 1
    while name.lower() in taken:
        n += 1
        name = f"{stem}-{n}"
    taken.add(name.lower())
    return name
