"""One accuracy cell: perturb, check without trusting the attack, predict. Writes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from .._errors import BudgetViolation, NonFinite, RobustodeError
from ..attacks import BUDGET_TOLERANCE, Threat, distance, violation
from ..attacks._frozen import frozen as frozen
from ..attacks._seeds import sample_seeds
from .breaks import Breaks, add_steps, whole_steps
from .data import Split
from .queries import QueriedModel, one_line
from .records import Cell, Record, Status

EXAMPLES = 6
"""Samples of each cell whose images are kept for the figures."""


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
    keep: Callable[[Breaks], None] | None = None,
    on_samples: Callable[[int], None] = lambda samples: None,
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
        one before it is measured and predicted, and a break must also survive alone, at batch size 1.
    on_samples
        Called with the number of (draw, sample) pairs after each batch.

    Raises
    ------
    ModelFailure, NonFinite, BudgetViolation
        `failed` turns them into a record; they never become an accuracy.
    """
    started = time.perf_counter()
    split = split.first(cell.samples)
    labels = split.labels.cpu().numpy()
    prediction = np.empty((cell.draws, cell.samples), np.int16)
    norm = np.zeros((cell.draws, cell.samples), np.float32)
    shown = split.images[:EXAMPLES].clone()
    first: list[np.ndarray] = []
    perturbations: list[Tensor] = []
    rows = np.arange(cell.samples)
    kept: dict[int, np.ndarray] = {}
    with frozen(model):
        queried = QueriedModel(model, num_classes, patient=device.type != "cpu")
        if threat.family not in ("clean", "noise") and cell.strength > 0:
            prediction[:] = _clean(queried, split, cell.batch_size, device) if clean is None else clean
            rows = np.flatnonzero(prediction[0] == labels)
        for draw in range(cell.draws):
            if len(rows) < cell.samples:
                on_samples(cell.samples - len(rows))
            order = torch.from_numpy(rows).to(split.images.device)
            predicted, norms = _Column(prediction[draw]), _Column(norm[draw])
            batches = _batches(rows, cell.batch_size)
            for batch, here in zip(batches, order.split(cell.batch_size), strict=False):
                images, targets = split.images[here].to(device), split.labels[here].to(device)
                seeds = sample_seeds((cell.attack_seed << 32) | draw, split.indices[batch].tolist())
                perturbed = _perturb(queried, threat, images.clone(), targets, cell.strength, seeds)
                _check_budget(queried, perturbed, images, threat, cell.strength)
                if keep is not None:
                    perturbed, steps = _as_stored(perturbed, images)
                found = _predict(queried, perturbed)
                if keep is not None:
                    queried.settle()
                    found = found.cpu()
                    for i in np.flatnonzero(found.numpy() != labels[batch]):
                        found[i] = _predict(queried, perturbed[i : i + 1]).cpu()[0]
                        if found[i] != labels[batch[i]]:
                            kept.setdefault(int(batch[i]), steps[i])
                predicted.put(batch, found)
                if cell.norm is not None and threat.norm is not None:
                    norms.put(batch, distance(perturbed, images, threat.norm))
                if draw == 0 and batch[0] < EXAMPLES:
                    first.append(batch[batch < EXAMPLES])
                    perturbations.append(perturbed[: len(first[-1])].clone())
                on_samples(len(batch))
            queried.settle()
            predicted.settle()
            norms.settle()
    if first:
        shown[np.concatenate(first)] = torch.cat(perturbations).to(shown)
    if keep is not None:
        broken = sorted(kept)
        none = np.zeros((0, *split.images.shape[1:]), np.int32)
        keep(
            Breaks(
                index=np.asarray(split.indices[broken], np.int64),
                label=labels[broken],
                steps=np.stack([kept[row] for row in broken]) if broken else none,
            )
        )
    outcomes = {"prediction": prediction, "correct": prediction == labels[None]}
    if cell.norm is not None:
        outcomes["norm"] = norm
    return Record(
        cell=cell,
        outcomes=outcomes,
        examples=_examples(shown, split, prediction[0]),
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


def _batches(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _clean(model: QueriedModel, split: Split, batch_size: int, device: torch.device) -> np.ndarray:
    prediction = np.empty(len(split), np.int16)
    predicted = _Column(prediction)
    batches = _batches(np.arange(len(split)), batch_size)
    for batch, images in zip(batches, split.images.split(batch_size), strict=True):
        predicted.put(batch, _predict(model, images.clone().to(device)))
    model.settle()
    predicted.settle()
    return prediction


def _perturb(
    model: QueriedModel, threat: Threat, images: Tensor, labels: Tensor, strength: float, seeds: list[int]
) -> Tensor:
    with torch.set_grad_enabled(threat.needs_gradient and strength > 0):
        perturbed = threat(model, images, labels, strength, seeds)
    return perturbed.detach()


def _predict(model: QueriedModel, images: Tensor) -> Tensor:
    with torch.no_grad():
        prediction: Tensor = model(images).argmax(1)
    return prediction


class _Column:
    """What batches put into `array`; what lies on a GPU is fetched at once, when settled."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self._rows: list[np.ndarray] = []
        self._values: list[Tensor] = []

    def put(self, rows: np.ndarray, values: Tensor) -> None:
        if values.device.type == "cpu":
            self._array[rows] = values.numpy()
        else:
            self._rows.append(rows)
            self._values.append(values)

    def settle(self) -> None:
        if self._rows:
            self._array[np.concatenate(self._rows)] = torch.cat(self._values).cpu().numpy()
            self._rows, self._values = [], []


def _as_stored(perturbed: Tensor, images: Tensor) -> tuple[Tensor, np.ndarray]:
    """The images that a stored perturbation gives back, and its steps."""
    clean = images.cpu().numpy()
    steps = whole_steps(perturbed.cpu().numpy(), clean)
    return torch.from_numpy(add_steps(clean, steps)).to(images), steps


def _check_budget(
    model: QueriedModel, perturbed: Tensor, images: Tensor, threat: Threat, strength: float
) -> None:
    if perturbed.shape != images.shape:
        model.settle()
        raise BudgetViolation(
            f"{threat.name} returned shape {tuple(perturbed.shape)} for {tuple(images.shape)}"
        )
    excess = violation(perturbed, images, strength, threat.norm, threat.box)
    allowed = BUDGET_TOLERANCE * max(1.0, strength)
    model.doubt(excess <= allowed, lambda: _refuse(excess, threat, strength))


def _refuse(excess: Tensor, threat: Threat, strength: float) -> None:
    if bool(excess.isinf().any()):
        raise NonFinite(
            f"{threat.name} returned NaN or infinite pixels for {int(excess.isinf().sum())} samples"
        )
    box = f"[{threat.box[0]:g}, {threat.box[1]:g}]"
    raise BudgetViolation(
        f"{threat.name} left its budget of {strength:g} or the box {box} by {float(excess.max()):.3g}"
    )


def _examples(shown: Tensor, split: Split, prediction: np.ndarray) -> dict[str, np.ndarray]:
    count = len(shown)
    pixels = (shown.cpu() * 255).round().clamp(0, 255).to(torch.uint8)
    return {
        "index": np.asarray(split.indices[:count], np.int64),
        "label": split.labels[:count].cpu().numpy(),
        "prediction": prediction[:count].astype(np.int64),
        "image": pixels.numpy(),
    }
