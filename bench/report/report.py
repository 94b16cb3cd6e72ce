"""The report: tables, figures and one page, from stored records alone. No torch."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

from ..._errors import InvalidArgument, RecordError
from ..audits.sheet import sheets
from ..records.headline import Headline, headline_of
from ..records.latest import current
from ..records.record_file import Damage
from ..records.report_files import write_report_files
from ..records.store import Store
from .benchmark_tables import benchmarks_markdown, benchmarks_page, read_benchmarks
from .figures import Picture, draw_all, labelled
from .html.attack_parts import attack_parts, parts_tables
from .html.model_cards import cards
from .html.page import render
from .leaderboard.json_table import leaderboard_json
from .leaderboard.latex_table import latex
from .leaderboard.leaderboard import leaderboard
from .leaderboard.markdown_table import markdown
from .leaderboard.side_tables import SideTable, protocol_tables, protocols_markdown, smoothing_tables
from .plots.transfer_matrix import transfer_markdown, transfer_tables
from .rendering import Render, render_nothing, rendering_in_processes
from .statistics import summarise

PAGE = "index.html"
"""What the page is called."""
MANY = 1_000_000
"""Bytes of records from which other processes help to draw; with fewer, starting them takes longer."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `write_report` made.

    Attributes
    ----------
    page
        Path of ``index.html``.
    leaderboard
        One row per model, as in ``leaderboard.csv``.
    failures
        One line for each failed cell that counts.
    problems
        Files that were not used, and why.
    superseded
        Records left out because a newer one answers the same question.
    moved
        Where files are now that were in the way of the first report that lists what it writes.
    """

    page: Path
    leaderboard: pd.DataFrame
    failures: list[str]
    problems: list[Damage]
    superseded: int
    moved: list[Path]


def write_report(folder: Path) -> Report:
    """Write ``<folder>/report/``: page, leaderboard, summary, model cards and figures.

    The same records give the same bytes. What an earlier report wrote and this one does not is removed, as
    its list of files (``manifest.json``) says. No logits are computed and no torch is loaded.

    Raises
    ------
    InvalidArgument
        When the folder holds no usable record, or a file of the report is not as robustode wrote it; nothing
        is written then.
    """
    folder = Path(folder)
    store = Store(folder)
    store.require_records()
    with (
        store.lock(),
        _without_collector(),
        rendering_in_processes(None if store.size() >= MANY else 0) as render,
    ):
        return _write_report(folder, render)


def _write_report(folder: Path, render: Render) -> Report:
    store = Store(folder)
    made = _make(folder, render)
    files = {name: text.encode() for name, text in made.texts.items()}
    for picture in made.pictures:
        files |= {f"figures/{picture.name}.svg": picture.svg, f"figures/{picture.name}.png": picture.png}
    moved = write_report_files(store.report, files, folder / "set-aside" / "report")
    return Report(
        page=store.report / PAGE,
        leaderboard=made.board,
        failures=made.failures,
        problems=made.problems,
        superseded=made.superseded,
        moved=moved,
    )


def texts(folder: Path) -> dict[str, str]:
    """The page, tables and cards of the report, by name, as the records make them; nothing is written.

    The page's pictures are left empty.
    """
    return _make(Path(folder), render_nothing).texts


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A report before it is written."""

    texts: dict[str, str]
    pictures: list[Picture]
    board: pd.DataFrame
    failures: list[str]
    problems: list[Damage]
    superseded: int


def _make(folder: Path, render_figures: Render) -> _Made:
    store = Store(folder)
    records, problems = store.load()
    if not records and problems:
        raise InvalidArgument(
            f"no usable records in {folder}: none of {len(problems)} files can be read "
            f"(first: {problems[0]}); run `robustode run` again"
        )
    if not records:
        raise InvalidArgument(f"no records in {folder}: run `robustode run` first, or pass --out")
    headline = headline_of(folder, records)
    used, superseded = current(records, headline.preferred)
    benchmarks, benchmark_problems = read_benchmarks(folder)
    problems = [*problems, *_plan_problems(folder), *benchmark_problems]
    failures = [f"{r.cell.label()}: {r.error or r.status}" for r in used if r.status != "ok"]

    summary = summarise(used)
    audited = sheets(used, headline)
    board = leaderboard(used, headline, summary, audited)
    drawn = cache(draw_all(used, summary, board, headline, render=render_figures))
    protocols = protocol_tables(summary, labelled(board))
    transfers, parts = transfer_tables(used, labelled(board)), attack_parts(used)
    files = _tables(summary, board, headline, protocols, transfers, parts)
    files |= cards(store, used, headline.preset)
    if benchmarks:
        files |= {
            "benchmarks.html": benchmarks_page(benchmarks),
            "benchmarks.md": benchmarks_markdown(benchmarks),
        }
    files[PAGE] = render(
        records=used,
        summary=summary,
        board=board,
        headline=headline,
        pictures=drawn,
        protocols=protocols,
        smoothing=smoothing_tables(summary, labelled(board)),
        transfers=transfers,
        parts=parts_tables(parts),
        problems=[(_relative(p, folder), p.reason) for p in problems],
        benchmarks=bool(benchmarks),
        superseded=superseded,
        audited=audited,
    )
    return _Made(
        texts=files,
        pictures=drawn(),
        board=board,
        failures=failures,
        problems=problems,
        superseded=superseded,
    )


def _tables(
    summary: pd.DataFrame,
    board: pd.DataFrame,
    headline: Headline,
    protocols: Sequence[SideTable],
    transfers: Sequence[SideTable],
    parts: pd.DataFrame,
) -> dict[str, str]:
    files = {
        "leaderboard.csv": _csv(board),
        "leaderboard.json": leaderboard_json(board, headline),
        "leaderboard.md": markdown(board, headline.title),
        "leaderboard.tex": latex(board, headline.title),
        "summary.csv": _csv(summary),
    }
    if protocols:
        files["noise.md"] = protocols_markdown(protocols)
    if transfers:
        files["transfer.md"] = transfer_markdown(transfers)
    if not parts.empty:
        files["attack_parts.csv"] = _csv(parts)
    return files


@contextmanager
def _without_collector() -> Iterator[None]:
    """Switch the garbage collector off: with thousands of records it costs more than it frees."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _plan_problems(folder: Path) -> list[Damage]:
    """A plan that is there and cannot be used is a problem; one that is not there is none."""
    path = folder / "plan.json"
    if path.exists():
        try:
            Headline.read(folder)
        except RecordError as error:
            return [Damage(path=path, reason=f"{error}; reporting the middle strengths")]
    return []


def _csv(table: pd.DataFrame) -> str:
    return str(table.to_csv(index=False, lineterminator="\n", float_format="%.10g"))


def _relative(damage: Damage, folder: Path) -> str:
    path = damage.path
    name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
    return f"{name} line {damage.line}" if damage.line else name
