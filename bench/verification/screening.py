"""Each example that someone sends, held against box, budget, what is stored already, and model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..._errors import RecordError
from ...attacks import BUDGET_TOLERANCE, distance, violation
from ..data import Data, Split
from ..evaluation.accuracy import frozen, seed_of
from ..evaluation.attack_verification import predict_alone
from ..evaluation.margins import relative_margins_alone_and_shuffled
from ..records.adversarial_examples import AdversarialExamples, add_steps, perturbation_steps
from ..records.predictions import outcomes_of
from ..records.record import Cell
from ..records.store import Store
from ..runtime.checked_model import CheckedModel
from ..runtime.foreign_code import asking
from .submitted_file import Sent


@dataclass(frozen=True, kw_only=True)
class ScreenedExamples:
    """The examples that hold, what a record says of them, and why the others do not hold."""

    breaks: AdversarialExamples
    outcomes: dict[str, NDArray[Any]]
    rejected: Counter[str]


REMEDIES: Mapping[str, str] = {
    "not among": "index holds the numbers of samples in their source, as "
    "robustode.bench.data.load_data(NAME).test.indices has them",
    "outside the box": "clip the pixels to [0, 1] after the perturbation",
    "out of budget": "shrink each perturbation until its norm is within the budget",
    "still classified": "the stored weights decide, image by image and in batches: attack "
    "robustode.load_model(FOLDER, NAME, seed=SEED)",
    "NaN": "leave such images out",
}
"""What to do about a rejection, by how its reason begins."""

Known: TypeAlias = Mapping[int, Sequence[NDArray[np.int32]]]
"""By a sample's number the perturbations of it that are stored, in steps, each (c, h, w)."""


def stored_before(store: Store, cells: Sequence[Cell]) -> Known:
    """Every example that is stored for `cells`."""
    found: dict[int, list[NDArray[np.int32]]] = defaultdict(list)
    for cell in cells:
        with suppress(OSError, RecordError):  # what is damaged vouches for nothing, and `verify` names it
            breaks = store.get_examples(cell)
            for number, steps in zip(breaks.index, breaks.steps, strict=True):
                found[int(number)].append(steps)
    return found


def _is_news(number: int, steps: NDArray[np.int32], known: Known) -> bool:
    """Whether no stored image is this one; rounding what was rounded once may take one step more."""
    return all(steps.shape != old.shape or np.abs(steps - old).max() > 1 for old in known.get(number, ()))


def screen_examples(
    sent: Sent,
    data: Data,
    clean: NDArray[np.int16],
    cell: Cell,
    model: nn.Module,
    known: Known,
) -> ScreenedExamples:
    """Round each example as it will be stored, then hold it against box, budget, those `known`, and model.

    Every image of a sample is tried; the first that holds counts.
    """
    test = data.test.first(cell.samples)
    labels, clean = test.labels.numpy(), clean[: cell.samples]
    rows, positions, rejected = _candidates(sent.index, test, clean)
    images = sent.images[positions]

    def sift(good: NDArray[np.bool_], reason: str) -> None:
        nonlocal rows, images
        if not good.all():
            rejected[reason] += int((~good).sum())
        rows, images = rows[good], images[good]

    sift(np.asarray(np.isfinite(images).all(axis=(1, 2, 3))), "NaN or infinite")
    tolerance = BUDGET_TOLERANCE * max(1.0, cell.strength)
    for norm in (None, cell.norm):
        if len(rows):
            excess = violation(torch.from_numpy(images), test.images[rows], cell.strength, norm).numpy()  # type: ignore[arg-type]
            over = f"out of budget: {cell.norm} {cell.strength:g} exceeded by up to {excess.max():.2g}"
            sift(excess <= tolerance, over if norm else "outside the box [0, 1]")
    steps = perturbation_steps(images, test.images[rows].numpy())
    numbers = np.asarray(test.indices[rows], np.int64)
    fresh = np.array([_is_news(int(n), each, known) for n, each in zip(numbers, steps, strict=True)], bool)
    sift(fresh, "stored already")
    steps = steps[fresh]
    stored = torch.from_numpy(add_steps(test.images[rows].numpy(), steps))
    with asking(model, seed_of(cell)):
        found = relative_margins_alone_and_shuffled(
            model,
            stored,
            test.labels[rows],
            cell.batch_size,
            data.num_classes,
            unperturbed=test.images[rows],
        )
    broken = np.stack(list(found.values())).min(0) > 0
    sift(broken, "still classified correctly")
    steps, stored = steps[broken], stored[torch.from_numpy(broken)]
    rows, first = np.unique(rows, return_index=True)
    if extra := len(steps) - len(first):
        rejected["an earlier image of its sample holds"] += extra
    steps, stored = steps[first], stored[torch.from_numpy(first)]
    prediction, length = clean.copy(), np.zeros(cell.samples, np.float32)
    if len(rows):
        asked = CheckedModel(model, data.num_classes, per_sample=True)
        asked.has_answered = True  # as `found` made sure
        with asking(model, seed_of(cell)), frozen(model):
            prediction[rows] = predict_alone(asked, stored).numpy()
        length[rows] = distance(stored, test.images[rows], cell.norm).numpy()  # type: ignore[arg-type]
    return ScreenedExamples(
        breaks=AdversarialExamples(
            index=np.asarray(test.indices[rows], np.int64), label=labels[rows], steps=steps
        ),
        outcomes={**outcomes_of(prediction[None], labels), "norm": length[None]},
        rejected=rejected,
    )


def _candidates(
    index: NDArray[np.int64], test: Split, clean: NDArray[np.int16]
) -> tuple[NDArray[np.int64], NDArray[np.int64], Counter[str]]:
    """Rows of the test set and positions in the file of all images to try, and why the others are not tried.

    Ordered by row; the images of one sample in the order of the file.
    """
    labels, rejected, found = test.labels.numpy(), Counter[str](), list[tuple[int, int]]()
    where = {int(number): row for row, number in enumerate(test.indices)}
    for position, number in enumerate(index):
        row = where.get(int(number))
        if row is None:
            rejected["not among the evaluated test samples, numbered as in Data.test.indices"] += 1
        elif clean[row] != labels[row]:
            rejected["misclassified as it is"] += 1
        else:
            found.append((row, position))
    rows, positions = np.array(sorted(found), np.int64).reshape(-1, 2).T
    return rows, positions, rejected
