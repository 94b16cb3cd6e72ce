"""Run a plan: the weights and cells of each model and seed, several at once, then the timings alone.

A cell whose record is stored is not done again, so a run that was stopped, in whatever way, continues where
it was when the same command is run again.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from ..._errors import RobustodeError
from ..config.cells import training_cell
from ..config.plan import Plan
from ..config.run_request import RunRequest
from ..data import Data
from ..records.headline import Headline, stated_headline
from ..records.model_files import ModelFile
from ..records.record import Record
from ..records.record_file import Damage
from ..records.store import Store
from ..runtime.progress import Quiet, Reporter
from ..training.load_trained import changed_since
from .batch_size import choose_batch_sizes
from .model_run import ModelRun
from .model_transfer import replay_all
from .run_context import RunContext
from .run_summary import RunSummary
from .schedule import estimate_duration, estimate_remaining
from .slow_training import slow_training
from .taken_names import refuse_taken_names
from .workers import ModelRunJob, count_processes, run_in_processes

ModelAndSeed = tuple[str, int]
"""A model's name and a training seed."""
OnEvaluated = Callable[[str, int, list[Record], float], None]
"""Called with a model, a training seed, its records and the seconds that they took."""


@dataclass(kw_only=True)
class RunResult(RunSummary):
    """What a run did, and the lines of records that it found damaged and moved to ``set-aside/``."""

    damages: list[Damage] = field(default_factory=list)


