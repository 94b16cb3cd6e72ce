"""Adversarial examples that someone sends: each is verified, and those that hold lower the score.

What is accepted becomes a record of its own, so the worst case takes it in as it would any attack.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..._errors import InvalidArgument
from ..._registry import unknown_name
from ...attacks import BUDGET_TOLERANCE, distance, violation
from ...models import MODELS
from ..breaks import Breaks, add_steps, whole_steps
from ..data import Data, Split, load_data
from ..describe import made_by
from ..evaluate import frozen
from ..headline import Headline
from ..outside.external import resolve_model
from ..outside.plugins import load_plugins
from ..queries import call_model
from ..records import SUBMISSION, UNASKED, Cell, Record
from ..selection import current, entry
from ..stats import worst_case
from ..store import Store
from ..trained import trained_model
from .margins import lead_alone_and_shuffled
from .submission import Sent


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a submission.

    Attributes
    ----------
    accepted
        Examples that hold; `rejected` counts the others by reason.
    new
        Whether a record was stored: not where the same file was accepted before, nor where nothing holds.
    before, after
        Robust accuracy of this training seed, in the worst case over all attacks at that budget.
    """

    cell: Cell
    accepted: int
    rejected: Counter[str]
    new: bool
    before: float
    after: float


def submit(
    folder: Path,
    sent: Sent,
    model: str,
    *,
    norm: str | None = None,
    seed: int = 0,
    data_root: Path | None = None,
) -> Verdict:
    """Verify `sent` against the trained `model` of a results folder, and store what holds.

    Parameters
    ----------
    model
        A name, or ``FILE.py:factory``.
    norm
        ``linf`` or ``l2``, at the strength that the folder reports; by default the one it ranks by.

    Raises
    ------
    InvalidArgument
        When the folder holds no such model, or no attack in that norm at the reported strength.
    """
    spec = resolve_model(model) if ".py" in model else None
    load_plugins()
    store = Store(folder)
    records = store.load()[0]
    if not records:
        raise InvalidArgument(f"no records in {folder}: run `robustode run` first, or pass --out")
    headline = Headline.read(store.folder)
    used, _ = current(records, headline.preferred)
    name = spec.name if spec else model
    known = sorted({record.cell.model for record in used})
    if name not in known:
        raise unknown_name("model", name, known)
    ours = [r for r in used if (r.cell.model, r.cell.training_seed) == (name, seed) and r.status == "ok"]
    ours = _one_row(ours, headline)
    training = next((r for r in ours if r.cell.kind == "training"), None)
    clean = next((r for r in ours if r.cell.family == "clean"), None)
    norm = norm or (headline.rank if headline.rank in ("linf", "l2") else "linf")
    eps = headline.reported.get(norm, -1.0)
    bounded = [r for r in ours if r.cell.kind == "accuracy" and r.cell.norm == norm]
    attacks = [r for r in bounded if r.cell.strength <= eps]
    reported = [r for r in attacks if r.cell.strength == eps and r.cell.family not in UNASKED]
    if training is None or clean is None or not reported:
        raise InvalidArgument(
            f"{folder} holds no {name} with seed {seed} that was trained and attacked in {norm} at a "
            "reported strength: run `robustode run` first, or choose --seed and --norm"
        )
    base = max((r.cell for r in reported), key=lambda cell: cell.samples)
    data = load_data(base.dataset, data_root)
    if data.index_sha256 != base.index_sha256:
        raise InvalidArgument(f"{base.dataset} here is not the one of {folder}: its index_sha256 differs")
    if sent.images.shape[1:] != tuple(data.input_shape):
        raise InvalidArgument(
            f"the images sent are {sent.images.shape[1:]}, those of {base.dataset} {tuple(data.input_shape)}"
        )
    cell = dataclasses.replace(
        base,
        threat=f"submitted-{sent.sha256[:8]}",
        threat_version=1,
        family=SUBMISSION,
        parameters={"origin": sent.origin, "file_sha256": sent.sha256},
        draws=1,
        attack_seed=0,
        samples=min(base.samples, clean.cell.samples),
    )
    net = trained_model(store, training, spec or MODELS.get(str(training.card.get("architecture", name))))
    judged = _judge(sent, data, clean.outcomes["prediction"][0], cell, net)
    record = Record(cell=cell, outcomes=judged.outcomes, environment=made_by(net, torch.device("cpu")))
    with store.lock():
        new = bool(len(judged.breaks)) and store.get(cell) is None
        if new:
            facts = store.put_breaks(cell, judged.breaks)
            store.put(dataclasses.replace(record, card={"adversarial": facts}))
    return Verdict(
        cell=cell,
        accepted=len(judged.breaks),
        rejected=judged.rejected,
        new=new,
        before=_robust([clean, *attacks]),
        after=_robust([clean, *attacks, record]),
    )


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """The examples that hold, what a record says of them, and why the others do not hold."""

    breaks: Breaks
    outcomes: dict[str, NDArray[Any]]
    rejected: Counter[str]


def _judge(sent: Sent, data: Data, clean: NDArray[np.int16], cell: Cell, model: nn.Module) -> _Judged:
    """Round each example as it will be stored, then hold it against box, budget and model."""
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
    bounds: tuple[tuple[Any, str], ...] = ((None, "outside the box [0, 1]"), (cell.norm, "out of budget"))
    for norm, reason in bounds:
        if len(rows):
            excess = violation(torch.from_numpy(images), test.images[rows], cell.strength, norm)
            sift(excess.numpy() <= tolerance, reason)
    steps = whole_steps(images, test.images[rows].numpy())
    stored = torch.from_numpy(add_steps(test.images[rows].numpy(), steps))
    found = lead_alone_and_shuffled(model, stored, test.labels[rows], cell.batch_size, data.num_classes)
    broken = np.stack(list(found.values())).min(0) > 0
    sift(broken, "not adversarial once stored")
    steps, stored = steps[broken], stored[torch.from_numpy(broken)]
    prediction, length = clean.copy(), np.zeros(cell.samples, np.float32)
    if len(rows):
        with frozen(model), torch.no_grad():
            alone = [call_model(model, image[None], data.num_classes).argmax() for image in stored]
        prediction[rows] = torch.stack(alone).numpy()
        length[rows] = distance(stored, test.images[rows], cell.norm).numpy()  # type: ignore[arg-type]
    return _Judged(
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


def _one_row(records: list[Record], headline: Headline) -> list[Record]:
    """Those of one recipe, the one last run, where a model stands on the leaderboard with several."""
    trainings = [record for record in records if record.cell.kind == "training"]
    if not trainings:
        return records
    asked = headline.preferred
    last = max(trainings, key=lambda r: (r.cell.key() in asked, str(r.environment.get("created", ""))))
    return [record for record in records if entry(record.cell) == entry(last.cell)]


def _robust(records: Sequence[Record]) -> float:
    return float(worst_case([record.outcomes["correct"] for record in records]).mean())
