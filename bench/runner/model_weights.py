"""The weights of one model and training seed: stored before, pretrained, or trained now."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..._errors import CheckpointError, ModelFailure
from ...attacks.core.modes import training_mode
from ..data import default_root
from ..evaluation.accuracy import failed
from ..records.checkpoint import Checkpoint, load_state, load_tensors, partial_path, stored_checkpoint
from ..records.held_out import HELD_OUT
from ..records.record import Record
from ..runtime.device import CPU, environment
from ..runtime.opened_files import FilesRead
from ..runtime.progress import duration
from ..runtime.time_limit import Limit, time_limit
from ..training.check_statements import FEW_IMAGES, check_statements
from ..training.load_trained import check_answers, rebuilt_model
from ..training.provenance import flow_implementations, solver_names, training_record
from ..training.train import train
from .first_questions import ask_first_questions
from .run_context import ADVICE, RunContext
from .run_summary import failure_line
from .schedule import cells_of
from .taken_names import place_of


class ModelWeights:
    """Obtains the weights of the model of a run, and stores the record of its training.

    What the model states is compared with what it computes, before it is trained and with its weights.
    """

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self._path = run.store.checkpoint_path(run.training)
        self._files = FilesRead(run.spec, (run.store.folder.resolve(), default_root().resolve()))
        self._solver: str | None = None
        self._limit = Limit(run.limit([run.training]), "")

    def obtain(self) -> tuple[nn.Module, Checkpoint] | None:
        """Return the trained model, from its checkpoint or by training; None when that failed."""
        run, cell = self._run, self._run.training
        began, described = time.perf_counter(), environment(run.device, processes=run.processes)
        run.reporter.activity(f"{run.name}: training")
        begun = cell.key() in run.already_begun
        fresh = run.fresh and not begun
        if not begun:
            run.on_start([cell])
        try:
            with time_limit(run.limit([cell]), f"training {run.spec.name}", self._advice()) as self._limit:
                model, checkpoint, record = self._make(described, fresh=fresh)
        except Exception as error:
            cells = cells_of(run.plan, cell, None, run.data, run.device, self._solver)
            run.reporter.advance(run.seconds_for(cells))
            record = failed(cell, error, seconds=time.perf_counter() - began, environment=described)
            if isinstance(error, CheckpointError) and not fresh:
                run.can_be_timed = False
                run.fail(failure_line(record))  # the stored record of the training still holds
            else:
                run.put(record)
            return None
        if record is None:
            run.summary.skipped += not begun
            stored = run.store.get(cell)
            if not begun and stored is not None and stored.status == "ok" and HELD_OUT not in stored.card:
                ask_first_questions(run, stored, model)  # it was trained by an earlier version
            return model, checkpoint
        run.put(record)
        partial_path(self._path).unlink(missing_ok=True)
        ask_first_questions(run, record, model)
        scores = record.outcomes.get("validation_accuracy")
        what = "pretrained weights loaded" if scores is None else f"trained: validation {max(scores):.1%}"
        run.reporter.detail(f"{run.name} · {what}")
        return model, checkpoint

    def load(self) -> tuple[nn.Module, Checkpoint]:
        """Return the model with the weights that `obtain` stored; raises `CheckpointError` without them."""
        checkpoint = stored_checkpoint(self._run.store, self._run.training)
        if checkpoint is None:
            raise CheckpointError(f"{self._path} is gone: run again to train it again")
        model = self._run.build()
        self._load_state(model)
        return model, checkpoint

    def _make(self, described: dict[str, Any], *, fresh: bool) -> tuple[nn.Module, Checkpoint, Record | None]:
        """The model with its weights, and the record of its training where none is stored.

        `described` is the environment, in which the implementation of the flow is noted.
        """
        run = self._run
        model = run.build()
        self._check_statements(model, CPU)
        self._solver = solver_names(model, run.data.train.images)
        described["flow"] = flow_implementations(model, run.device)
        checkpoint = None if fresh else stored_checkpoint(run.store, run.training)
        if checkpoint:
            self._load_state(model)
            stored = run.store.get(run.training)
            if stored is not None:
                check_answers(stored, model)
            return model, checkpoint, None
        facts = {"cell": dataclasses.asdict(run.training), "environment": described}
        if run.plan.pretrained:
            checkpoint = run.plan.pretrained.store(self._path, facts, model)
            self._load_state(model)
        else:
            checkpoint = self._train(model, facts, resume=not fresh)
        return model, checkpoint, self._training_record(model, checkpoint)

    def _train(self, model: nn.Module, facts: dict[str, Any], *, resume: bool) -> Checkpoint:
        run, epochs = self._run, int(self._run.training.recipe["epochs"])
        run.reporter.detail(f"{run.name} · training, {epochs} epochs")
        checkpoint, _ = train(
            model,
            run.data,
            run.plan.recipe(run.spec),
            seed=run.seed,
            path=self._path,
            facts=facts,
            device=run.device,
            resume=resume,
            files=self._files,
            on_epoch=self._follow(epochs),
            on_batch=run.advance([run.training], epochs * len(run.data.train)),
        )
        self._check_statements(model, run.device)
        return checkpoint

    def _follow(self, epochs: int) -> Callable[[int, float], None]:
        """What is called after each epoch: the limit follows what is measured, where nobody has set it.

        A solver that chooses its steps takes more and more of them as its network is trained, so the last
        epoch counts.
        """
        run, begun = self._run, time.monotonic()
        estimate = run.seconds_for([run.training]) / epochs

        def follow(done: int, seconds: float) -> None:
            run.measured(estimate, seconds)
            whole = time.monotonic() - begun + (epochs - done) * seconds
            if done == epochs or run.plan.allowed(self._limit.seconds, whole / 2) <= self._limit.seconds:
                return
            self._limit.set(run.plan.allowed(self._limit.seconds, whole))
            run.reporter.line(
                f"{run.name} · training takes longer than was estimated: epoch {done} of {epochs} took "
                f"{duration(seconds)}, all of it about {duration(whole)}; it may take "
                f"{duration(self._limit.seconds)}"
            )

        return follow

    def _advice(self) -> str:
        again = "" if self._run.plan.pretrained else "; the same command goes on after the last whole epoch"
        return f"{ADVICE}{again}"

    def _training_record(self, model: nn.Module, checkpoint: Checkpoint) -> Record:
        """The record of a training; raises `ModelFailure` where it does not bring the network back."""
        run = self._run
        place = place_of(run.spec, run.store.folder)
        record = training_record(run.training, run.spec, model, run.data, checkpoint, place)
        if "answers" in record.card:
            try:
                rebuilt_model(run.store, record, run.spec)
            except CheckpointError as error:
                raise ModelFailure(str(error)) from None
        files = self._files.so_far()
        return dataclasses.replace(record, card={**record.card, "files": files}) if files else record

    def _load_state(self, model: nn.Module) -> None:
        """Give `model` the stored weights, ready to be asked."""
        with training_mode(model):
            load_state(model, load_tensors(self._path)[0], self._path)
        model.to(self._run.device)
        self._check_statements(model, self._run.device)

    def _check_statements(self, model: nn.Module, device: torch.device) -> None:
        check_statements(model, self._run.data.train.images[:FEW_IMAGES].to(device))
