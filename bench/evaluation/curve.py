"""All strengths of one threat in one run: every strength judged for itself, what is broken carried upward."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ...attacks import Threat
from ...attacks.core.cost_log import divided, keeping
from ...attacks.core.frozen_model import frozen
from ..data import Split
from ..records.adversarial_examples import AdversarialExamples
from ..records.record import Cell, Record
from ..runtime.checked_model import CheckedModel
from .accuracy import batches, measured, predict_clean
from .attack_verification import Judge


def evaluate_curve(
    cells: Sequence[Cell],
    model: nn.Module,
    split: Split,
    threat: Threat,
    *,
    num_classes: int,
    device: torch.device,
    environment: Mapping[str, Any],
    clean: np.ndarray | None = None,
    keep: Callable[[Cell, AdversarialExamples], None] | None = None,
    on_samples: Callable[[int], None] = lambda samples: None,
) -> list[Record]:
    """Accuracy under one threat at the strengths of `cells`, a record for each, from one run of the threat.

    Every strength is judged as `evaluate_cell` judges it, and in a curve each break as it would be stored. A
    sample found broken at one strength is broken by the same image at every larger one, so accuracy never
    rises with the strength.

    Parameters
    ----------
    cells
        They differ in their strength alone. Where the threat's grid matters, ``parameters["strengths"]`` and
        ``parameters["reported"]`` say which grid is run, and `cells` which part of it is returned.
    threat
        Has a `curve`; configured with the parameters of the cells.
    clean
        As in `evaluate_cell`.
    keep
        Called with each cell and its broken samples.
    on_samples
        Called with the number of samples after each batch.

    Returns
    -------
    records
        In the order of `cells`. What the run cost is divided: a part of the attack over the strengths it
        served, the predictions of a strength to that strength, the rest equally over the
        ``measures["strengths_in_run"]`` strengths.

    Raises
    ------
    ModelFailure, NonFinite, BudgetViolation
        As in `evaluate_cell`; then no strength has a record.
    """
    started = time.perf_counter()
    first = cells[0]
    split = split.first(first.samples)
    strengths = sorted(first.parameters.get("strengths") or {cell.strength for cell in cells})
    grid = [dataclasses.replace(first, strength=strength) for strength in strengths]
    judges = [Judge(cell, threat, split, stored=True) for cell in grid]
    asked = [0] * len(grid)
    with frozen(model):
        queried = CheckedModel(
            model, num_classes, deferred=device.type != "cpu", largest_batch=first.batch_size
        )
        prediction = predict_clean(queried, split, first.batch_size, device, clean)
        for judge in judges:
            judge.prediction[:] = prediction
        rows = np.flatnonzero(prediction == judges[0].labels)
        on_samples(first.samples - len(rows))
        with keeping(queried.meter) as ledger:
            for batch, images, targets, seeds in batches(split, rows, first, device, pooled=threat.pooled):
                reported = first.parameters.get("reported", ())
                with torch.enable_grad():
                    found = threat.along(queried, images.clone(), targets, strengths, reported, seeds)
                queried.raise_pending()
                broken = np.zeros(len(batch), bool)
                for number, judge in enumerate(judges):
                    before = queried.forwards
                    if number:
                        judge.adopt(judges[number - 1], batch[broken])
                    left = torch.from_numpy(~broken)
                    if not broken.all():
                        judge.take(queried, 0, batch[~broken], found[number][left].detach(), images[left])
                    broken = judge.prediction[0, batch] != judge.labels[batch]
                    asked[number] += queried.forwards - before
                on_samples(len(batch))
    seconds = time.perf_counter() - started
    parts = list(ledger.parts.values())
    rest = [
        divided(queried.forwards - sum(asked) - sum(part.forwards for part in parts), [1] * len(grid)),
        divided(queried.backwards - sum(part.backwards for part in parts), [1] * len(grid)),
    ]
    alone = (seconds - sum(part.seconds for part in parts)) / len(grid)
    records = []
    for cell in cells:
        number, own = strengths.index(cell.strength), ledger.at(cell.strength)
        judge = judges[number]
        if keep is not None:
            keep(cell, judge.breaks())
        records.append(
            Record(
                cell=cell,
                outcomes=judge.outcomes(),
                examples=judge.examples(),
                measures={"strengths_in_run": float(len(grid)), **measured(own)},
                forwards=asked[number] + rest[0][number] + sum(part.forwards for part in own.values()),
                backwards=rest[1][number] + sum(part.backwards for part in own.values()),
                nfe=queried.nfe,
                seconds=alone + sum(part.seconds for part in own.values()),
                environment=environment,
            )
        )
    return records
