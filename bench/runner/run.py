"""Run a plan: every unit's weights and cells, side by side where cores allow, then the timings alone.

A cell whose record is stored and sound is not done again, so a run that was stopped, in whatever way,
goes on where it was when the same command is given again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from ..._errors import RecordError, RobustodeError
from ..config.plan import Plan
from ..config.run_request import Request
from ..data import Data
from ..records.headline import Headline
from ..records.store import Problem, Store
from ..runtime.progress import Quiet, Reporter
from .batch_size import settle_batch_sizes
from .model_run import Outcome, Unit
from .model_transfer import replay_all
from .schedule import look_ahead
from .workers import Job, count_processes, run_in_processes

Name = tuple[str, int]
"""A unit's: model and training seed."""


@dataclass(kw_only=True)
class RunOutcome(Outcome):
    """What a run did, and the record files that it found unusable and set aside."""

    problems: list[Problem] = field(default_factory=list)


def run_plan(
    plan: Plan,
    data: Data,
    store: Store,
    *,
    device: torch.device,
    fresh: bool = False,
    reporter: Reporter | None = None,
    request: Request | None = None,
    jobs: int | None = None,
) -> RunOutcome:
    """Do every cell of `plan` that is not stored yet (all of them with `fresh`).

    A failure of one model or cell is stored and named, and the rest goes on.

    Parameters
    ----------
    request
        What `plan` was made from. With it, on a CPU, each unit runs in a process of its own, several at once.
    jobs
        How many at once; as many as there are threads and memory for unless given.
    """
    reporter = reporter or Quiet()
    outcome = RunOutcome()
    with store.lock():
        _, outcome.problems = store.load()
        store.set_aside(outcome.problems)
        ledger = _Ledger(plan, data, store)
        data = data.to(device)
        processes = count_processes(len(plan.units), device, jobs) if request else 1
        threads = max(1, torch.get_num_threads() // processes)
        reporter.doing("measuring batches")
        plan = settle_batch_sizes(plan, data, store, device, fresh=fresh, threads=threads, say=reporter.say)
        reporter.doing("estimating")
        outlooks = {
            outlook.model: outlook
            for outlook in look_ahead(plan, data, store, device, fresh=fresh, threads=threads)
        }
        reporter.start(sum(outlook.seconds for outlook in outlooks.values()))
        left, total = sum(o.left for o in outlooks.values()), sum(o.cells for o in outlooks.values())
        reporter.say(f"{left} cells to do, {total - left} stored already; results in {store.folder}")
        units = {
            (spec.name, seed): Unit(
                plan,
                data,
                store,
                device,
                spec,
                seed,
                outlooks[spec.name].cost,
                fresh=fresh,
                reporter=reporter,
            )
            for spec, seed in plan.units
        }
        busy = [name for name in units if name[1] in outlooks[name[0]].busy]
        processes = count_processes(len(busy), device, jobs)
        if request is not None and device.type == "cpu" and busy:
            request = dataclasses.replace(request, batch_sizes=plan.batch_sizes)
            orders = [_job(units[name], request, processes) for name in busy]
            for job, keys, theirs, lived in run_in_processes(orders, store, reporter, processes=processes):
                ledger.note((job.model, job.seed), keys)
                outcome.add(theirs)
                units[job.model, job.seed].sound = lived
        else:
            busy = []
        for name in [name for name in units if name not in busy]:
            ledger.note(name, units[name].evaluate())
        for name, unit in units.items():
            ledger.note(name, unit.time())
            outcome.add(unit.outcome)
            if fresh:
                _compare(store, *ledger.before_and_now(name), reporter)
        if plan.preset.transfer:
            outcome.add(_transfer(plan, data, store, fresh, reporter))
    return outcome


def _transfer(plan: Plan, data: Data, store: Store, fresh: bool, reporter: Reporter) -> Outcome:
    """Replay what is stored of each model on the others; nothing to replay is no failure of a run."""
    reporter.doing("transfer between models")
    datasets = {data.name: data.to(torch.device("cpu"))}
    try:
        done = replay_all(store, specs=plan.specs, datasets=datasets, fresh=fresh, say=reporter.say)
    except RobustodeError as error:
        reporter.say(f"no transfer: {error}")
        return Outcome()
    for note in done.notes:
        reporter.say(note)
    return done


def _job(unit: Unit, request: Request, processes: int) -> Job:
    return Job(
        request=request,
        model=unit.spec.name,
        seed=unit.seed,
        out=unit.store.folder,
        fresh=unit.fresh,
        cost=unit.cost,
        threads=max(1, torch.get_num_threads() // processes),
        processes=processes,
    )


class _Ledger:
    """The cells asked of each unit, in ``plan.json`` beside those that earlier runs asked for."""

    def __init__(self, plan: Plan, data: Data, store: Store) -> None:
        self._store, self._dataset = store, data.name
        self._headline = plan.headline()
        with suppress(RecordError):
            self._headline = dataclasses.replace(self._headline, cells=Headline.read(store.folder).cells)
        self._before = dict(self._headline.cells)
        self._now: dict[Name, list[str]] = {}
        self._headline.write(store.folder)

    def note(self, unit: Name, keys: Sequence[str]) -> None:
        """Add cells of `unit`."""
        self._now[unit] = [*self._now.get(unit, ()), *keys]
        cells = {**self._headline.cells, self._key(unit): self._now[unit]}
        self._headline = dataclasses.replace(self._headline, cells=cells)
        self._headline.write(self._store.folder)

    def before_and_now(self, unit: Name) -> tuple[Sequence[str], Sequence[str]]:
        """The keys of the unit's cells before this run, and in it."""
        return self._before.get(self._key(unit), ()), self._now[unit]

    def _key(self, unit: Name) -> str:
        return f"{self._dataset}/{unit[0]}/{unit[1]}"


def _compare(store: Store, old: Sequence[str], new: Sequence[str], reporter: Reporter) -> None:
    """Say how far the accuracies of a training done again lie from those stored before."""

    def accuracies(keys: Sequence[str]) -> dict[str, float]:
        wanted = set(keys)
        records = [r for r in store.load()[0] if r.cell.key() in wanted and r.cell.kind == "accuracy"]
        return {r.cell.label(): r.accuracy for r in records if r.status == "ok"}

    before, now = accuracies(old), accuracies(new)
    for label in sorted(before.keys() & now.keys()):
        change = 100 * (now[label] - before[label])
        reporter.say(f"{label}: {now[label]:.1%}, stored {before[label]:.1%} ({change:+.1f} points)")
