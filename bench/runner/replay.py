"""One replay: what broke other models shown to one model, each example held against box, budget and model."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..._errors import RobustodeError
from ...attacks import BUDGET_TOLERANCE, distance, violation
from ..data import Data
from ..evaluation.accuracy import failed, frozen, seed_of
from ..evaluation.attack_verification import predict_alone
from ..evaluation.margins import relative_margins, relative_margins_alone_and_shuffled
from ..records.adversarial_examples import AdversarialExamples, add_steps
from ..records.latest import Entry
from ..records.predictions import NO_ANSWER, largest_norm, outcomes_of
from ..records.record import Cell, Record
from ..records.store import Store
from ..runtime.checked_model import CheckedModel
from ..runtime.foreign_code import asking
from ..training.provenance import environment_of

ModelAndSeed = tuple[Entry, int]
"""A row of the leaderboard and a training seed."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The stored examples of one attack on one trained model."""

    model_and_seed: ModelAndSeed
    threat: str
    sha256: str
    breaks: AdversarialExamples


def replay_cell(
    store: Store,
    cell: Cell,
    sources: Sequence[Source],
    model: nn.Module,
    data: Data,
    clean: NDArray[np.int16],
) -> Record:
    """The record of one replay, its breaks stored; of a failure where the model fails.

    Parameters
    ----------
    sources
        In the order in which they are tried.
    clean
        What `model` predicts for at least ``cell.samples`` samples as they are.

    Returns
    -------
    Record
        Its card's ``transfer`` says of each source model and training seed how many examples were ``tried``
        and how many ``broke`` the model.
    """
    described, began = environment_of(model, torch.device("cpu")), time.perf_counter()
    queried = CheckedModel(model, data.num_classes, per_sample=True)
    queried.has_answered = bool((clean != NO_ANSWER).any())
    try:
        with asking(model, seed_of(cell)):
            outcomes, breaks, tally = _replay(cell, sources, queried, data, clean[: cell.samples])
    except RobustodeError as error:
        return failed(cell, error, seconds=time.perf_counter() - began, environment=described)
    return Record(
        cell=cell,
        outcomes=outcomes,
        measures=largest_norm(outcomes["norm"]),
        card={"adversarial": store.put_examples(cell, breaks), "transfer": tally},
        forwards=queried.forwards,
        nfe=queried.nfe,
        seconds=time.perf_counter() - began,
        environment=described,
    )


def _replay(
    cell: Cell, sources: Sequence[Source], model: CheckedModel, data: Data, clean: NDArray[np.int16]
) -> tuple[dict[str, NDArray[Any]], AdversarialExamples, list[dict[str, Any]]]:
    """Outcomes, the first example of each sample that holds, and for each source how many broke the model.

    An example counts as tried where the model classifies its sample correctly. It breaks the model by what it
    predicts in a batch; what lowers the score must do so alone and among others too.
    """
    test = data.test.first(cell.samples)
    labels = test.labels.numpy()
    where = {int(number): row for row, number in enumerate(test.indices)}
    first: dict[int, NDArray[np.int32]] = {}
    tally: dict[ModelAndSeed, list[int]] = {}
    for source in sources:
        counts = tally.setdefault(source.model_and_seed, [0, 0])
        if source.breaks.steps.shape[1:] != test.images.shape[1:]:
            continue
        rows, steps = _tried(source.breaks, where, labels, clean)
        if not len(rows):
            continue
        original = test.images[torch.from_numpy(rows)]
        images = torch.from_numpy(add_steps(original.numpy(), steps))
        excess = violation(images, original, cell.strength, cell.norm).numpy()  # type: ignore[arg-type]
        inside = excess <= BUDGET_TOLERANCE * max(1.0, cell.strength)
        rows, steps, images = rows[inside], steps[inside], images[torch.from_numpy(inside)]
        targets = test.labels[torch.from_numpy(rows)]
        broken = relative_margins(model, images, targets, cell.batch_size, data.num_classes) > 0
        counts[0] += len(rows)
        counts[1] += int(broken.sum())
        new = np.flatnonzero(broken & ~np.isin(rows, list(first)))
        if len(new):
            part = torch.from_numpy(new)
            found = relative_margins_alone_and_shuffled(
                model,
                images[part],
                targets[part],
                cell.batch_size,
                data.num_classes,
                unperturbed=original[torch.from_numpy(inside)][part],
            )
            holds = np.stack(list(found.values())).min(0) > 0
            for i in new[holds]:
                first.setdefault(int(rows[i]), steps[i])
    rows = np.array(sorted(first), np.int64)
    none = np.zeros((0, *test.images.shape[1:]), np.int32)
    steps = np.stack([first[int(row)] for row in rows]) if len(rows) else none
    prediction, length = clean.copy(), np.zeros(cell.samples, np.float32)
    if len(rows):
        original = test.images[torch.from_numpy(rows)]
        stored = torch.from_numpy(add_steps(original.numpy(), steps))
        with frozen(model):
            prediction[rows] = predict_alone(model, stored).numpy()
        length[rows] = distance(stored, original, cell.norm).numpy()  # type: ignore[arg-type]
    outcomes = {**outcomes_of(prediction[None], labels), "norm": length[None]}
    breaks = AdversarialExamples(
        index=np.asarray(test.indices[rows], np.int64), label=labels[rows], steps=steps
    )
    return outcomes, breaks, [_line(model_and_seed, *counts) for model_and_seed, counts in tally.items()]


def _tried(
    breaks: AdversarialExamples, where: Mapping[int, int], labels: NDArray[np.int64], clean: NDArray[np.int16]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Rows of the test set and perturbations of the samples that the model gets right as they are."""
    rows = np.array([where.get(int(index), -1) for index in breaks.index], np.int64)
    right = (rows >= 0) & (clean[rows] == labels[rows])
    return rows[right], breaks.steps[right]


def _line(model_and_seed: ModelAndSeed, tried: int, broke: int) -> dict[str, Any]:
    (_, model, recipe), seed = model_and_seed
    return {"model": model, "recipe": recipe, "seed": seed, "tried": tried, "broke": broke}
