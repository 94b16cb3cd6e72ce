"""Figures and a table for a paper, from stored records alone: chosen models, threats, columns and style.

They lie in ``<out>/paper/``; the report beside it stays as it is. No torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from ..._errors import InvalidArgument
from ..._registry import unknown_name
from ..records.atomic import write_atomically
from ..records.headline import Headline, headline_of
from ..records.latest import current, entry
from ..records.record import Record
from ..records.store import Store
from .figures import all_figures, labelled
from .leaderboard.latex_table import chosen_fields, paper_table
from .leaderboard.leaderboard import leaderboard
from .statistics import summarise
from .style import RC

FOLDER = "paper"
"""Where they lie in a results folder."""
MANIFEST = "manifest.json"
"""The list of what robustode wrote there, with hashes."""
TABLE = "leaderboard.tex"
KINDS = (
    "accuracy",
    "gap",
    "sandwich",
    "heatmap",
    "transfer",
    "critical",
    "tradeoff",
    "rate",
    "contraction",
    "sensitivity",
    "energy",
    "examples",
)
"""Kinds of figures."""
FORMATS = ("pdf", "svg", "png")
_METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}
_NOT_STYLE = ("backend", "interactive", "savefig.bbox", "savefig.format", "svg.hashsalt")
_EDITABLE = {"svg.fonttype": "none", "pdf.fonttype": 42}


@dataclass(frozen=True, kw_only=True)
class PaperOptions:
    """What goes into a paper, and how it looks; None and empty: all, as in the report.

    Attributes
    ----------
    models
        Names of models, or rows as figures call them (``ch-node (plain)``).
    threats
        Threats, norms (``l2``) or ``worst-case``. Clean accuracy is always there.
    figures
        Some of `KINDS`.
    width
        Of each figure, in inches; text keeps its size.
    formats
        Some of `FORMATS`.
    dpi
        Resolution of pixels.
    style
        A matplotlib style file, applied over the style of the report.
    columns
        Of the table: columns of ``leaderboard.csv``, in this order.
    intervals
        Whether the table has 95% intervals.
    """

    models: Sequence[str] = ()
    threats: Sequence[str] = ()
    figures: Sequence[str] = ()
    width: float | None = None
    formats: Sequence[str] = ("pdf",)
    dpi: int = 300
    style: Path | None = None
    columns: Sequence[str] = ()
    intervals: bool = False


def write_paper(folder: Path, options: PaperOptions) -> list[Path]:
    """Write ``<folder>/paper/``: each figure in each format, and ``leaderboard.tex``.

    Text in SVG and PDF stays text. The same records and options give the same bytes.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    InvalidArgument, UnknownName
        For options that cannot be used, figures that the records do not allow, and files in the way that
        robustode did not write; nothing is written then.
    """
    for kind, asked, known in (("figure", options.figures, KINDS), ("format", options.formats, FORMATS)):
        for name in asked:
            if name not in known:
                raise unknown_name(kind, name, list(known))
    store = Store(folder)
    store.require_records()
    with store.lock(), _style(options.style):
        files = dict(_made(folder, store.load()[0], options))
        return _write(folder / FOLDER, files)


def _made(folder: Path, records: Sequence[Record], options: PaperOptions) -> Iterator[tuple[str, bytes]]:
    headline = headline_of(folder, records)
    used, _ = current(records, headline.preferred)
    summary = summarise(used)
    board = labelled(leaderboard(used, headline, summary))
    used, summary, board, headline = _chosen(used, summary, board, headline, options)
    chosen = chosen_fields(board, options.columns, ranked=not options.models)
    drawn: set[str] = set()
    for words, draw in all_figures(used, summary, board, headline):
        if not options.figures or words["kind"] in options.figures:
            drawn.add(words["kind"])
            figure = draw(width=options.width)
            for suffix in options.formats:
                yield f"{words['name']}.{suffix}", _rendered(figure, suffix, options.dpi)
    if absent := [kind for kind in options.figures if kind not in drawn]:
        raise InvalidArgument(
            f"no figure {', '.join(absent)}: the records of these models and threats hold nothing for it"
            + (f"; drawn: {', '.join(sorted(drawn))}" if drawn else "")
        )
    table = paper_table(board, headline.title, chosen, intervals=options.intervals)
    yield TABLE, table.encode()


def _chosen(
    used: list[Record],
    summary: pd.DataFrame,
    board: pd.DataFrame,
    headline: Headline,
    options: PaperOptions,
) -> tuple[list[Record], pd.DataFrame, pd.DataFrame, Headline]:
    """What is of the models and threats asked for; worst cases are over all attacks all the same."""
    if options.models:
        _known("model", options.models, {*board["model"], *board["label"]})
        board = board[board["model"].isin(options.models) | board["label"].isin(options.models)]
        rows = set(zip(board["dataset"], board["model"], board["recipe"], strict=True))
        used = [record for record in used if entry(record.cell) in rows]
        of_rows = zip(summary["dataset"], summary["model"], summary["recipe"], strict=True)
        summary = summary[[row in rows for row in of_rows]]
    if options.threats:
        asked = set(options.threats)
        bounded = summary[summary["statistic"].isin(["accuracy", "certified_accuracy"])]
        _known("threat", options.threats, {*bounded["threat"], *bounded["norm"].dropna()})
        ours = bounded["threat"].isin(asked) | bounded["norm"].isin(asked)
        norms = set(bounded.loc[ours, "norm"].dropna())
        keys = norms | asked
        cost = ~summary["statistic"].isin(["accuracy", "accuracy_spread", "certified_accuracy", "no_answer"])
        named = summary["threat"].isin(asked | {"clean"}) | summary["norm"].isin(asked)
        # Bounds are of worst cases, so these stay for the figures of bounds, and certificates with them.
        lower = (summary["statistic"] == "certified_accuracy") & summary["norm"].isin(norms)
        summary = summary[cost | named | lower]
        reported = {key: strength for key, strength in headline.reported.items() if key in keys}
        headline = dataclasses.replace(headline, reported=reported)
        used = [
            record
            for record in used
            if record.cell.kind != "accuracy"
            or record.cell.family == "clean"
            or {record.cell.threat, record.cell.norm} & asked
            or ("worst-case" in asked and record.cell.norm)
        ]
        columns = board.attrs["columns"]
        kept = tuple(c for c in columns.accuracies if c.kind == "clean" or c.of in keys)
        board.attrs["columns"] = dataclasses.replace(columns, accuracies=kept)
    return used, summary, board, headline


def _known(kind: str, asked: Collection[str], known: Collection[str]) -> None:
    for name in asked:
        if name not in known:
            raise unknown_name(kind, name, sorted(known))


@contextmanager
def _style(file: Path | None) -> Iterator[None]:
    """The style of the report, text that can be edited, and `file` over both."""
    own = {} if file is None else _read_style(file)
    with mpl.style.context(["default", RC, own, _EDITABLE]):
        # A letter that a font lacks, such as ℓ, comes from the next one.
        mpl.rcParams["font.family"] = [*mpl.rcParams["font.family"], "DejaVu Sans"]
        mpl.rcParams["savefig.bbox"] = None  # a figure is as wide as asked
        yield


def _read_style(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"--style {file} cannot be read: {error}") from None
    names = [line.split("#", 1)[0].partition(":")[0].strip() for line in text.splitlines()]
    for number, name in enumerate(names, 1):
        if name and name not in mpl.rcParams:
            raise InvalidArgument(f"--style {file}, line {number}: matplotlib has no setting {name!r}")
    try:
        settings = mpl.rc_params_from_file(file, fail_on_error=True, use_default_template=False)
    except Exception as error:
        raise InvalidArgument(f"--style {file}: {error}") from None
    return {name: settings[name] for name in settings if name not in _NOT_STYLE}


def _rendered(figure: Figure, suffix: str, dpi: int) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=suffix, dpi=dpi, metadata=_METADATA[suffix])
    return file.getvalue()


def _write(folder: Path, files: dict[str, bytes]) -> list[Path]:
    """Write `files`, but for one in the way that is not as robustode wrote it: then nothing is written."""
    listed = _listed(folder)
    for name, data in files.items():
        path = folder / name
        if path.exists() and _hash(path.read_bytes()) not in (listed.get(name), _hash(data)):
            raise InvalidArgument(f"{path} is not as robustode wrote it: move it or delete it")
    new = {**listed, **{name: _hash(data) for name, data in files.items()}}
    for name, data in files.items():
        write_atomically(folder / name, data)
    body = {"made_by": "robustode", "files": new}
    write_atomically(folder / MANIFEST, (json.dumps(body, indent=1, sort_keys=True) + "\n").encode())
    return [folder / name for name in files]


def _listed(folder: Path) -> dict[str, str]:
    path = folder / MANIFEST
    if not path.exists():
        return {}
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["made_by"] == "robustode":
            return {str(name): str(value) for name, value in body["files"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass
    raise InvalidArgument(f"{path} was not written by robustode: move it or delete it")


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
