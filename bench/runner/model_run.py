"""One model and one training seed: its weights, then each of its cells; what fails is stored and named."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..._errors import CheckpointError, ModelFailure, RobustodeError, one_line
from ...attacks.core.modes import training_mode
from ...models import ModelSpec
from ..audits.sheet import MARKS
from ..config.cells import training_cell
from ..config.plan import Plan
from ..data import Data
from ..evaluation.accuracy import failed
from ..records.checkpoint import Checkpoint, load_state, load_tensors, partial_path, stored_checkpoint
from ..records.held_out import HELD_OUT, why_not_trained
from ..records.record import Cell, Record
from ..records.store import Store
from ..runtime.device import CPU, environment
from ..runtime.foreign_code import foreign_code, source_of
from ..runtime.progress import Quiet, Reporter
from ..runtime.time_limit import time_limit
from ..throughput.machine_load import BUSY
from ..training.check_statements import FEW_IMAGES, check_statements
from ..training.load_trained import check_answers, rebuilt_model
from ..training.provenance import (
    environment_of,
    flow_implementations,
    solver_names,
    summary_line,
    training_record,
)
from ..training.train import build_model, train
from .cell_run import CellRunner
from .cost_estimate import Cost
from .example_selection import ExampleSelection
from .first_questions import with_answers
from .schedule import cells_of
from .taken_names import place_of

_ADVICE = " (time_limit in the preset)"


@dataclass(kw_only=True)
class RunSummary:
    """Cells done, cells skipped because they were stored, and what failed, a line each."""

    done: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, other: RunSummary) -> None:
        """Count what another part of the run did."""
        self.done += other.done
        self.skipped += other.skipped
        self.failures += other.failures


class ModelRun:
    """All work on one model and one training seed of a plan.

    Parameters
    ----------
    cost
        Estimated seconds per query, the unit of progress.
    fresh
        Do everything again, stored or not.
    processes
        How many processes of this run work at once, this one included.
    on_start
        Called with the cells that are begun together, before they are: one, or a threat's strengths.
    already_begun
        Keys of cells that are left as they are stored, failed or not, and not counted: an earlier process of
        this run began them.

    Attributes
    ----------
    summary
        What has been done so far.
    examples
        Which examples are stored.
    can_be_timed
        Whether it may be timed in this process; False for a model at which another process died.
    """

    def __init__(
        self,
        plan: Plan,
        data: Data,
        store: Store,
        device: torch.device,
        spec: ModelSpec,
        seed: int,
        cost: Cost,
        *,
        fresh: bool = False,
        reporter: Reporter | None = None,
        processes: int = 1,
        on_start: Callable[[list[Cell]], None] = lambda cells: None,
        already_begun: frozenset[str] = frozenset(),
    ) -> None:
        self.plan, self.data, self.store, self.device = plan, data, store, device
        self.spec, self.seed, self.cost, self.fresh = spec, seed, cost, fresh
        self.reporter, self.on_start, self.already_begun = reporter or Quiet(), on_start, already_begun
        self.processes = processes
        self.training = training_cell(plan, spec, seed, data)
        self.summary, self.can_be_timed = RunSummary(), True
        self.examples = ExampleSelection(plan, data, store, on_gpu=device.type == "cuda")
        self._cell_runner = CellRunner(plan, data, device, spec)

    def evaluate(self) -> list[Cell]:
        """Train, or load, and do every cell but timings; all of these cells, stored already or not."""
        with foreign_code(source_of(self.spec.build), seed=self.seed):
            trained = self._weights()
            if trained is None:
                return [self.training]
            model, checkpoint = trained
            return [self.training, *self._curves(model, checkpoint, timings=False)]

    def time(self) -> list[Cell]:
        """Do the timings, on the weights that `evaluate` stored; their cells, none where training failed."""
        stored, path = self.store.get(self.training), self.store.checkpoint_path(self.training)
        if (
            self.plan.preset.throughput is None
            or stored is None
            or stored.status != "ok"
            or not self.can_be_timed
        ):
            return []
        with foreign_code(source_of(self.spec.build), seed=self.seed):
            try:
                checkpoint = stored_checkpoint(self.store, self.training)
                if checkpoint is None:
                    raise CheckpointError(f"{path} is gone: run again to train it again")
                model = build_model(self.spec.build, self.data, self.plan.arguments(self.spec), self.seed)
                self._load(model)
            except Exception as error:
                reason = f"{type(error).__name__}: {one_line(error)}"
                line = f"{self.spec.name} seed {self.seed} · timings: {reason}"
                self.summary.failures.append(line)
                self.reporter.line(f"failed: {line}")
                return []
            return self._curves(model, checkpoint, timings=True)

    def _curves(self, model: nn.Module, checkpoint: Checkpoint, *, timings: bool) -> list[Cell]:
        solver = solver_names(model, self.data.train.images)
        cells = cells_of(self.plan, self.training, checkpoint.sha256, self.data, self.device, solver)[1:]
        cells = [cell for cell in cells if (cell.kind == "throughput") is timings]
        for (_, threat), curve in itertools.groupby(cells, key=lambda cell: (cell.kind, cell.threat)):
            new = self._grid(list(curve), model)
            if new:
                self.reporter.detail(f"{self.spec.name} seed {self.seed} · {threat}: {summary_line(new)}")
            if (others := max((r.measures.get("others_load", 0.0) for r in new), default=0.0)) > BUSY:
                self.reporter.detail(
                    f"  other processes used up to {others:.0%} of the machine: this timing is not reliable"
                )
        return cells

    def _weights(self) -> tuple[nn.Module, Checkpoint] | None:
        """The trained model, from its checkpoint or by training; None when that failed."""
        cell, name = self.training, f"{self.spec.name} seed {self.seed}"
        path, work = self.store.checkpoint_path(cell), self.cost.seconds_for(cell, self.plan)
        began, described = time.perf_counter(), environment(self.device, processes=self.processes)
        facts = {"cell": dataclasses.asdict(cell), "environment": described}
        self.reporter.activity(f"{name}: training")
        begun = cell.key() in self.already_begun
        fresh = self.fresh and not begun
        if not begun:
            self.on_start([cell])
        solver, record = None, None
        try:
            with time_limit(self.plan.preset.time_limit.training, f"training {self.spec.name}", _ADVICE):
                model = build_model(self.spec.build, self.data, self.plan.arguments(self.spec), self.seed)
                check_statements(model, self._few_images(CPU))
                solver = solver_names(model, self.data.train.images)
                described["flow"] = flow_implementations(model, self.device)
                checkpoint = None if fresh else stored_checkpoint(self.store, cell)
                if checkpoint:
                    self._load(model)
                    stored = self.store.get(cell)
                    if stored is not None:
                        check_answers(stored, model)
                elif self.plan.pretrained:
                    self.plan.pretrained.check(model)
                    checkpoint = self.plan.pretrained.store(path, facts)
                    self._load(model)
                    record = self._training_record(model, checkpoint)
                else:
                    epochs = int(cell.recipe["epochs"])
                    self.reporter.detail(f"{name} · training, {epochs} epochs")
                    checkpoint, _ = train(
                        model,
                        self.data,
                        self.plan.recipe(self.spec),
                        seed=self.seed,
                        path=path,
                        facts=facts,
                        device=self.device,
                        resume=not fresh,
                        on_batch=self._advance(work, epochs * len(self.data.train)),
                    )
                    check_statements(model, self._few_images(self.device))
                    record = self._training_record(model, checkpoint)
        except Exception as error:
            cells = cells_of(self.plan, cell, None, self.data, self.device, solver)
            self.reporter.advance(sum(self.cost.seconds_for(cell, self.plan) for cell in cells))
            record = failed(cell, error, seconds=time.perf_counter() - began, environment=described)
            if isinstance(error, CheckpointError) and not fresh:
                self.can_be_timed = False
                self._fail(record)  # the stored record of the training still holds
            else:
                self._put(record)
            return None
        if record is None:
            self.summary.skipped += not begun
            stored = self.store.get(cell)
            if not begun and stored is not None and stored.status == "ok" and HELD_OUT not in stored.card:
                self._first_questions(stored, model)  # it was trained by an earlier version
            return model, checkpoint
        self._put(record)
        partial_path(path).unlink(missing_ok=True)
        self._first_questions(record, model)
        scores = record.outcomes.get("validation_accuracy")
        what = "pretrained weights loaded" if scores is None else f"trained: validation {max(scores):.1%}"
        self.reporter.detail(f"{name} · {what}")
        return model, checkpoint

    def _training_record(self, model: nn.Module, checkpoint: Checkpoint) -> Record:
        """The record of a training; raises `ModelFailure` where it does not bring the network back."""
        place = place_of(self.spec, self.store.folder)
        record = training_record(self.training, self.spec, model, self.data, checkpoint, place)
        if "answers" in record.card:
            try:
                rebuilt_model(self.store, record, self.spec)
            except CheckpointError as error:
                raise ModelFailure(str(error)) from None
        return record

    def _first_questions(self, training: Record, model: nn.Module) -> None:
        """Store with a training what is asked of a network before its first number; tell what is amiss."""
        self.on_start([])  # a process that dies here costs no cell
        name = f"{self.spec.name} seed {self.seed}"
        size = self.plan.batch_size(self.spec.name)
        try:
            with time_limit(self.plan.preset.time_limit.cell, f"first questions to {name}", _ADVICE):
                asked = with_answers(training, model, self.data, batch_size=size, device=self.device)
        except RobustodeError:
            return
        self.store.put(asked)
        if reason := why_not_trained(asked):
            self.reporter.line(f"{name} · not trained: {reason}")
        for audit, sentence in asked.card[MARKS].items():
            expected = "expected: " if audit in self.spec.expected_failures else ""
            self.reporter.line(f"{name} · {expected}{audit}: {sentence}")

    def _load(self, model: nn.Module) -> None:
        """Give `model` the stored weights, ready to be asked."""
        path = self.store.checkpoint_path(self.training)
        with training_mode(model):
            load_state(model, load_tensors(path)[0], path)
        model.to(self.device)
        check_statements(model, self._few_images(self.device))

    def _few_images(self, device: torch.device) -> Tensor:
        return self.data.train.images[:FEW_IMAGES].to(device)

    def _grid(self, cells: list[Cell], model: nn.Module) -> list[Record]:
        """Do the cells of one threat that are not stored, at once where the threat can; their records."""
        missing = [cell for cell in cells if not self._stored(cell)]
        if not missing or missing[0].kind != "accuracy" or self._cell_runner.threat(missing[0]).curve is None:
            return [self._cell(cell, model) for cell in missing]
        first, limit = missing[0], len(missing) * self.plan.preset.time_limit.cell
        self.reporter.activity(
            f"{first.label()} … {missing[-1].strength:g}" if missing[1:] else first.label()
        )
        self.on_start(missing)
        began = time.perf_counter()
        described = environment_of(model, self.device, processes=self.processes)
        advance = self._advance(
            sum(self.cost.seconds_for(cell, self.plan) for cell in missing), first.samples
        )
        try:
            with time_limit(limit, first.label(), f"{_ADVICE}, once for each strength"):
                found = self._cell_runner.run_curve(missing, model, described, advance)
        except Exception as error:
            share = (time.perf_counter() - began) / len(missing)
            found = [(failed(cell, error, seconds=share, environment=described), None) for cell in missing]
        records = [self.examples.store(record, breaks) for record, breaks in found]
        for record in records:
            self._put(record)
        return records

    def _stored(self, cell: Cell) -> bool:
        """Whether the record of `cell` is there already; it is counted and remembered then."""
        begun = cell.key() in self.already_begun
        stored = self.store.get(cell) if begun or not self.fresh else None
        if stored is None or (stored.status != "ok" and not begun):
            return False
        if (
            self.examples.wanted(cell)
            and stored.status == "ok"
            and "adversarial" not in stored.card
            and not begun
        ):
            return False  # it was made where another strength was reported
        self.summary.skipped += not begun
        self._remember(stored)
        return True

    def _cell(self, cell: Cell, model: nn.Module) -> Record:
        """Do one cell and store its record."""
        self.reporter.activity(cell.label())
        self.on_start([cell])
        began = time.perf_counter()
        described = environment_of(model, self.device, processes=self.processes)
        advance = self._advance(self.cost.seconds_for(cell, self.plan), cell.samples * cell.draws)
        try:
            with time_limit(self.plan.preset.time_limit.cell, cell.label(), _ADVICE):
                record, breaks = self._cell_runner.run(cell, model, described, advance)
        except Exception as error:
            seconds = time.perf_counter() - began
            record, breaks = failed(cell, error, seconds=seconds, environment=described), None
        record = self.examples.store(record, breaks)
        self._put(record)
        self._remember(record)
        return record

    def _remember(self, record: Record) -> None:
        """Keep what later cells begin with, and whose examples are stored."""
        self._cell_runner.remember(record)
        self.examples.remember(record)

    def _put(self, record: Record) -> None:
        self.store.put(record)
        self.summary.done += 1
        if record.status != "ok":
            self._fail(record)

    def _fail(self, record: Record) -> None:
        line = f"{record.cell.label()}: {record.status}: {record.error}"
        self.summary.failures.append(line)
        self.reporter.line(f"failed: {line}")

    def _advance(self, work: float, samples: int) -> Callable[[int], None]:
        return lambda done: self.reporter.advance(work * done / samples)
