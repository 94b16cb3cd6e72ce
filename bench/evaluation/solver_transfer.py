"""One accuracy cell of a threat that works through surrogates: crafted on each, scored on the model."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..._errors import InvalidArgument, ModelFailure, one_line
from ...attacks import Threat
from ..data import Split
from ..records.adversarial_examples import AdversarialExamples
from ..records.predictions import largest_norm, outcomes_of, predictions
from ..records.record import NOT_STORED, Cell, Record
from ..runtime.checked_model import CheckedModel, answered_rows
from ..solvers.changed_model import solved_as_forward, solver_surrogates
from ..solvers.observe import count_nfe
from .accuracy import evaluate_cell

MOST_VALUES = 6_000_000
"""Pixel values times field evaluations whose graph is held at once: 30 MNIST images, 64 steps of rk4."""


class SurrogateModelFailure(ModelFailure):
    """A surrogate that raised or answered NaN: it gives no examples, which says nothing of the model."""


def evaluate_solver_transfer(
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
) -> Record:
    """As `evaluate_cell`, the threat's `craft` being handed `solver_surrogates` of `model` one by one.

    Every surrogate is tried on every sample. A sample is broken by the first whose example breaks `model`.

    Returns
    -------
    Record
        Its measures hold ``surrogate.<name>.accuracy``, that of `model` under the examples of one surrogate,
        or ``surrogate.<name>.left_out`` where the surrogate failed; the card then says how. The queries of
        the surrogates count, those of a surrogate that failed too.

    Raises
    ------
    InvalidArgument
        When no solve of an ODE is seen in `model`.
    SurrogateModelFailure
        When every surrogate failed, so that nothing was tried.
    ModelFailure, NonFinite, BudgetViolation
        As `evaluate_cell`, of the model itself and of the attack.
    """
    started = time.perf_counter()
    batch = split.images[: cell.batch_size].to(device)
    sample = batch[:1]
    with suppress(ModelFailure):  # a model that answers none of them is one for `evaluate_cell`
        sample = batch[answered_rows(model, batch, num_classes)[:1]]
    surrogates = solver_surrogates(model, sample)
    if not surrogates:
        raise InvalidArgument(
            f"{threat.name} needs a model whose solver is seen: this one calls no ODE block, torchdiffeq, "
            "torchdyn or torchode"
        )
    found: list[tuple[Record, AdversarialExamples | None]] = []
    measures: dict[str, float] = {}
    reasons: dict[str, str] = {}
    asked: list[CheckedModel] = []
    for number, (name, surrogate) in enumerate(surrogates.items(), start=1):
        asked.append(
            CheckedModel(
                surrogate,
                num_classes,
                deferred=device.type != "cpu",
                largest_batch=cell.batch_size,
                per_sample=True,
            )
        )
        breaks: list[AdversarialExamples] = []
        try:
            record = evaluate_cell(
                cell,
                model,
                split,
                _handing(threat, asked[-1], count_nfe(surrogate, sample) or 1),
                num_classes=num_classes,
                device=device,
                environment=environment,
                clean=clean,
                keep=None if keep is None else breaks.append,
            )
        except SurrogateModelFailure as error:
            measures[f"surrogate.{name}.left_out"] = 1.0
            reasons[name] = one_line(error)
        else:
            measures[f"surrogate.{name}.accuracy"] = record.accuracy
            found.append((record, breaks[0] if breaks else None))
        total = cell.samples * cell.draws
        on_samples(total * number // len(surrogates) - total * (number - 1) // len(surrogates))
    if not found:
        raise SurrogateModelFailure(
            f"every surrogate failed; {next(iter(reasons))}: {next(iter(reasons.values()))}"
        )
    if keep is not None:
        keep(_first_breaks([breaks for _, breaks in found if breaks is not None]))
    records = [record for record, _ in found]
    evaluations = [r.nfe * r.forwards for r in records if r.nfe is not None]
    evaluations += [float(one.evaluations) for one in asked if one.evaluations is not None]
    forwards = sum(r.forwards for r in records) + sum(one.forwards for one in asked)
    merged = _merged(records, split.first(cell.samples).labels.cpu().numpy())
    if "norm" in merged.outcomes:
        measures |= largest_norm(merged.outcomes["norm"])
    return dataclasses.replace(
        merged,
        measures=measures,
        card={"surrogates_left_out": reasons} if reasons else {},
        forwards=forwards,
        backwards=sum(r.backwards for r in records) + sum(one.backwards for one in asked),
        nfe=sum(evaluations) / forwards if evaluations else None,
        seconds=time.perf_counter() - started,
    )


def _handing(threat: Threat, surrogate: CheckedModel, evaluations: int) -> Threat:
    """`threat`, its craft handed `surrogate`, of so many field evaluations, whatever model is evaluated."""

    def craft(
        _model: nn.Module,
        images: Tensor,
        labels: Tensor,
        strength: float,
        seeds: list[int],
        **parameters: Any,
    ) -> Tensor:
        size = max(1, MOST_VALUES // (evaluations * math.prod(images.shape[1:])))
        try:
            with solved_as_forward(surrogate.model):
                parts = [
                    threat.craft(
                        surrogate,
                        images[i : i + size],
                        labels[i : i + size],
                        strength,
                        seeds[i : i + size],
                        **parameters,
                    )
                    for i in range(0, len(images), size)
                ]
                surrogate.raise_pending()
        except ModelFailure as error:
            raise SurrogateModelFailure(one_line(error)) from error
        return torch.cat(parts)

    return dataclasses.replace(threat, craft=craft)


def _merged(records: list[Record], labels: NDArray[np.integer]) -> Record:
    """What the first record that breaks a sample says of it; of the others what the last says."""
    prediction = predictions(records[-1].outcomes, labels)
    rest = {name: v.copy() for name, v in records[-1].outcomes.items() if name in NOT_STORED}
    examples = {name: values.copy() for name, values in records[-1].examples.items()}
    for record in reversed(records[:-1]):
        broken = ~record.outcomes["correct"]
        prediction = np.where(broken, predictions(record.outcomes, labels), prediction)
        rest = {name: np.where(broken, record.outcomes[name], v) for name, v in rest.items()}
        first = broken[0, : len(examples["image"])]
        for name in ("prediction", "image"):
            examples[name][first] = record.examples[name][first]
    outcomes = {**outcomes_of(prediction, labels), **rest}
    return dataclasses.replace(records[-1], outcomes=outcomes, examples=examples)


def _first_breaks(found: list[AdversarialExamples]) -> AdversarialExamples:
    """Each sample once, with the first of the perturbations that broke it, by index."""
    index = np.concatenate([breaks.index for breaks in found])
    index, first = np.unique(index, return_index=True)
    label = np.concatenate([breaks.label for breaks in found])
    steps = np.concatenate([breaks.steps for breaks in found])
    return AdversarialExamples(index=index, label=label[first], steps=steps[first])
