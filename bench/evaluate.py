"""One accuracy cell: perturb, check without trusting the attack, predict. Writes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from .._errors import BudgetViolation, NonFinite, RobustodeError
from ..attacks import BUDGET_TOLERANCE, Threat, distance, violation
from ..attacks._seeds import sample_seeds
from .data import Split
from .queries import QueriedModel, one_line
from .records import Cell, Record, Status

EXAMPLES = 6
"""Samples of each cell whose images are kept for the figures."""


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Eval mode and no parameter gradients for a block; modes and flags restored whatever happens."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    model.requires_grad_(False)
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def evaluate_cell(
    cell: Cell,
    model: nn.Module,
    split: Split,
    threat: Threat,
    *,
    num_classes: int,
    device: torch.device,
    environment: Mapping[str, Any],
    on_samples: Callable[[int], None] = lambda samples: None,
) -> Record:
    """Accuracy of `model` on the first ``cell.samples`` of `split` under one threat at one strength.

    Parameters
    ----------
    threat
        Configured with ``cell.parameters``.
    on_samples
        Called with the number of (draw, sample) pairs after each batch.

    Raises
    ------
    ModelFailure, NonFinite, BudgetViolation
        `failed` turns them into a record; they never become an accuracy.
    """
    started = time.perf_counter()
    split = split.first(cell.samples)
    shape = (cell.draws, cell.samples)
    prediction = np.empty(shape, np.int16)
    norm = np.zeros(shape, np.float32)
    examples: dict[str, np.ndarray] = {}
    with frozen(model):
        queried = QueriedModel(model, num_classes)
        for draw in range(cell.draws):
            for start in range(0, cell.samples, cell.batch_size):
                rows = slice(start, start + cell.batch_size)
                images, labels = split.images[rows].clone().to(device), split.labels[rows].to(device)
                seeds = sample_seeds((cell.attack_seed << 32) | draw, split.indices[rows].tolist())
                perturbed = _perturb(queried, threat, images, labels, cell.strength, seeds)
                _check_budget(perturbed, images, threat, cell.strength)
                prediction[draw, rows] = _predict(queried, perturbed).cpu().numpy()
                if cell.norm is not None and threat.norm is not None:
                    norm[draw, rows] = distance(perturbed, images, threat.norm).cpu().numpy()
                if draw == 0 and start == 0:
                    examples = _examples(perturbed, split, prediction[0])
                on_samples(len(labels))
    outcomes = {"prediction": prediction, "correct": prediction == split.labels.numpy()[None]}
    if cell.norm is not None:
        outcomes["norm"] = norm
    return Record(
        cell=cell,
        outcomes=outcomes,
        examples=examples,
        forwards=queried.forwards,
        backwards=queried.backwards,
        nfe=queried.nfe,
        seconds=time.perf_counter() - started,
        environment=environment,
    )


def failed(cell: Cell, error: Exception, *, seconds: float, environment: Mapping[str, Any]) -> Record:
    """The record of a cell that raised: a status and one line, no outcomes."""
    known = isinstance(error, RobustodeError)
    status = cast(Status, getattr(error, "status", "error") if known else "error")
    line = one_line(error) if known else f"{type(error).__name__}: {one_line(error)}"
    return Record(cell=cell, status=status, error=line, seconds=seconds, environment=environment)


def _perturb(
    model: QueriedModel, threat: Threat, images: Tensor, labels: Tensor, strength: float, seeds: list[int]
) -> Tensor:
    """Perturb a batch; an attack spends nothing on samples that are misclassified as they are."""
    if not threat.needs_gradient or strength == 0:
        with torch.no_grad():
            return threat(model, images, labels, strength, seeds)
    rows = torch.nonzero(_predict(model, images) == labels).flatten()
    perturbed = images.clone()
    if len(rows):
        perturbed[rows] = threat(
            model, images[rows], labels[rows], strength, [seeds[i] for i in rows.tolist()]
        )
    return perturbed


def _predict(model: QueriedModel, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(images)
        return logits.argmax(1)


def _check_budget(perturbed: Tensor, images: Tensor, threat: Threat, strength: float) -> None:
    if perturbed.shape != images.shape:
        raise BudgetViolation(
            f"{threat.name} returned shape {tuple(perturbed.shape)} for {tuple(images.shape)}"
        )
    excess = violation(perturbed, images, strength, threat.norm, threat.box)
    if bool(excess.isinf().any()):
        raise NonFinite(
            f"{threat.name} returned NaN or infinite pixels for {int(excess.isinf().sum())} samples"
        )
    worst = float(excess.max())
    if worst > BUDGET_TOLERANCE * max(1.0, strength):
        box = f"[{threat.box[0]:g}, {threat.box[1]:g}]"
        raise BudgetViolation(
            f"{threat.name} left its budget of {strength:g} or the box {box} by {worst:.3g}"
        )


def _examples(perturbed: Tensor, split: Split, prediction: np.ndarray) -> dict[str, np.ndarray]:
    count = min(EXAMPLES, len(perturbed))
    pixels = (perturbed[:count].cpu() * 255).round().clamp(0, 255).to(torch.uint8)
    return {
        "index": np.asarray(split.indices[:count], np.int64),
        "label": split.labels[:count].numpy(),
        "prediction": prediction[:count].astype(np.int64),
        "image": pixels.numpy(),
    }
