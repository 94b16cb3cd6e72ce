"""The whole benchmark: for every model and seed train, evaluate, time; store each result as it comes.

A cell whose record is stored and sound is not done again, so a run that was stopped, in whatever way,
goes on where it was when the same command is given again.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .._errors import RecordError
from ..models import ModelSpec
from .certify import certify_cell
from .checkpoint import Checkpoint, find_checkpoint, load_state, load_tensors
from .data import Data
from .describe import describe_solver, summary_line, training_record
from .device import environment
from .dynamics import measure_dynamics
from .estimate import Cost
from .evaluate import evaluate_cell, failed
from .headline import Headline
from .limits import time_limit
from .plan import Plan
from .progress import Quiet, Reporter
from .records import Cell, Record
from .smoothing import smooth_cell
from .store import Problem, Store
from .throughput import measure_cell
from .train import History, build_model, fit_normalisation, train
from .work import cells_of, checkpoint_path, look_ahead

_ADVICE = " (time_limit in the preset)"


@dataclass(kw_only=True)
class Outcome:
    """What a run did: cells done, cells skipped because they were stored, and what failed."""

    done: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def run_plan(
    plan: Plan,
    data: Data,
    store: Store,
    *,
    device: torch.device,
    fresh: bool = False,
    reporter: Reporter | None = None,
) -> Outcome:
    """Do every cell of `plan` that is not stored yet (all of them with `fresh`).

    A failure of one model or cell is stored and named, and the rest goes on.
    """
    reporter = reporter or Quiet()
    outcome = Outcome()
    with store.lock():
        _, outcome.problems = store.load()
        store.set_aside(outcome.problems)
        headline = _merged(plan.headline(), store)
        headline.write(store.folder)
        reporter.doing("estimating")
        outlooks = look_ahead(plan, data, store, device, fresh=fresh)
        costs = {outlook.model: outlook.cost for outlook in outlooks}
        reporter.start(sum(outlook.seconds for outlook in outlooks))
        left, total = sum(o.left for o in outlooks), sum(o.cells for o in outlooks)
        reporter.say(f"{left} cells to do, {total - left} stored already; results in {store.folder}")
        for seed, spec in itertools.product(range(plan.seeds), plan.specs):
            keys = _ModelRun(plan, data, store, device, fresh, reporter, outcome, costs[spec.name]).run(
                spec, seed
            )
            if fresh:
                _compare(store, headline.cells.get(f"{data.name}/{spec.name}/{seed}", ()), keys, reporter)
            cells = {**headline.cells, f"{data.name}/{spec.name}/{seed}": keys}
            headline = dataclasses.replace(headline, cells=cells)
            headline.write(store.folder)
    return outcome


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


def _merged(headline: Headline, store: Store) -> Headline:
    """The headline of this run, with the cells that earlier runs of other models asked for."""
    try:
        return dataclasses.replace(headline, cells=Headline.read(store.folder).cells)
    except RecordError:
        return headline


class _ModelRun:
    """One model and one seed: its weights, then its cells."""

    def __init__(
        self,
        plan: Plan,
        data: Data,
        store: Store,
        device: torch.device,
        fresh: bool,
        reporter: Reporter,
        outcome: Outcome,
        cost: Cost,
    ) -> None:
        self.plan, self.data, self.store, self.device = plan, data, store, device
        self.fresh, self.reporter, self.outcome, self.cost = fresh, reporter, outcome, cost

    def run(self, spec: ModelSpec, seed: int) -> list[str]:
        """Do what is not stored; returns the keys of all cells asked for."""
        training = self.plan.training_cell(spec, seed, self.data)
        trained = self._weights(spec, training)
        if trained is None:
            return [training.key()]
        model, checkpoint = trained
        cells = cells_of(
            self.plan, training, checkpoint.sha256, self.data, self.device, describe_solver(model)
        )[1:]
        curves = itertools.groupby(cells, key=lambda cell: (cell.kind, cell.threat))
        for (_, threat), curve in curves:
            records = [self._cell(spec, cell, model) for cell in curve]
            new = [record for record in records if record is not None]
            if new:
                self.reporter.say(f"{spec.name} seed {seed} · {threat}: {summary_line(new)}")
        return [cell.key() for cell in (training, *cells)]

    def _weights(self, spec: ModelSpec, training: Cell) -> tuple[nn.Module, Checkpoint] | None:
        """The trained model, from its checkpoint or by training; None when that failed."""
        path = checkpoint_path(self.store, training)
        work = self.cost.of(training, self.plan)
        began, described = time.perf_counter(), environment(self.device)
        facts = {"cell": dataclasses.asdict(training), "environment": described}
        self.reporter.doing(f"{training.model} seed {training.training_seed}: training")
        history: History | None = None
        solver = None
        try:
            with time_limit(self.plan.preset.time_limit.training, f"training {spec.name}", _ADVICE):
                model = build_model(spec.build, self.data, training.hyperparameters, training.training_seed)
                solver = describe_solver(model)
                checkpoint = None if self.fresh else find_checkpoint(path)
                if checkpoint:
                    load_state(model, load_tensors(path)[0], path)
                    model.to(self.device).eval()
                else:
                    epochs = int(training.recipe["epochs"])
                    self.reporter.say(
                        f"{spec.name} seed {training.training_seed} · training, {epochs} epochs"
                    )
                    advance = self._advance(work, int(training.recipe["epochs"]) * len(self.data.train))
                    checkpoint, history = train(
                        model,
                        self.data,
                        self.plan.recipe(spec),
                        seed=training.training_seed,
                        path=path,
                        facts=facts,
                        device=self.device,
                        resume=not self.fresh,
                        on_batch=advance,
                    )
        except Exception as error:
            cells = cells_of(self.plan, training, None, self.data, self.device, solver)
            self.reporter.advance(sum(self.cost.of(cell, self.plan) for cell in cells))
            self._put(failed(training, error, seconds=time.perf_counter() - began, environment=described))
            return None
        stored = self.store.get(training)
        if history is None and stored is not None and stored.status == "ok":
            self.outcome.skipped += 1
            return model, checkpoint
        record = training_record(training, spec, model, self.data, checkpoint)
        self._put(record)
        accuracy = max(record.outcomes["validation_accuracy"])
        self.reporter.say(f"{spec.name} seed {training.training_seed} · trained: validation {accuracy:.1%}")
        return model, checkpoint

    def _cell(self, spec: ModelSpec, cell: Cell, model: nn.Module) -> Record | None:
        """Do one cell and store its record; None when it was stored already."""
        work = self.cost.of(cell, self.plan)
        stored = None if self.fresh else self.store.get(cell)
        if stored is not None and stored.status == "ok":
            self.outcome.skipped += 1
            return None
        self.reporter.doing(cell.label())
        began, described = time.perf_counter(), environment(self.device)
        advance = self._advance(work, cell.samples * cell.draws)
        common: dict[str, Any] = {
            "num_classes": self.data.num_classes,
            "device": self.device,
            "environment": described,
        }
        try:
            with time_limit(self.plan.preset.time_limit.cell, cell.label(), _ADVICE):
                if cell.kind == "throughput":
                    record = measure_cell(cell, model, self.data.test, **common)
                    advance(cell.samples)
                elif cell.threat == "smoothing":
                    record = smooth_cell(cell, model, self.data.test, on_samples=advance, **common)
                elif cell.kind == "certificate":
                    record = certify_cell(cell, model, self.data.test, **common)
                    advance(cell.samples)
                elif cell.kind == "dynamics":
                    common.pop("num_classes")
                    record = measure_dynamics(
                        cell, model, self._untrained(spec, cell), self.data.test, **common
                    )
                    advance(cell.samples)
                else:
                    threat = next(a.threat for a in self.plan.attacks if a.threat.name == cell.threat)
                    record = evaluate_cell(cell, model, self.data.test, threat, on_samples=advance, **common)
        except Exception as error:
            record = failed(cell, error, seconds=time.perf_counter() - began, environment=described)
        self._put(record)
        return record

    def _untrained(self, spec: ModelSpec, cell: Cell) -> nn.Module:
        """The model as training found it: built from the seed, its normalisation fitted."""
        model = build_model(spec.build, self.data, cell.hyperparameters, cell.training_seed)
        fit_normalisation(model, self.data)
        return model

    def _put(self, record: Record) -> None:
        self.store.put(record)
        self.outcome.done += 1
        if record.status != "ok":
            line = f"{record.cell.label()}: {record.status}: {record.error}"
            self.outcome.failures.append(line)
            self.reporter.say(f"failed: {line}")

    def _advance(self, work: float, units: int) -> Callable[[int], None]:
        return lambda done: self.reporter.advance(work * done / units)
