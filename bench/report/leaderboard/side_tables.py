"""Tables beside the leaderboard: noise protocol by protocol, and randomised smoothing. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from ..certificates import SMOOTHING
from ..markdown import markdown_escaped, markdown_table
from ..style import strength_name, threat_name
from ..text import missing, percent

MEANINGS = {
    "pixel": "Protocol `pixel`: noise is added to the image in [0, 1] and clipped to [0, 1]; σ is a standard "
    "deviation there.",
    "paper-exact": "Protocol `paper-exact`, that of the CH-NODE paper: noise is added to the normalised "
    "image and clipped to [-1, 1], which in pixels is [-0.177, 0.439] and cuts bright strokes to less than "
    "half of their height, so that its variances of 0.05 and 0.2 (σ of 0.069 and 0.138 in pixels) act on "
    "another image.",
}
"""What each protocol does, in a sentence."""


MEANING_OF_SMOOTHING = (
    "Certified accuracy of the smoothed classifier: the majority vote of the model over copies of the image "
    "with Gaussian noise. It is a different classifier from the model itself; each certificate holds with "
    "probability 1 - α (Cohen et al. 2019)."
)


@dataclass(frozen=True, kw_only=True)
class SideTable:
    """One protocol, or the smoothed classifiers, on one dataset.

    Attributes
    ----------
    heads
        Column headings after the model: threat and strength.
    rows
        For each model its label, then value, interval and spread over training seeds of each column, as text.
    """

    dataset: str
    protocol: str
    meaning: str
    heads: Sequence[tuple[str, str]]
    rows: Sequence[tuple[str, Sequence[tuple[str, str, str]]]]


def protocol_tables(summary: pd.DataFrame, board: pd.DataFrame) -> list[SideTable]:
    """Tables of accuracy under noise, where a dataset was evaluated under several protocols.

    Parameters
    ----------
    summary
        ``statistics.summarise(records)``.
    board
        The leaderboard with a column `label`; it gives the order of the rows.
    """
    noise = summary[summary["threat"].isin(["clean", *_noises(summary)])]
    tables = []
    for dataset, rows in noise.groupby("dataset", sort=True):
        protocols = sorted(set(rows.loc[rows["threat"] != "clean", "protocol"]), reverse=True)
        if len(protocols) < 2:
            continue
        clean = rows[rows["threat"] == "clean"]
        for protocol in protocols:
            mine = rows[(rows["protocol"] == protocol) & (rows["threat"] != "clean")]
            rows_shown = pd.concat([clean, mine])
            tables.append(_table(str(dataset), protocol, MEANINGS.get(protocol, ""), rows_shown, board))
    return tables


def smoothing_tables(summary: pd.DataFrame, board: pd.DataFrame) -> list[SideTable]:
    """Tables of certified accuracy of the smoothed classifiers, by l2 radius, where there are any."""
    rows = summary[(summary["threat"] == SMOOTHING) & (summary["norm"] == "l2")]
    rows = rows.assign(statistic=rows["statistic"].str.replace("certified_", ""))
    return [
        _table(str(dataset), str(protocol), MEANING_OF_SMOOTHING, mine, board)
        for (dataset, protocol), mine in rows.groupby(["dataset", "protocol"], sort=True)
    ]


def _noises(summary: pd.DataFrame) -> list[str]:
    accuracy = summary[(summary["statistic"] == "accuracy") & summary["norm"].isna()]
    return sorted(set(accuracy["threat"]) - {"clean"})


def _table(dataset: str, protocol: str, meaning: str, rows: pd.DataFrame, board: pd.DataFrame) -> SideTable:
    asked = rows[["threat", "strength"]].drop_duplicates().itertuples(index=False, name=None)
    columns = sorted(asked, key=lambda pair: (pair[0] != "clean", *pair))
    names = ("model", "recipe", "threat", "strength", "statistic")
    found = {tuple(r[name] for name in names): r for r in rows.to_dict("records")}
    lines = []
    for row in board[board["dataset"] == dataset].itertuples():
        cells = []
        for threat, strength in columns:
            at = (row.model, row.recipe, threat, strength)
            value, spread = found.get((*at, "accuracy")), found.get((*at, "accuracy_spread"))
            if value is None or missing(value["value"]) or value["seeds"] < row.seeds:
                cells.append(("", "", ""))
                continue
            interval = f"{percent(value['low'])} – {percent(value['high'])}"
            cells.append((percent(value["value"]), interval, percent(spread["value"]) if spread else ""))
        lines.append((str(row.label), cells))
    heads = [
        (threat_name(threat).partition(",")[0], "" if threat == "clean" else f"{_symbol(threat)} = {at:g}")
        for threat, at in columns
    ]
    return SideTable(dataset=dataset, protocol=protocol, meaning=meaning, heads=heads, rows=lines)


def _symbol(threat: str) -> str:
    return "ℓ₂ radius" if threat == SMOOTHING else strength_name(threat)[0]


def protocols_markdown(tables: Sequence[SideTable]) -> str:
    """Write the tables as GitHub Markdown, each under its sentence."""
    parts = []
    for table in tables:
        if len({t.dataset for t in tables}) > 1:
            parts += [f"### {table.dataset}", ""]
        heads = ["Model", *(f"{a} ({b})" if b else a for a, b in table.heads)]
        rows = [
            [markdown_escaped(label), *(f"{v} ± {s}" if s else v for v, _, s in cells)]
            for label, cells in table.rows
        ]
        parts += [table.meaning, "", *markdown_table(heads, rows), ""]
    return "\n".join([*parts, "Accuracy in percent; ± is the standard deviation over training seeds.", ""])