def run_plan(
    plan: Plan,
    data: Data,
    store: Store,
    *,
    device: torch.device,
    fresh: bool = False,
    reporter: Reporter | None = None,
    request: RunRequest | None = None,
    jobs: int | None = None,
    on_evaluated: OnEvaluated | None = None,
) -> RunResult:
    """Do every cell of `plan` that is not stored yet (all of them with `fresh`).

    A failure of one model or cell is stored and named, and the rest goes on. A model with the name of another
    one in the folder is refused before anything is done, unless `fresh`.

    Parameters
    ----------
    request
        What `plan` was made from. With it, on a CPU, each model and seed runs in a process of its own.
    jobs
        How many processes at once; None for as many as threads and memory allow.
    on_evaluated
        Called when all cells of a model and seed but its timings are done, unless all were stored already.
    """
    reporter = reporter or Quiet()
    result = RunResult()
    with store.lock():
        if not fresh:
            refuse_taken_names(plan, data, store)
        result.damages = store.clear()
        _discard_changed(plan, data, store, reporter)
        requested = _RequestedCells(plan, data, store)
        data = data.to(device)
        processes = count_processes(len(plan.model_runs), device, jobs) if request else 1
        threads = max(1, torch.get_num_threads() // processes)
        reporter.activity("measuring batch sizes")
        plan = choose_batch_sizes(
            plan, data, store, device, fresh=fresh, threads=threads, say=reporter.detail
        )
        reporter.activity("estimating the time")
        remaining = {
            work.model: work
            for work in estimate_remaining(plan, data, store, device, fresh=fresh, threads=threads)
        }
        duration = estimate_duration(list(remaining.values()), processes)
        reporter.start(sum(work.seconds for work in remaining.values()), duration)
        left, total = (sum(getattr(work, name) for work in remaining.values()) for name in ("left", "cells"))
        reporter.line(f"{left} cells to do, {total - left} stored already; results in {store.folder}")
        for work in remaining.values():
            if slow := slow_training(work, plan):
                reporter.line(slow)
        runs = {
            (spec.name, seed): ModelRun(
                RunContext(
                    plan=plan,
                    data=data,
                    store=store,
                    device=device,
                    spec=spec,
                    seed=seed,
                    cost=remaining[spec.name].cost,
                    fresh=fresh,
                    reporter=reporter,
                )
            )
            for spec, seed in plan.model_runs
        }

        def evaluated(name: ModelAndSeed, records: Iterable[Record | None], seconds: float) -> None:
            if on_evaluated:
                on_evaluated(*name, [record for record in records if record is not None], seconds)

        elsewhere: list[ModelAndSeed] = []
        if request is not None and device.type == "cpu":
            elsewhere = [(model, seed) for model, seed in runs if seed in remaining[model].seconds_by_seed]
            request = dataclasses.replace(request, batch_sizes=plan.batch_sizes, networks=plan.networks)
            processes = count_processes(len(elsewhere), device, jobs)
            tasks = [_job(runs[name].context, request, processes) for name in elsewhere]
            for done in run_in_processes(tasks, store, reporter, processes=processes):
                name = (done.job.model, done.job.seed)
                requested.add(name, done.keys)
                result.add(done.summary)
                runs[name].context.can_be_timed = not done.died
                evaluated(name, map(store.get, done.cells), done.seconds)
        for name in [name for name in runs if name not in elsewhere]:
            began = time.perf_counter()
            cells = runs[name].evaluate()
            requested.add(name, [cell.key() for cell in cells])
            if runs[name].context.summary.done:
                evaluated(name, map(store.get, cells), time.perf_counter() - began)
        for name, run in runs.items():
            requested.add(name, [cell.key() for cell in run.time()])
            result.add(run.context.summary)
            if fresh:
                _compare(store, *requested.before_and_now(name), reporter)
        if plan.preset.transfer:
            result.add(_transfer(plan, data, store, fresh, reporter))
        result.damages += store.clear()  # what this run superseded: a training, by what was asked after it
    return result


def _discard_changed(plan: Plan, data: Data, store: Store, reporter: Reporter) -> None:
    """Drop the trainings that read files which have changed since, and all that was asked of them."""
    for spec, seed in plan.model_runs:
        training = store.get(training_cell(plan, spec, seed, data))
        changed = changed_since(training, spec)
        if training is not None and changed:
            store.discard(training)
            reporter.line(f"{spec.name} seed {seed} · {changed}: it is trained and attacked anew")


def _transfer(plan: Plan, data: Data, store: Store, fresh: bool, reporter: Reporter) -> RunSummary:
    """Replay the stored examples of each model on the others; having none is no failure of a run."""
    reporter.activity("transfer between models")
    datasets = {data.name: data.to(torch.device("cpu"))}
    try:
        done = replay_all(store, specs=plan.specs, datasets=datasets, fresh=fresh, say=reporter.detail)
    except RobustodeError as error:
        reporter.line(f"no transfer: {error}")
        return RunSummary()
    for note in done.notes:
        reporter.line(note)
    return done


def _job(run: RunContext, request: RunRequest, processes: int) -> ModelRunJob:
    return ModelRunJob(
        request=request,
        model=run.spec.name,
        seed=run.seed,
        out=run.store.folder,
        fresh=run.fresh,
        cost=run.cost,
        threads=max(1, torch.get_num_threads() // processes),
        processes=processes,
    )


class _RequestedCells:
    """Keys of the cells requested of each model and seed, in ``plan.json`` with those of earlier runs."""

    def __init__(self, plan: Plan, data: Data, store: Store) -> None:
        self._store, self._dataset = store, data.name
        earlier = stated_headline(store.folder)
        if earlier is None:
            store.set_aside("plan.json")
            earlier = Headline()
        others = {n: f for n, f in earlier.files.items() if n not in {spec.name for spec in plan.specs}}
        files = {**others, **_files_of(plan, store)}
        self._headline = dataclasses.replace(plan.headline(), cells=earlier.cells, files=files)
        self._before = dict(self._headline.cells)
        self._now: dict[ModelAndSeed, list[str]] = {}
        self._headline.write(store.folder)

    def add(self, name: ModelAndSeed, keys: Sequence[str]) -> None:
        """Add cells of `name`."""
        self._now[name] = [*self._now.get(name, ()), *keys]
        cells = {**self._headline.cells, self._key(name): self._now[name]}
        self._headline = dataclasses.replace(self._headline, cells=cells)
        self._headline.write(self._store.folder)

    def before_and_now(self, name: ModelAndSeed) -> tuple[Sequence[str], Sequence[str]]:
        """The keys of the cells of `name` before this run, and in it."""
        return self._before.get(self._key(name), ()), self._now[name]

    def _key(self, name: ModelAndSeed) -> str:
        return f"{self._dataset}/{name[0]}/{name[1]}"


def _files_of(plan: Plan, store: Store) -> dict[str, ModelFile]:
    """Where the models that come from files lie, so that later commands find them by themselves."""
    found = {}
    for spec in plan.specs:
        if spec.file and spec.folder:
            name, _, factory = spec.file.rpartition(":")
            found[spec.name] = ModelFile.of(spec.folder / name, factory, store.folder)
    return found


def _compare(store: Store, old: Sequence[str], new: Sequence[str], reporter: Reporter) -> None:
    """Show how the accuracies of a repeated training differ from the stored ones."""

    def accuracies(keys: Sequence[str]) -> dict[str, float]:
        wanted = set(keys)
        records = [r for r in store.load()[0] if r.cell.key() in wanted and r.cell.kind == "accuracy"]
        return {r.cell.label(): r.accuracy for r in records if r.status == "ok"}

    before, now = accuracies(old), accuracies(new)
    for label in sorted(before.keys() & now.keys()):
        change = 100 * (now[label] - before[label])
        reporter.line(f"{label}: {now[label]:.1%}, stored {before[label]:.1%} ({change:+.1f} points)")
