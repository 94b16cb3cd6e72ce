"""Each example that someone sends, held against what was sent before, box, budget and model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..._errors import RecordError
from ...attacks import BUDGET_TOLERANCE, distance, violation
from ..breaks import Breaks, add_steps, unpack, whole_steps
from ..data import Data, Split
from ..evaluate import frozen
from ..queries import call_model
from ..records import Cell
from ..store import Store
from .margins import lead_alone_and_shuffled
from .submission import Sent


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The examples that hold, what a record says of them, and why the others do not hold."""

    breaks: Breaks
    outcomes: dict[str, NDArray[Any]]
    rejected: Counter[str]


def sent_before(store: Store, cells: Sequence[Cell]) -> set[tuple[int, bytes]]:
    """Number and perturbation, as `judge` knows them, of every example that was accepted in `cells`."""
    found = set[tuple[int, bytes]]()
    for cell in cells:
        with suppress(OSError, RecordError):  # what is damaged vouches for nothing, and `verify` names it
            found.update(_named(unpack(store.breaks_path(cell).read_bytes())))
    return found


def _named(breaks: Breaks) -> list[tuple[int, bytes]]:
    return [(int(n), s.astype("<i4").tobytes()) for n, s in zip(breaks.index, breaks.steps, strict=True)]


def judge(
    sent: Sent,
    data: Data,
    clean: NDArray[np.int16],
    cell: Cell,
    model: nn.Module,
    known: set[tuple[int, bytes]],
) -> Judged:
    """Round each example as it will be stored, then hold it against those `known`, box, budget and model."""
    test = data.test.first(cell.samples)
    labels, clean = test.labels.numpy(), clean[: cell.samples]
    left, rejected = _first_of_each(sent.index, test, clean)
    rows = np.array(sorted(left), np.int64)
    images = sent.images[[left[int(row)] for row in rows]]

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
            furthest = f"{cell.norm} up to {cell.strength + excess.max():.6g}, {cell.strength:g} allowed"
            sift(excess <= tolerance, f"out of budget: {furthest}" if norm else "outside the box [0, 1]")
    steps = whole_steps(images, test.images[rows].numpy())
    numbers = np.asarray(test.indices[rows], np.int64)
    named = _named(Breaks(index=numbers, label=labels[rows], steps=steps))
    fresh = np.array([name not in known for name in named], bool)
    sift(fresh, "sent before")
    steps = steps[fresh]
    stored = torch.from_numpy(add_steps(test.images[rows].numpy(), steps))
    found = lead_alone_and_shuffled(model, stored, test.labels[rows], cell.batch_size, data.num_classes)
    broken = np.stack(list(found.values())).min(0) > 0
    sift(broken, "still classified correctly")
    steps, stored = steps[broken], stored[torch.from_numpy(broken)]
    prediction, length = clean.copy(), np.zeros(cell.samples, np.float32)
    if len(rows):
        with frozen(model), torch.no_grad():
            alone = [call_model(model, image[None], data.num_classes).argmax() for image in stored]
        prediction[rows] = torch.stack(alone).numpy()
        length[rows] = distance(stored, test.images[rows], cell.norm).numpy()  # type: ignore[arg-type]
    return Judged(
        breaks=Breaks(index=np.asarray(test.indices[rows], np.int64), label=labels[rows], steps=steps),
        outcomes={
            "prediction": prediction[None],
            "correct": (prediction == labels)[None],
            "norm": length[None],
        },
        rejected=rejected,
    )


def _first_of_each(
    index: NDArray[np.int64], test: Split, clean: NDArray[np.int16]
) -> tuple[dict[int, int], Counter[str]]:
    """Position in the file by row of the test set, and why some have none."""
    labels, rejected, left = test.labels.numpy(), Counter[str](), dict[int, int]()
    where = {int(number): row for row, number in enumerate(test.indices)}
    for position, number in enumerate(index):
        row = where.get(int(number))
        if row is None:
            rejected["not among the evaluated test samples"] += 1
        elif clean[row] != labels[row]:
            rejected["misclassified as it is"] += 1
        elif row in left:
            rejected["its index was given before"] += 1
        else:
            left[row] = position
    return left, rejected
