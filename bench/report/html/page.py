"""The page, as plain data for its templates. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from ...audits.sheet import Sheet
from ...records.headline import Headline
from ...records.latest import Entry, entry
from ...records.record import SUBMISSION, Record
from ..figures import Picture, labelled
from ..leaderboard.side_tables import SideTable
from ..style import NAMED_MODELS, key_name, strength_symbol
from .audit_lines import audit_badge, audit_lines
from .chart_data import chart_data
from .citation import own_bibtex
from .compact_svg import compact_svg
from .leaderboard_table import evidence, flags, grid
from .model_details import certificates, environments, sheet
from .template import chart_style, embedded, script, svg_uri, template
from .throughput_tables import timing_tables


def render(
    *,
    records: list[Record],
    summary: pd.DataFrame,
    board: pd.DataFrame,
    headline: Headline,
    pictures: Callable[[], Sequence[Picture]],
    protocols: Sequence[SideTable],
    smoothing: Sequence[SideTable],
    transfers: Sequence[SideTable],
    parts: Sequence[Mapping[str, Any]],
    problems: Sequence[tuple[str, str]],
    benchmarks: bool,
    superseded: int,
    audited: Mapping[Entry, Sheet],
) -> str:
    """Render the page: one HTML text that needs no network and no other file.

    Parameters
    ----------
    records
        The records that count.
    pictures
        Gives the pictures; asked last, since they may be rendered until then.
    parts
        What ``attack_parts.parts_tables`` makes.
    problems
        Pairs of a file's name and why it was not used.
    benchmarks
        Whether there is a ``benchmarks.html`` beside the page.
    audited
        The audit sheets, by row.
    """
    board = labelled(board)
    rows: list[Any] = list(board.itertuples())
    by_row: dict[Entry, list[Record]] = defaultdict(list)
    for record in records:
        by_row[entry(record.cell)].append(record)
    keys = [(row.dataset, row.model, row.recipe) for row in rows]
    anchors = _anchors(keys)
    checked = {key: audit_lines(audited.get(key)) for key in keys}
    proven = certificates(summary)
    behind = evidence(summary)
    badges = {key: audit_badge(audited.get(key)) for key in keys}
    tables = [
        grid(str(name), mine, behind, anchors, badges) for name, mine in board.groupby("dataset", sort=True)
    ]
    cards = [
        sheet(
            row,
            by_row[key],
            headline,
            anchor=anchors[key],
            certificates=proven.get(key, ()),
            audits=checked[key],
        )
        for key, row in zip(keys, rows, strict=True)
    ]
    throughput = timing_tables(summary, records)
    charts = chart_data(summary, board, anchors)
    failures = [(r.cell.dataset, r.cell.label(), r.error or r.status) for r in records if r.status != "ok"]
    code, code_hash = script()
    shown = [_picture(p) for p in pictures()]
    by_label: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for picture in shown:
        by_label[picture["dataset"], picture["label"]].append(picture)
    text = template("index.html.j2").render(
        headline=headline,
        rank_by=_rank_name(headline),
        datasets=[table | {"images": by_label[table["name"], ""]} for table in tables],
        controls=_controls(tables),
        protocols=protocols,
        smoothing=smoothing,
        transfers=transfers,
        throughput=throughput,
        parts=parts,
        submissions=[_submission(r) for r in records if r.cell.family == SUBMISSION],
        cards=[card | {"pictures": by_label[card["dataset"], card["label"]]} for card in cards],
        failures=failures,
        problems=problems,
        benchmarks=benchmarks,
        superseded=superseded,
        environments=environments(records),
        counts={"records": len(records), "models": board["model"].nunique(), "failed": len(failures)},
        own_bibtex=own_bibtex(),
        data=embedded(
            {
                "charts": charts,
                "named": NAMED_MODELS,
                "ranks": {table["name"]: table["ranks"] for table in tables if table["ranks"]},
            }
        ),
        chart_style=chart_style(),
        script=code,
        script_hash=code_hash,
    )
    return str(text)


def _rank_name(headline: Headline) -> str:
    if headline.rank not in headline.reported:
        return "clean accuracy"
    return _sentence_name(headline.rank, headline.reported[headline.rank])


def _sentence_name(key: str, strength: float) -> str:
    name, symbol = key_name(key), strength_symbol(key)
    name = name if name.startswith("Gaussian") else f"{name[0].lower()}{name[1:]}"
    return f"{name}, {symbol} = {strength:g}"


def _controls(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The choices of the leaderboard's filters; one with a single choice is left out by the template."""
    columns = {c["name"]: c for table in tables for c in table["columns"]}
    ranks = [
        (name, f"{c['title']}{', ' + c['note'] if c['note'] else ''}")
        for name, c in columns.items()
        if c["ranks"]
    ]
    threats = dict.fromkeys(c["threat"] for c in columns.values() if c["threat"])
    return {
        "ranks": ranks,
        "rank": tables[0]["rank"] if tables else "",
        "threats": [(key, key_name(key).removeprefix("Worst case ")) for key in threats],
        "datasets": [table["name"] for table in tables],
        "recipes": sorted({line["recipe"] for table in tables for line in table["lines"]}),
        "flags": flags(tables),
    }


def _submission(record: Record) -> dict[str, Any]:
    cell, count = record.cell, int(record.card["adversarial"]["count"])
    return {
        "model": f"{cell.model} seed {cell.training_seed}",
        "what": _sentence_name(str(cell.norm), cell.strength),
        "count": count,
        "origin": str(cell.parameters["origin"]),
    }


def _picture(picture: Picture) -> dict[str, Any]:
    return {
        **{name: getattr(picture, name) for name in ("dataset", "kind", "label", "title", "alt", "name")},
        "uri": svg_uri(compact_svg(picture.svg)),
    }


def _anchors(keys: Sequence[Entry]) -> dict[Entry, str]:
    """An id for each row that no other row has."""
    found: dict[Entry, str] = {}
    for key in keys:
        stem = "model-" + "-".join("".join(c if c.isalnum() else "_" for c in name) for name in key)
        anchor, n = stem, 1
        while anchor in found.values():
            n += 1
            anchor = f"{stem}-{n}"
        found[key] = anchor
    return found
