"""Noise, protocol by protocol: a table each, never one column for two of them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from .style import strength_name, threat_name
from .text import missing, percent

MEANINGS = {
    "pixel": "Protocol `pixel`: noise is added to the image in [0, 1] and clipped to [0, 1]; σ is a standard "
    "deviation there.",
    "paper-exact": "Protocol `paper-exact`, that of the CH-NODE paper: noise is added to the normalised "
    "image and clipped to [-1, 1], which in pixels is [-0.177, 0.439] and cuts bright strokes to less than "
    "half of their height, so that its variances of 0.05 and 0.2 (σ of 0.069 and 0.138 in pixels) act on "
    "another image.",
}
"""What each protocol does, in a sentence."""


@dataclass(frozen=True, kw_only=True)
class ProtocolTable:
    """One protocol on one dataset.

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


def protocol_tables(summary: pd.DataFrame, board: pd.DataFrame) -> list[ProtocolTable]:
    """Tables of accuracy under noise, where a dataset was evaluated under several protocols.

    Parameters
    ----------
    summary
        ``stats.summarise(records)``.
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
            tables.append(_table(str(dataset), protocol, pd.concat([clean, mine]), board))
    return tables


def _noises(summary: pd.DataFrame) -> list[str]:
    accuracy = summary[(summary["statistic"] == "accuracy") & summary["norm"].isna()]
    return sorted(set(accuracy["threat"]) - {"clean"})


def _table(dataset: str, protocol: str, rows: pd.DataFrame, board: pd.DataFrame) -> ProtocolTable:
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
            if value is None or missing(value["value"]):
                cells.append(("", "", ""))
                continue
            interval = f"{percent(value['low'])} – {percent(value['high'])}"
            cells.append((percent(value["value"]), interval, percent(spread["value"]) if spread else ""))
        lines.append((str(row.label), cells))
    heads = [
        (threat_name(t).partition(",")[0], "" if t == "clean" else f"{strength_name(t)[0]} = {s:g}")
        for t, s in columns
    ]
    return ProtocolTable(
        dataset=dataset, protocol=protocol, meaning=MEANINGS.get(protocol, ""), heads=heads, rows=lines
    )


def protocols_markdown(tables: Sequence[ProtocolTable]) -> str:
    """Write the tables as GitHub Markdown, each under its sentence."""
    parts = []
    for table in tables:
        heads = ["Model", *(f"{a} ({b})" if b else a for a, b in table.heads)]
        parts += [table.meaning, "", _line(heads), _line(["---", *["---:"] * len(table.heads)])]
        for label, cells in table.rows:
            parts.append(_line([label, *(f"{v} ± {s}" if s else v for v, _, s in cells)]))
        parts.append("")
    return "\n".join([*parts, "Accuracy in percent; ± is the standard deviation over training seeds.", ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
