"""Adversarial examples that someone sends: each is verified, and those that hold lower the score.

What is accepted becomes a record of its own, so the worst case takes it in as it would any attack.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..._errors import InvalidArgument
from ..._registry import unknown_name
from ...models import ModelSpec
from ..data import load_data
from ..plugins.entry_points import load_plugins
from ..plugins.model_file import resolve_model
from ..records.headline import Headline
from ..records.latest import current, entry, newest_training, submission
from ..records.predictions import largest_norm, predictions
from ..records.record import SUBMISSION, UNASKED, Cell, Record
from ..records.store import Store
from ..report.worst_case import worst_case
from ..training.find_model import ModelFinder
from ..training.load_trained import trained_model
from ..training.provenance import environment_of
from .screening import screen_examples, stored_before
from .submitted_file import Sent


@dataclass(frozen=True, kw_only=True)
class SubmissionResult:
    """What became of a submission.

    Attributes
    ----------
    accepted
        Examples that hold; `rejected` counts the others by reason.
    new
        Whether a record was stored: not where the same file was accepted before with as many examples, nor
        where nothing holds that is not stored already.
    norms
        Those in which this network was attacked at the strength that is reported.
    before, after
        Robust accuracy of this training seed, in the worst case over all attacks at that budget.
    """

    cell: Cell
    accepted: int
    rejected: Counter[str]
    new: bool
    norms: Sequence[str]
    before: float
    after: float


def submit(
    folder: Path,
    sent: Sent,
    model: str,
    *,
    norm: str | None = None,
    seed: int = 0,
    recipe: str | None = None,
    data_root: Path | None = None,
) -> SubmissionResult:
    """Verify `sent` against the trained `model` of a results folder, and store what holds.

    Parameters
    ----------
    model
        A name, or ``FILE.py:factory``.
    norm
        ``linf`` or ``l2``, at the strength that the folder reports; by default the one it ranks by.
    recipe
        The training recipe, where the folder holds the model by several; by default the one last run.

    Raises
    ------
    UnknownName, InvalidArgument
        When the folder holds no such model, or no attack in that norm at the reported strength.
    """
    spec = resolve_model(model) if ".py" in model else None
    load_plugins()
    store = Store(folder)
    store.require_records()
    with store.lock():  # of two that send the same at once, one is first
        target = _target(store, spec.name if spec else model, norm, seed, recipe)
        return _submit(store, sent, target, spec, data_root)


@dataclass(frozen=True, kw_only=True)
class _Target:
    """One trained network and a budget: the records of it that a submission is held against.

    Attributes
    ----------
    training, clean
        How it was made, and what it says of images as they are.
    attacks
        What was tried within the budget, submissions included.
    base
        The largest cell of those at the budget: the samples that count.
    norms
        Those with a budget.
    """

    training: Record
    clean: Record
    attacks: Sequence[Record]
    base: Cell
    norms: Sequence[str]


def _target(store: Store, name: str, norm: str | None, seed: int, recipe: str | None) -> _Target:
    folder, records = store.folder, store.load()[0]
    if not records:
        raise InvalidArgument(f"no records in {folder}: run `robustode run` first, or pass --out")
    headline = Headline.read(store.folder)
    used, _ = current(records, headline.preferred)
    known = sorted({record.cell.model for record in used})
    if name not in known:
        raise unknown_name("model", name, known)
    ours = [r for r in used if (r.cell.model, r.cell.training_seed) == (name, seed) and r.status == "ok"]
    training = newest_training(ours, headline.preferred, recipe)
    if training is not None:
        ours = [record for record in ours if entry(record.cell) == entry(training.cell)]
    clean = next((r for r in ours if r.cell.family == "clean"), None)
    norm = norm or (headline.rank if headline.rank in ("linf", "l2") else "linf")
    bounded = [r for r in ours if r.cell.kind == "accuracy" and r.cell.norm is not None]
    asked = [r.cell for r in bounded if r.cell.family not in UNASKED]
    at = [cell for cell in asked if cell.strength == headline.reported.get(str(cell.norm))]
    reported = [cell for cell in at if cell.norm == norm]
    eps = headline.reported.get(norm, -1.0)
    attacks = [r for r in bounded if r.cell.norm == norm and r.cell.strength <= eps]
    if training is None or clean is None or not reported:
        raise InvalidArgument(
            f"{folder} holds no {name} with seed {seed} that was trained and attacked in {norm} at a "
            "reported strength: run `robustode run` first, or choose --seed and --norm"
        )
    base = max(reported, key=lambda cell: cell.samples)
    norms = sorted({str(cell.norm) for cell in at})
    return _Target(training=training, clean=clean, attacks=attacks, base=base, norms=norms)


def _submit(
    store: Store, sent: Sent, target: _Target, spec: ModelSpec | None, data_root: Path | None
) -> SubmissionResult:
    base, clean, attacks = target.base, target.clean, target.attacks
    data = load_data(base.dataset, data_root)
    if data.index_sha256 != base.index_sha256:
        raise InvalidArgument(
            f"{base.dataset} here is not the one of {store.folder}: its index_sha256 differs"
        )
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
    spec = spec or ModelFinder(store.folder, how="--model {}").find(target.training)
    net = trained_model(store, target.training, spec, images=data.train.images)
    known_before = stored_before(store, [r.cell for r in attacks if submission(r.cell) != submission(cell)])
    labels = data.test.first(clean.cell.samples).labels.numpy()
    screened = screen_examples(sent, data, predictions(clean.outcomes, labels)[0], cell, net, known_before)
    record = Record(
        cell=cell,
        outcomes=screened.outcomes,
        measures=largest_norm(screened.outcomes["norm"]),
        environment=environment_of(net, torch.device("cpu")),
    )
    before = store.get(cell)
    stored = int(before.card["adversarial"]["count"]) if before else 0
    new = len(screened.breaks) > stored
    if new:
        facts = store.put_examples(cell, screened.breaks)
        store.put(dataclasses.replace(record, card={"adversarial": facts}))
    return SubmissionResult(
        cell=cell,
        accepted=len(screened.breaks),
        rejected=screened.rejected,
        new=new,
        norms=target.norms,
        before=_robust([clean, *attacks]),
        after=_robust([clean, *attacks, record]),
    )


def _robust(records: Sequence[Record]) -> float:
    return float(worst_case([record.outcomes["correct"] for record in records]).mean())
