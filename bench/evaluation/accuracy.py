"""One accuracy cell: perturb, check without trusting the attack, predict. Writes nothing."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..._errors import RobustodeError, one_line
from ...attacks import Threat
from ...attacks.core.cost_log import Part, record_costs
from ...attacks.core.frozen_model import frozen as frozen
from ...attacks.core.seeds import Purpose, derive, stream_seeds
from ..data import Split
from ..records.adversarial_examples import AdversarialExamples
from ..records.predictions import NO_ANSWER
from ..records.record import Cell, Record, Status
from ..runtime.checked_model import CheckedModel
from ..runtime.foreign_code import asking, attacking
from .attack_verification import EXAMPLES as EXAMPLES
from .attack_verification import CellVerification, predict
from .deferred_checks import with_deferred_checks

POOL = 10
"""Batches whose correctly classified samples are attacked together, where the threat allows it."""


@with_deferred_checks
def evaluate_cell(
    cell: Cell,
    model: nn.Module,
    split: Split,
    threat: Threat,
    *,
    num_classes: int,
    device: torch.device,
    environment: Mapping[str, Any],
    clean: np.ndarray | None = None,
    keep: Callable[[AdversarialExamples], None] | None = None,
    on_samples: Callable[[int], None] = lambda samples: None,
    deferred: bool = False,
) -> Record:
    """Accuracy of `model` on the first ``cell.samples`` of `split` under one threat at one strength.

    An attack is spent only on samples that are classified correctly as they are, pooled into full batches;
    the others keep their clean prediction.

    Parameters
    ----------
    threat
        Configured with ``cell.parameters``.
    clean
        Predictions on the unperturbed samples, integers (samples,), where they are known already; an attack
        asks for them itself otherwise.
    keep
        Called with the samples that were broken. With it, a perturbation is rounded to the steps of a stored
        one before it is measured and predicted, and a break must survive what `CellVerification` asks of it.
    on_samples
        Called with the number of (draw, sample) pairs after each batch.
    deferred
        See `with_deferred_checks`, which sets it.

    Raises
    ------
    ModelFailure, NonFinite, BudgetViolation
        `failed` turns them into a record; they never become an accuracy.
    """
    started = time.perf_counter()
    split = split.first(cell.samples)
    verification = CellVerification(cell, threat, split, stored=keep is not None)
    rows = np.arange(cell.samples)
    with asking(model, seed_of(cell)), frozen(model):
        queried = query(model, num_classes, cell, clean, deferred=deferred)
        if threat.family not in ("clean", "noise") and cell.strength > 0:
            verification.prediction[:] = predict_clean(queried, split, cell.batch_size, device, clean)
            rows = np.flatnonzero(verification.prediction[0] == verification.labels)
        with record_costs(queried.meter) as costs:
            for draw in range(cell.draws):
                if len(rows) < cell.samples:
                    on_samples(cell.samples - len(rows))
                for batch, images, targets, seeds in batches(
                    split, rows, cell, device, draw, pooled=threat.pooled
                ):
                    verification.verify_batch(
                        queried,
                        draw,
                        batch,
                        _perturb(queried, threat, images.clone(), targets, cell.strength, seeds),
                        images,
                    )  # no name holds what is perturbed while the next batch is
                    on_samples(len(batch))
                verification.finish(queried)
    if keep is not None:
        keep(verification.breaks())
    return Record(
        cell=cell,
        outcomes=verification.outcomes(),
        examples=verification.examples(),
        measures={
            **verification.measures(),
            **part_measures(costs.at(cell.strength)),
            **gradient_measures(queried),
        },
        forwards=queried.forwards,
        backwards=queried.backwards,
        nfe=queried.nfe,
        seconds=time.perf_counter() - started,
        environment=environment,
    )


def seed_of(cell: Cell) -> int:
    """The seed of what the model itself draws in `cell`: one for all strengths of a threat."""
    return derive([cell.attack_seed], "cell", cell.kind, cell.threat)[0]


def failed(cell: Cell, error: Exception, *, seconds: float, environment: Mapping[str, Any]) -> Record:
    """The record of a cell that raised: a status and one line, no outcomes."""
    known = isinstance(error, RobustodeError)
    status = cast(Status, getattr(error, "status", "error") if known else "error")
    line = one_line(error) if known else f"{type(error).__name__}: {one_line(error)}"
    return Record(cell=cell, status=status, error=line, seconds=seconds, environment=environment)


def batches(
    split: Split, rows: np.ndarray, cell: Cell, device: torch.device, draw: int = 0, *, pooled: bool = False
) -> Iterator[tuple[np.ndarray, Tensor, Tensor, list[int]]]:
    """The samples `rows` of `split`: their numbers, images and labels on the device, and seeds.

    They come in full batches, and where they may be `pooled` in `POOL` batches at a time, so that memory
    stays bounded.
    """
    size = cell.batch_size * (POOL if pooled else 1)
    order = torch.from_numpy(rows).to(split.images.device).split(size)
    for start, here in zip(range(0, len(rows), size), order, strict=False):
        batch = rows[start : start + size]
        seeds = stream_seeds(Purpose.EVALUATION, cell.attack_seed, draw, split.indices[batch].tolist())
        yield batch, split.images[here].to(device), split.labels[here].to(device), seeds


def query(
    model: nn.Module, num_classes: int, cell: Cell, clean: np.ndarray | None, *, deferred: bool
) -> CheckedModel:
    """`model` as an attack of `cell` asks it; `clean` are the predictions that it has made, if it has."""
    queried = CheckedModel(
        model, num_classes, deferred=deferred, largest_batch=cell.batch_size, per_sample=True
    )
    queried.has_answered = clean is not None and bool((clean != NO_ANSWER).any())
    return queried


def predict_clean(
    model: CheckedModel, split: Split, batch_size: int, device: torch.device, known: np.ndarray | None
) -> np.ndarray:
    """Predictions on the unperturbed samples, integers (samples,): `known`, or asked for."""
    if known is not None:
        return known
    found = [predict(model, images.clone().to(device)) for images in split.images.split(batch_size)]
    model.raise_pending()
    return torch.cat(found).cpu().numpy()


def part_measures(parts: Mapping[str, Part]) -> dict[str, float]:
    """The parts of an attack as measures of a record: ``part.NAME.samples``, ``part.NAME.seconds``, ..."""
    return {
        f"part.{name}.{what}": float(value)
        for name, part in parts.items()
        for what, value in dataclasses.asdict(part).items()
    }


def gradient_measures(model: CheckedModel) -> dict[str, float]:
    """How often a gradient was asked for and was none, where that happened, as a measure of a record."""
    count = model.nonfinite_gradients
    return {"nonfinite_gradients": float(count)} if count else {}


def _perturb(
    model: CheckedModel, threat: Threat, images: Tensor, labels: Tensor, strength: float, seeds: list[int]
) -> Tensor:
    with (
        attacking(threat.craft),
        torch.set_grad_enabled(threat.needs_gradient and strength > 0),
    ):
        perturbed = threat(model, images, labels, strength, seeds)
    return perturbed.detach()
