"""One model and one training seed: its weights, then each of its cells; what fails is stored and named."""

from __future__ import annotations

import itertools
import time

from torch import nn

from ..._errors import one_line
from ..evaluation.accuracy import failed
from ..records.checkpoint import Checkpoint
from ..records.record import Cell, Record
from ..runtime.foreign_code import foreign_code, source_of
from ..runtime.time_limit import time_limit
from ..training.provenance import environment_of, solver_names, summary_line
from .cell_run import CellRunner
from .example_selection import ExampleSelection
from .model_weights import ModelWeights
from .run_context import ADVICE, RunContext
from .schedule import cells_of


class ModelRun:
    """All work on the model and training seed of `context`."""

    def __init__(self, context: RunContext) -> None:
        self.context = context
        plan, data, device = context.plan, context.data, context.device
        self._weights = ModelWeights(context)
        self._examples = ExampleSelection(plan, data, context.store, on_gpu=device.type == "cuda")
        self._cell_runner = CellRunner(plan, data, device, context.spec)

    def evaluate(self) -> list[Cell]:
        """Train, or load, and do every cell but timings; all of these cells, stored already or not."""
        run = self.context
        with foreign_code(source_of(run.spec.build), seed=run.seed):
            trained = self._weights.obtain()
            if trained is None:
                return [run.training]
            model, checkpoint = trained
            return [run.training, *self._curves(model, checkpoint, timings=False)]

    def time(self) -> list[Cell]:
        """Do the timings, on the weights that `evaluate` stored; their cells, none where training failed."""
        run = self.context
        stored = run.store.get(run.training)
        if (
            run.plan.preset.throughput is None
            or stored is None
            or stored.status != "ok"
            or not run.can_be_timed
        ):
            return []
        with foreign_code(source_of(run.spec.build), seed=run.seed):
            try:
                model, checkpoint = self._weights.load()
            except Exception as error:
                run.fail(f"{run.name} · timings: {type(error).__name__}: {one_line(error)}")
                return []
            return self._curves(model, checkpoint, timings=True)

    def _curves(self, model: nn.Module, checkpoint: Checkpoint, *, timings: bool) -> list[Cell]:
        run = self.context
        solver = solver_names(model, run.data.train.images)
        cells = cells_of(run.plan, run.training, checkpoint.sha256, run.data, run.device, solver)[1:]
        cells = [cell for cell in cells if (cell.kind == "throughput") is timings]
        for (_, threat), curve in itertools.groupby(cells, key=lambda cell: (cell.kind, cell.threat)):
            new = self._grid(list(curve), model)
            if new:
                run.reporter.detail(f"{run.name} · {threat}: {summary_line(new)}")
            others = [r.measures.get("others_load", 0.0) for r in new]
            run.summary.others_load = max([run.summary.others_load, *others])
        return cells

    def _grid(self, cells: list[Cell], model: nn.Module) -> list[Record]:
        """Do the cells of one threat that are not stored, at once where the threat can; their records."""
        missing = [cell for cell in cells if not self._stored(cell)]
        if not missing or missing[0].kind != "accuracy" or self._cell_runner.threat(missing[0]).curve is None:
            return [self._cell(cell, model) for cell in missing]
        run, first = self.context, missing[0]
        run.reporter.activity(f"{first.label()} … {missing[-1].strength:g}" if missing[1:] else first.label())
        run.on_start(missing)
        began = time.perf_counter()
        described = environment_of(model, run.device, processes=run.processes)
        advance = run.advance(missing, first.samples)
        try:
            with time_limit(run.limit(missing), first.label(), f"{ADVICE}, once for each strength"):
                found = self._cell_runner.run_curve(missing, model, described, advance, self._examples.wanted)
        except Exception as error:
            share = (time.perf_counter() - began) / len(missing)
            found = [(failed(cell, error, seconds=share, environment=described), None) for cell in missing]
        run.measured(run.seconds_for(missing), time.perf_counter() - began)
        records = [self._examples.store(record, breaks) for record, breaks in found]
        for record in records:
            run.put(record)
        return records

    def _stored(self, cell: Cell) -> bool:
        """Whether the record of `cell` is there already; it is counted and remembered then."""
        run = self.context
        begun = cell.key() in run.already_begun
        stored = run.store.get(cell) if begun or not run.fresh else None
        if stored is None or (stored.status != "ok" and not begun):
            return False
        if (
            self._examples.wanted(cell)
            and stored.status == "ok"
            and "adversarial" not in stored.card
            and not begun
        ):
            return False  # it was made where another strength was reported
        run.summary.skipped += not begun
        self._remember(stored)
        return True

    def _cell(self, cell: Cell, model: nn.Module) -> Record:
        """Do one cell and store its record."""
        run = self.context
        run.reporter.activity(cell.label())
        run.on_start([cell])
        began = time.perf_counter()
        described = environment_of(model, run.device, processes=run.processes)
        advance = run.advance([cell], cell.samples * cell.draws)
        try:
            with time_limit(run.limit([cell]), cell.label(), ADVICE):
                record, breaks = self._cell_runner.run(cell, model, described, advance)
        except Exception as error:
            seconds = time.perf_counter() - began
            record, breaks = failed(cell, error, seconds=seconds, environment=described), None
        if cell.kind != "throughput":
            run.measured(run.seconds_for([cell]), time.perf_counter() - began)
        record = self._examples.store(record, breaks)
        run.put(record)
        self._remember(record)
        return record

    def _remember(self, record: Record) -> None:
        """Keep what later cells begin with, and whose examples are stored."""
        self._cell_runner.remember(record)
        self._examples.remember(record)
