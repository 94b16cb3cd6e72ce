"""Runs one cell of a trained model: accuracy, proof, dynamics or timing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ...attacks import Threat
from ...models import ModelSpec
from ..config.plan import Plan
from ..data import Data
from ..evaluation.accuracy import evaluate_cell, seed_of
from ..evaluation.curve import evaluate_curve
from ..evaluation.dynamics import measure_dynamics
from ..evaluation.solver_transfer import evaluate_solver_transfer
from ..proofs.lipschitz import certify_cell
from ..proofs.randomized_smoothing import smooth_cell
from ..records.adversarial_examples import AdversarialExamples
from ..records.predictions import predictions
from ..records.record import Cell, Record
from ..runtime.foreign_code import asking
from ..throughput.measure import measure_cell
from ..training.train import build_model, fit_normalisation


class CellRunner:
    """Runs the cells of one trained model.

    Clean predictions, with which every attack begins, are remembered from cell to cell. Nothing is stored
    here.
    """

    def __init__(self, plan: Plan, data: Data, device: torch.device, spec: ModelSpec) -> None:
        self.plan, self.data, self.device, self.spec = plan, data, device, spec
        self._clean: tuple[int, np.ndarray] | None = None

    def run(
        self, cell: Cell, model: nn.Module, described: Mapping[str, Any], advance: Callable[[int], None]
    ) -> tuple[Record, AdversarialExamples | None]:
        """The record of one cell and, of a bounded attack, what it broke.

        Parameters
        ----------
        described
            The environment, for the record.
        advance
            Called with the samples that are done.
        """
        test, classes = self.data.test, self.data.num_classes
        common: dict[str, Any] = {"device": self.device, "environment": dict(described)}
        if cell.kind == "accuracy":
            breaks: list[AdversarialExamples] = []
            common |= {"clean": self._known(cell), "keep": breaks.append if cell.norm is not None else None}
            threat = self.threat(cell)
            how = evaluate_cell if threat.crafted_on == "model" else evaluate_solver_transfer
            record = how(cell, model, test, threat, num_classes=classes, on_samples=advance, **common)
            return record, breaks[0] if breaks else None
        with asking(model, seed_of(cell)):
            if cell.threat == "smoothing":
                return smooth_cell(cell, model, test, num_classes=classes, on_samples=advance, **common), None
            if cell.kind == "certificate":
                record = certify_cell(cell, model, test, num_classes=classes, **common)
            elif cell.kind == "dynamics":
                record = measure_dynamics(
                    cell, model, self._untrained(cell), test, num_classes=classes, **common
                )
            else:
                record = measure_cell(cell, model, test, num_classes=classes, **common)
        advance(cell.samples)
        return record, None

    def run_curve(
        self,
        cells: Sequence[Cell],
        model: nn.Module,
        described: Mapping[str, Any],
        advance: Callable[[int], None],
        kept: Callable[[Cell], bool],
    ) -> list[tuple[Record, AdversarialExamples | None]]:
        """What `run` returns, of all strengths of one threat in one run; broken samples where `kept`."""
        breaks: dict[str, AdversarialExamples] = {}
        records = evaluate_curve(
            cells,
            model,
            self.data.test,
            self.threat(cells[0]),
            num_classes=self.data.num_classes,
            device=self.device,
            environment=described,
            clean=self._known(cells[0]),
            keep=lambda cell, found: breaks.update({cell.key(): found}),
            kept=kept,
            on_samples=advance,
        )
        return [(record, breaks.get(record.cell.key())) for record in records]

    def threat(self, cell: Cell) -> Threat:
        """The threat of `cell`, as the plan sets it up."""
        return next(a.threat for a in self.plan.attacks if a.threat.name == cell.threat)

    def remember(self, record: Record) -> None:
        """Keep the clean predictions, with which later cells begin."""
        if record.cell.family == "clean" and record.status == "ok":
            labels = self.data.test.first(record.cell.samples).labels.cpu().numpy()
            self._clean = record.cell.batch_size, predictions(record.outcomes, labels)[0]

    def _known(self, cell: Cell) -> np.ndarray | None:
        """Clean predictions of the samples of `cell`, where they were made in the same batches."""
        if self._clean is None:
            return None
        batch_size, prediction = self._clean
        same_batches = len(prediction) == cell.samples or not cell.samples % cell.batch_size
        known = batch_size == cell.batch_size and len(prediction) >= cell.samples and same_batches
        return prediction[: cell.samples] if known else None

    def _untrained(self, cell: Cell) -> nn.Module:
        """The model as training found it: built from the seed, its normalisation fitted."""
        arguments = self.spec.arguments(cell.hyperparameters)
        trained = self.plan.pretrained is None
        model = build_model(self.spec.build, self.data, arguments, cell.training_seed, to_be_trained=trained)
        fit_normalisation(model, self.data)
        return model
