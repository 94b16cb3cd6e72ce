"""All strengths of one threat in one run; a sample broken at one strength is broken at every larger one."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ...attacks import Threat
from ...attacks.core.cost_log import record_costs, split_in_proportion
from ...attacks.core.frozen_model import frozen
from ..data import Split
from ..records.adversarial_examples import AdversarialExamples
from ..records.record import Cell, Record
from ..runtime.foreign_code import asking, attacking
from .accuracy import batches, gradient_measures, part_measures, predict_clean, query, seed_of
from .attack_verification import CellVerification
from .deferred_checks import with_deferred_checks


@with_deferred_checks
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
    kept: Callable[[Cell], bool] = lambda cell: True,
    on_samples: Callable[[int], None] = lambda samples: None,
    deferred: bool = False,
) -> list[Record]:
    """Accuracy under one threat at the strengths of `cells`, a record for each, from one run of the threat.

    Every strength is checked as by `evaluate_cell`, each adversarial example as it would be stored. A
    sample found broken at one strength is broken by the same image at every larger one, so accuracy never
    rises with the strength.

    Parameters
    ----------
    cells
        They differ in their strength alone. Where the threat's grid matters, ``parameters["strengths"]`` and
        ``parameters["reported"]`` say which grid is run, and `cells` which part of it is returned.
    threat
        Has a `curve`; configured with the parameters of the cells.
    clean, deferred
        As in `evaluate_cell`.
    keep
        Called with each cell and its broken samples.
    kept
        Of which cells `keep` wants broken samples; those of the others are dropped after each batch.
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
    verifications = [CellVerification(cell, threat, split, stored=True) for cell in grid]
    asked = [0] * len(grid)
    with asking(model, seed_of(first)), frozen(model):
        queried = query(model, num_classes, first, clean, deferred=deferred)
        prediction = predict_clean(queried, split, first.batch_size, device, clean)
        for verification in verifications:
            verification.prediction[:] = prediction
        rows = np.flatnonzero(prediction == verifications[0].labels)
        on_samples(first.samples - len(rows))
        with record_costs(queried.meter) as costs:
            for batch, images, targets, seeds in batches(split, rows, first, device, pooled=threat.pooled):
                reported = first.parameters.get("reported", ())
                with attacking(threat.curve), torch.enable_grad():
                    found = threat.perturb_at_strengths(
                        queried, images.clone(), targets, strengths, reported, seeds
                    )
                queried.raise_pending()
                broken = np.zeros(len(batch), bool)
                for number, verification in enumerate(verifications):
                    before = queried.forwards
                    if number:
                        verification.copy_broken(verifications[number - 1], batch[broken])
                    left = torch.from_numpy(~broken)
                    if not broken.all():
                        verification.verify_batch(
                            queried, 0, batch[~broken], found[number][left].detach(), images[left]
                        )
                    broken = verification.prediction[0, batch] != verification.labels[batch]
                    asked[number] += queried.forwards - before
                for cell, verification in zip(grid, verifications, strict=True):
                    if keep is None or not kept(cell):
                        verification.forget_breaks()
                on_samples(len(batch))
    seconds = time.perf_counter() - started
    parts = list(costs.parts.values())
    rest = [
        split_in_proportion(
            queried.forwards - sum(asked) - sum(part.forwards for part in parts), [1] * len(grid)
        ),
        split_in_proportion(queried.backwards - sum(part.backwards for part in parts), [1] * len(grid)),
    ]
    alone = (seconds - sum(part.seconds for part in parts)) / len(grid)
    records = []
    for cell in cells:
        number, own = strengths.index(cell.strength), costs.at(cell.strength)
        verification = verifications[number]
        if keep is not None and kept(cell):
            keep(cell, verification.breaks())
        records.append(
            Record(
                cell=cell,
                outcomes=verification.outcomes(),
                examples=verification.examples(),
                measures={
                    "strengths_in_run": float(len(grid)),
                    **verification.measures(),
                    **part_measures(own),
                    **gradient_measures(queried),
                },
                forwards=asked[number] + rest[0][number] + sum(part.forwards for part in own.values()),
                backwards=rest[1][number] + sum(part.backwards for part in own.values()),
                nfe=queried.nfe,
                seconds=alone + sum(part.seconds for part in own.values()),
                environment=environment,
            )
        )
    return records
