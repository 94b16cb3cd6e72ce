"""Audit one model of one training seed: load it, run its audits, store their records."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ..._errors import InvalidArgument, RobustodeError, one_line
from ...attacks.core.types import Norm
from ...models import ODEBackend, get_ode_backend
from ..data import load_data
from ..evaluation.accuracy import failed
from ..plugins.model_file import load_files
from ..records.headline import headline_of, preferred_keys
from ..records.latest import Entry, current, entry
from ..records.record import Cell, Record
from ..records.store import Store
from ..runtime.foreign_code import running
from ..runtime.time_limit import time_limit
from ..training.find_model import ModelFinder
from ..training.load_trained import trained_model
from ..training.provenance import environment_of
from .audit_record import audit_cell, audit_record, stored_result
from .context import DEFAULT_EPS, Context
from .expected_failures import unknown_expected_failures
from .library import all_audits
from .registry import Audit
from .stored_records import StoredRecords

LIMIT = 300.0
"""Seconds for loading a model, and for one audit of it."""
ADVICE = " (--time-limit)"


@dataclass(kw_only=True)
class Audited:
    """How many audits were run and were stored already; results and failures, one line each."""

    done: int = 0
    skipped: int = 0
    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, other: Audited) -> None:
        """Add the counts and lines of another model."""
        self.done += other.done
        self.skipped += other.skipped
        self.lines += other.lines
        self.failures += other.failures


@dataclass(frozen=True)
class Task:
    """One model and training seed to audit; small, so that it can be sent to another process.

    `files` are the ``FILE.py:factory`` named by the caller that may hold this model, `time_limit` the seconds
    for loading it and for each audit.
    """

    folder: Path
    data_root: Path | None
    row: Entry
    seed: int
    files: tuple[str, ...]
    checks: tuple[str, ...]
    samples: int
    fresh: bool
    time_limit: float = LIMIT
    load: tuple[Path, ...] = ()
    """Files that register models, threats or datasets, for another process."""
    ode_backend: ODEBackend = field(default_factory=get_ode_backend)
    """``compiled`` or ``torchdiffeq``; by default that of the process that makes the task."""

    @property
    def label(self) -> str:
        """Model, seed and recipe in words."""
        return f"{self.row[1]} seed {self.seed} ({self.row[2]})"

    def audits(self) -> list[Audit]:
        """The audits named in `checks`."""
        return [audit for audit in all_audits() if audit.name in self.checks]


def records_by_training(store: Store) -> dict[tuple[Entry, int], list[Record]]:
    """The current records by row and training seed, of each that was trained without error."""
    records, _ = store.load()
    used, _ = current(records, preferred_keys(store.folder))
    trained: dict[tuple[Entry, int], list[Record]] = defaultdict(list)
    for record in used:
        trained[entry(record.cell), record.cell.training_seed].append(record)
    found = {
        where: ours
        for where, ours in sorted(trained.items())
        if any(r.cell.kind == "training" and r.status == "ok" for r in ours)
    }
    if not found:
        raise InvalidArgument(f"no trained model in {store.folder}: run `robustode run` first, or pass --out")
    return found


def training_of(records: Sequence[Record]) -> Record:
    """The record of the training without error among the records of one model and seed."""
    return next(r for r in records if r.cell.kind == "training" and r.status == "ok")


def budget(reported: Mapping[str, float], rank: str) -> tuple[Norm, float]:
    """The norm and eps of an audit: the ranking one if it is a norm, else L-infinity, else l2."""
    for norm in (rank, "linf", "l2"):
        if norm in DEFAULT_EPS and reported.get(norm, 0.0) > 0:
            return cast(Norm, norm), reported[norm]
    return "linf", DEFAULT_EPS["linf"]


def audit_trained_model(
    task: Task,
    say: Callable[[str], None] = lambda line: None,
    finder: ModelFinder | None = None,
    on_start: Callable[[Cell], None] = lambda cell: None,
) -> Audited:
    """Run the audits of one model and training seed, and store their records.

    Whatever the model does is a failure of its own: it is stored or named, and nothing is raised.

    Parameters
    ----------
    say
        Called with each result, one line each.
    finder
        Finds the model; without it the task's files are imported.
    on_start
        Called with the cell of each audit before it is run.
    """
    store, done = Store(task.folder), Audited()
    headline = headline_of(store.folder, store.load()[0])
    records = records_by_training(store)[task.row, task.seed]
    data = load_data(task.row[0], task.data_root)
    training = training_of(records)
    label = f"{task.row[1]} seed {task.seed}"
    try:
        with time_limit(task.time_limit, "loading the model", ADVICE):
            finder = finder or ModelFinder(store.folder, load_files(task.files).values())
            spec = finder.find(training)
            if training.cell.index_sha256 != data.index_sha256:
                raise InvalidArgument(f"it was trained on other samples than {data.name} here")
            model = trained_model(store, training, spec, images=data.train.images)
    except Exception as error:  # of the model's own code too
        done.failures.append(f"{task.label}: not audited: {in_words(error)}")
        return done
    norm, eps = budget(headline.reported, headline.rank)
    test = data.test.first(task.samples)
    context = Context(
        model=model,
        images=test.images,
        labels=test.labels,
        num_classes=data.num_classes,
        dataset=data.name,
        spec=spec,
        stored=StoredRecords(records=tuple(records), reported=headline.reported),
        norm=norm,
        eps=eps,
    )
    for line in unknown_expected_failures(spec.expected_failures, spec.claims).values():
        done.lines.append(f"{label}: warning: {line}")
        say(done.lines[-1])
    for record in _records(store, training, task, context, done, on_start):
        found = stored_result(record)
        if record.status != "ok":
            done.failures.append(f"{record.cell.label()}: {record.status}: {record.error}")
        mark = "exempt" if found.verdict == "flag" and found.exempt else found.verdict
        done.lines.append(f"{label}: {mark:<14} {found.name}: {found.sentence} [{record.seconds:.1f} s]")
        say(done.lines[-1])
    return done


def in_words(error: Exception) -> str:
    """An error in one line, with its type where it is not one of this package."""
    kind = "" if isinstance(error, RobustodeError) else f"{type(error).__name__}: "
    return f"{kind}{one_line(error)}"


def _records(
    store: Store,
    training: Record,
    task: Task,
    context: Context,
    done: Audited,
    on_start: Callable[[Cell], None],
) -> Iterator[Record]:
    """The records of all audits; those that are not stored are run and stored."""
    sha256, settings = str(training.card["checkpoint_sha256"]), context.settings()
    described = environment_of(context.model, context.device)
    for audit in task.audits():
        cell = audit_cell(training.cell, sha256, audit, settings)
        stored = None if task.fresh else store.get(cell)
        if stored is not None and stored.status == "ok":
            done.skipped += 1
            yield stored
            continue
        on_start(cell)
        record = run_audit(audit, context, cell, described, task.time_limit)
        store.put(record)
        done.done += 1
        yield record


def run_audit(
    audit: Audit, context: Context, cell: Cell, described: Mapping[str, Any], limit: float = LIMIT
) -> Record:
    """Run one audit; an exception becomes a failed record and never a pass."""
    began = time.perf_counter()
    queried = context.queried
    forwards, backwards = queried.forwards, queried.backwards
    try:
        seed = context.generator(audit.name, "model").initial_seed()
        with time_limit(limit, f"audit {audit.name}", ADVICE), running(context.model, seed):
            result = audit(context)
        return audit_record(
            cell,
            result,
            audit.title,
            context.spec.expected_failures.get(audit.name, ""),
            forwards=queried.forwards - forwards,
            backwards=queried.backwards - backwards,
            seconds=time.perf_counter() - began,
            environment=described,
        )
    except Exception as error:
        return failed(cell, error, seconds=time.perf_counter() - began, environment=described)
