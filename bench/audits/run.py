"""Audit the trained models of a results folder: one record a check, model and training seed."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from ..._errors import InvalidArgument, RecordError, RobustodeError, one_line
from ..._registry import unknown_name
from ...attacks.core.types import Norm
from ..data import load_data
from ..evaluation.accuracy import failed
from ..plugins.model_file import load_external, named_models
from ..records.headline import Headline
from ..records.latest import Entry, current, entry
from ..records.record import Record
from ..records.store import Store
from ..runtime.machine import count_cores
from ..runtime.processes import Died, Message, Raised, Returned, Send, run_jobs
from ..runtime.time_limit import time_limit
from ..training.load_trained import model_of, trained_model
from ..training.provenance import environment_of
from .audit_record import audit_cell, audit_record, stored_result
from .context import DEFAULT_EPS, Context
from .library import all_audits
from .registry import Audit
from .stored_records import StoredRecords

SAMPLES = 128
LIMIT = 300.0
"""Seconds for one check of one model."""


@dataclass(kw_only=True)
class Audited:
    """What came of it: checks done, checks that were stored already, findings and failures, a line each."""

    done: int = 0
    skipped: int = 0
    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, other: Audited) -> None:
        """Count what was found of another model."""
        self.done += other.done
        self.skipped += other.skipped
        self.lines += other.lines
        self.failures += other.failures


@dataclass(frozen=True)
class Task:
    """One model and training seed to audit, in words that another process understands."""

    folder: Path
    data_root: Path | None
    row: Entry
    seed: int
    files: tuple[str, ...]
    checks: tuple[str, ...]
    samples: int
    fresh: bool


def audit_folder(
    folder: Path,
    data_root: Path | None = None,
    *,
    models: Sequence[str] = (),
    checks: Sequence[str] = (),
    samples: int = SAMPLES,
    seeds: int | None = None,
    fresh: bool = False,
    jobs: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Audited:
    """Run the checks that ask a model on every trained model of a results folder, on the CPU.

    A check whose record is stored is not run again. Those that read records alone are run by the report.

    Parameters
    ----------
    data_root
        Where datasets lie.
    models
        Names of the rows to audit, all of them unless given; ``FILE.py:factory`` says where a model is.
    checks
        Names of the checks; all of them unless given.
    samples
        Test images that a check is given at most.
    seeds
        Audit training seeds 0 .. seeds - 1; all of them unless given.
    fresh
        Run every check again.
    jobs
        Models audited at once, each in a process of its own; one a core unless given.
    say
        Called with each finding, a line each.

    Raises
    ------
    InvalidArgument
        When the folder holds no trained model, or a name is not known.
    """
    names = [audit.name for audit in _checks(checks)]
    if samples < 2:
        raise InvalidArgument(f"--samples must be at least 2, not {samples}")
    if seeds is not None and seeds < 1:
        raise InvalidArgument(f"--seeds must be at least 1, not {seeds}")
    store = Store(folder)
    units = _units(store)
    files = tuple(name for name in models if ".py" in name)
    wanted = set(named_models(models)[0])
    known = sorted({row[1] for row, _ in units})
    for name in sorted(wanted):
        if name not in known:
            raise unknown_name(f"model of {folder}", name, known)
    chosen = [
        (row, seed)
        for row, seed in units
        if (not wanted or row[1] in wanted) and (seeds is None or seed < seeds)
    ]
    for dataset in sorted({row[0] for row, _ in chosen}):
        load_data(dataset, data_root)
    tasks = [
        Task(Path(folder), data_root, row, seed, files, tuple(names), samples, fresh) for row, seed in chosen
    ]
    workers = min(jobs or count_cores(), len(tasks))
    with store.lock():
        found = (
            _audit_in_processes(tasks, workers, say) if workers > 1 else [audit_unit(t, say) for t in tasks]
        )
    done = Audited()
    for one in found:
        done.add(one)
    return done


def _audit_in_processes(tasks: Sequence[Task], processes: int, say: Callable[[str], None]) -> list[Audited]:
    """What `audit_unit` returns for each of `tasks`; a task whose process dies is a failure."""
    found: dict[Task, Audited] = {}
    for task, answer in run_jobs(_audit_task, deque(tasks), processes=processes, preload=[__name__]):
        match answer:
            case Message(_, line):
                say(line)
            case Returned(audited):
                found[task] = audited
            case Raised(error):
                raise error
            case Died(reason):
                line = f"{task.row[1]} seed {task.seed} ({task.row[2]}): not audited: its process {reason}"
                found[task] = Audited(failures=[line])
    return [found[task] for task in tasks]


def _audit_task(send: Send, task: Task) -> Audited:
    torch.set_num_threads(1)
    return audit_unit(task, partial(send, "line"))


def _checks(names: Sequence[str]) -> list[Audit]:
    audits = [audit for audit in all_audits() if audit.needs == "model"]
    known = [audit.name for audit in audits]
    for name in names:
        if name not in known:
            raise unknown_name("check of a model", name, known)
    return [audit for audit in audits if not names or audit.name in names]


def _units(store: Store) -> dict[tuple[Entry, int], list[Record]]:
    """The records that count of each row and training seed with a sound training."""
    records, _ = store.load()
    used, _ = current(records, _headline(store).preferred)
    units: dict[tuple[Entry, int], list[Record]] = defaultdict(list)
    for record in used:
        units[entry(record.cell), record.cell.training_seed].append(record)
    found = {
        where: ours
        for where, ours in sorted(units.items())
        if any(r.cell.kind == "training" and r.status == "ok" for r in ours)
    }
    if not found:
        raise InvalidArgument(f"no trained model in {store.folder}: run `robustode run` first, or pass --out")
    return found


def _headline(store: Store) -> Headline:
    with suppress(RecordError):
        return Headline.read(store.folder)
    return Headline.guess(current(store.load()[0])[0])


def budget(reported: Mapping[str, float], rank: str) -> tuple[Norm, float]:
    """The norm and eps of an audit: the ranking one if it is a norm, else L-infinity, else l2."""
    for norm in (rank, "linf", "l2"):
        if norm in DEFAULT_EPS and reported.get(norm, 0.0) > 0:
            return cast(Norm, norm), reported[norm]
    return "linf", DEFAULT_EPS["linf"]


def audit_unit(task: Task, say: Callable[[str], None] = lambda line: None) -> Audited:
    """Run the checks of one model and training seed, and store what they find."""
    store, done = Store(task.folder), Audited()
    headline, records = _headline(store), _units(store)[task.row, task.seed]
    data = load_data(task.row[0], task.data_root)
    training = next(r for r in records if r.cell.kind == "training" and r.status == "ok")
    label = f"{task.row[1]} seed {task.seed}"
    try:
        spec = model_of(training, {spec.name: spec for spec in map(load_external, task.files)})
        if training.cell.index_sha256 != data.index_sha256:
            raise InvalidArgument(f"it was trained on other samples than {data.name} here")
        model = trained_model(store, training, spec).requires_grad_(False)
    except RobustodeError as error:
        done.failures.append(f"{label} ({task.row[2]}): not audited: {one_line(error)}")
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
    for record in _records(store, training, _checks(task.checks), context, task.fresh, done):
        found = stored_result(record)
        if record.status != "ok":
            done.failures.append(f"{record.cell.label()}: {record.status}: {record.error}")
        mark = "exempt" if found.verdict == "flag" and found.exempt else found.verdict
        done.lines.append(f"{label}: {mark:<14} {found.name}: {found.sentence} [{record.seconds:.1f} s]")
        say(done.lines[-1])
    return done


def _records(
    store: Store,
    training: Record,
    audits: Iterable[Audit],
    context: Context,
    fresh: bool,
    done: Audited,
) -> Iterator[Record]:
    """The records of all checks, those that are not stored run and stored."""
    sha256, settings = str(training.card["checkpoint_sha256"]), context.settings()
    described = environment_of(context.model, context.device)
    for audit in audits:
        cell = audit_cell(training.cell, sha256, audit, settings)
        stored = None if fresh else store.get(cell)
        if stored is not None and stored.status == "ok":
            done.skipped += 1
            yield stored
            continue
        record = run_audit(audit, context, cell, described)
        store.put(record)
        done.done += 1
        yield record


def run_audit(audit: Audit, context: Context, cell: Any, described: Mapping[str, Any]) -> Record:
    """Run one check; what it raises becomes a failed record and never a pass."""
    began = time.perf_counter()
    queried = context.queried
    forwards, backwards = queried.forwards, queried.backwards
    try:
        with time_limit(LIMIT, f"audit {audit.name}"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            verdict = audit(context)
        return audit_record(
            cell,
            verdict,
            audit.title,
            context.spec.expected_failures.get(audit.name, ""),
            forwards=queried.forwards - forwards,
            backwards=queried.backwards - backwards,
            seconds=time.perf_counter() - began,
            environment=described,
        )
    except Exception as error:
        return failed(cell, error, seconds=time.perf_counter() - began, environment=described)
