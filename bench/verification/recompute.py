"""One trained model against what its records say: checkpoint, outcomes, stored adversarial examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..._errors import CheckpointError, RecordError, RobustodeError, one_line
from ...attacks import BUDGET_TOLERANCE, violation
from ..data import Data
from ..evaluation.accuracy import frozen, seed_of
from ..evaluation.attack_verification import predict
from ..evaluation.margins import TIE, relative_margins_alone_and_shuffled
from ..records.adversarial_examples import AdversarialExamples, add_steps
from ..records.checkpoint import load_tensors
from ..records.examples_archive import content_sha256
from ..records.predictions import predictions
from ..records.record import Record
from ..records.store import Store
from ..runtime.checked_model import CheckedModel
from ..runtime.foreign_code import asking
from .report_consistency import Finding

FLIPS = 0.002
"""Share of clean predictions that another machine's rounding may change, and one sample more than none."""


class Recheck:
    """The records of one model and training seed, checked against its weights and the dataset.

    Parameters
    ----------
    records
        Those that count, all of one row of the leaderboard and one training seed.
    reported
        Strength by norm at which adversarial examples are kept.
    model
        The trained model; None where it cannot be had, and then nothing is predicted again.

    Attributes
    ----------
    predicted
        How many adversarial examples the model has been asked about.
    """

    def __init__(
        self,
        store: Store,
        records: Sequence[Record],
        data: Data,
        reported: dict[str, float],
        model: nn.Module | None,
        say: Callable[[str], None],
    ) -> None:
        self.store, self.data, self.reported, self.model, self.say = store, data, reported, model, say
        self.records = [r for r in records if r.status == "ok" and r.cell.kind == "accuracy"]
        self.clean = next((r for r in self.records if r.cell.family == "clean"), None)
        training = next((r for r in records if r.cell.kind == "training"), None)
        expected = training.card.get("expected_failures") or {} if training else {}
        self.independent = "batch-independence" not in expected
        self.rows = {int(index): row for row, index in enumerate(data.test.indices)}
        self.predicted = 0
        self._held: dict[tuple[str, float], set[int]] = {}

    def findings(self) -> Iterator[Finding]:
        """Check one record after the other."""
        for record in self.records:
            yield from self._outcomes(record)
            if record.cell.family == "clean" and self.model is not None:
                self.say(f"{record.cell.label()}: predicting {record.cell.samples} clean samples")
                yield from self._predictions(record, self.model)
            if "adversarial" in record.card:
                yield from self._examples(record)
            elif record.cell.norm and self.reported.get(record.cell.norm) == record.cell.strength:
                what = "its adversarial examples are not stored: run again to have them"
                yield self._wrong(record, what)

    def _outcomes(self, record: Record) -> Iterator[Finding]:
        """What the record calls correct is what its predictions and the dataset's labels say."""
        labels = self.data.test.first(record.cell.samples).labels.numpy()
        correct = record.outcomes["correct"]
        if correct.shape[1] != len(labels):
            yield self._wrong(record, f"{correct.shape[1]} samples, the test set has {len(labels)}")
        elif wrong := int((correct != (predictions(record.outcomes, labels) == labels[None])).sum()):
            yield self._wrong(record, f"{wrong} outcomes contradict its predictions and the labels")
        norm = record.measures.get("largest_norm", 0.0)
        if not norm <= _limit(record):
            yield self._wrong(record, f"a norm of {norm:.6g} exceeds {record.cell.strength:g}")

    def _predictions(self, record: Record, model: nn.Module) -> Iterator[Finding]:
        """The clean predictions again, in the batches in which they were made."""
        test, size = self.data.test.first(record.cell.samples), record.cell.batch_size
        try:
            asked = CheckedModel(model, self.data.num_classes, per_sample=True)
            with asking(model, seed_of(record.cell)), frozen(model):
                parts = [predict(asked, test.images[i : i + size].clone()) for i in range(0, len(test), size)]
        except RobustodeError as error:
            yield self._wrong(record, f"cannot be predicted again: {one_line(error)}")
            return
        stored = predictions(record.outcomes, test.labels.numpy())[0]
        flips = int((torch.cat(parts).numpy() != stored).sum())
        allowed = max(1, math.floor(FLIPS * len(test)))
        if flips > allowed:
            share = float((torch.cat(parts) == test.labels).double().mean())
            what = f"{flips} of {len(test)} clean predictions differ ({allowed} may on another machine): "
            yield self._wrong(record, f"{what}accuracy {record.accuracy:.2%}, predicted again {share:.2%}")
        elif flips:
            yield self._note(record, f"{flips} of {len(test)} clean predictions differ, as rounding may")

    def _examples(self, record: Record) -> Iterator[Finding]:
        file, facts = self.store.examples_name(record.cell), record.card["adversarial"]

        def wrong(what: str) -> Finding:
            return Finding(file=file, what=what)

        try:
            breaks = self.store.get_examples(record.cell)
        except OSError:
            yield wrong("missing: its record counts these adversarial examples")
            return
        except RecordError as error:
            yield wrong(str(error))
            return
        if content_sha256(breaks) != facts.get("sha256"):
            yield wrong("its hash is not the one in its record: edited or damaged")
        rows = [self.rows.get(int(index), -1) for index in breaks.index]
        known = np.array([0 <= row < record.cell.samples for row in rows], bool)
        shape = tuple(self.data.test.images.shape[1:])
        if not known.all() or len(set(rows)) < len(rows) or breaks.steps.shape[1:] != shape:
            yield wrong(f"indices or shapes are not those of different samples among {record.cell.samples}")
            return
        yield from map(wrong, self._counts(record, np.array(rows, int), facts))
        yield from self._images(record, breaks, np.array(rows, int), file)

    def _counts(self, record: Record, rows: NDArray[np.int64], facts: Mapping[str, Any]) -> Iterator[str]:
        """The examples are of samples that the record calls broken, and no such sample is without one.

        Where ``facts["samples"]`` says so, only of that many first ones, on which the worst case rests; and
        another attack of the same norm may hold the example.
        """
        broken = np.asarray(~record.outcomes["correct"].all(0))
        if self.clean is not None and self.clean.cell.samples >= len(broken):
            broken &= self.clean.outcomes["correct"][0, : len(broken)]
        if facts.get("count") != len(rows):
            yield f"{len(rows)} examples, its record says {facts.get('count')}"
        if extra := np.setdiff1d(rows, np.flatnonzero(broken)).size:
            yield f"{extra} of its samples are not among those that its record calls broken"
        shared = min(r.cell.samples for r in self.records if r.cell.norm == record.cell.norm)
        first = np.flatnonzero(broken[: max(shared, facts.get("samples", len(broken)))]).tolist()
        held = self._held_in(str(record.cell.norm), record.cell.strength) if "samples" in facts else set()
        if bare := len(set(first) - set(rows.tolist()) - held):
            yield f"{bare} of the {len(first)} samples that its record calls broken have no example stored"

    def _held_in(self, norm: str, strength: float) -> set[int]:
        """Rows of the samples of which some attack of `norm`, no stronger than this, holds an example."""
        if (norm, strength) not in self._held:
            held = self._held[norm, strength] = set()
            for record in self.records:
                within = record.cell.norm == norm and record.cell.strength <= strength
                if within and "adversarial" in record.card:
                    with suppress(OSError, RecordError):  # reported where that record is checked
                        breaks = self.store.get_examples(record.cell)
                        held.update(self.rows.get(int(index), -1) for index in breaks.index)
        return self._held[norm, strength]

    def _images(
        self, record: Record, breaks: AdversarialExamples, rows: NDArray[np.int64], file: str
    ) -> Iterator[Finding]:
        test, cell = self.data.test, record.cell
        clean, labels = test.images[torch.from_numpy(rows)], test.labels[torch.from_numpy(rows)]
        images = torch.from_numpy(add_steps(clean.numpy(), breaks.steps))

        def which(bad: NDArray[np.bool_]) -> str:
            return f"{int(bad.sum())} of {len(bad)} (first: sample {breaks.index[bad][0]})"

        if (bad := breaks.label != labels.numpy()).any():
            yield Finding(file=file, what=f"{which(bad)} have another label than the dataset")
        if len(breaks):
            excess = violation(images, clean, cell.strength, cell.norm).numpy()  # type: ignore[arg-type]
            if (bad := ~(excess <= BUDGET_TOLERANCE * max(1.0, cell.strength))).any():
                where = f"the budget {cell.norm} {cell.strength:g} or the box [0, 1]"
                what = f"{which(bad)} leave {where}, by up to {excess.max():.3g}"
                yield Finding(file=file, what=what)
        if self.model is None:
            return
        self.say(f"{cell.label()}: {len(breaks)} adversarial examples, alone and in shuffled batches")
        self.predicted += len(breaks)
        try:
            with asking(self.model, seed_of(cell)):
                found = relative_margins_alone_and_shuffled(
                    self.model, images, labels, cell.batch_size, self.data.num_classes, unperturbed=clean
                )
        except RobustodeError as error:
            yield Finding(file=file, what=f"cannot be predicted: {one_line(error)}")
            return
        for how, lead in found.items():
            excused = how != "at batch size 1" and not self.independent
            if (bad := lead < -TIE).any():
                what = f"{which(bad)} are classified correctly {how}: not adversarial"
                if excused:
                    what = (
                        f"{which(bad)} are classified correctly {how}, and the model says it depends on them"
                    )
                yield Finding(file=file, what=what, note=excused)
            if (tied := (lead <= 0) & ~bad).any():
                yield Finding(file=file, what=f"{which(tied)} are ties {how}, within {TIE:g}", note=True)

    def _wrong(self, record: Record, what: str) -> Finding:
        return Finding(file=self._file(record), what=what)

    def _note(self, record: Record, what: str) -> Finding:
        return Finding(file=self._file(record), what=what, note=True)

    def _file(self, record: Record) -> str:
        return self.store.name(record.cell)


def check_checkpoint(store: Store, records: Sequence[Record]) -> Iterator[Finding]:
    """The weights are those that every one of `records`, of one model and seed, speaks of."""
    training = next((r for r in records if r.cell.kind == "training" and r.status == "ok"), None)
    others = [r for r in records if r.cell.kind != "training" and r.status == "ok"]
    if training is None:
        for record in others[:1]:
            yield Finding(file=store.name(record.cell), what="no record of its training is stored")
        return
    path = store.checkpoint_path(training.cell)
    file = path.relative_to(store.folder).as_posix()
    try:
        _, sha256 = load_tensors(path)
    except CheckpointError as error:
        yield Finding(file=file, what=str(error).replace(f"{path} ", ""))
        return
    if training.cell.recipe.get("weights_sha256", sha256) != sha256:
        yield Finding(file=file, what="its hash is not that of the weights that its recipe says were given")
    said = [training.card.get("checkpoint_sha256"), *(record.cell.checkpoint_sha256 for record in others)]
    if differ := sum(one != sha256 for one in said):
        yield Finding(
            file=file, what=f"its hash is not the one in {differ} of its {len(said)} records: swapped"
        )


def _limit(record: Record) -> float:
    strength = record.cell.strength
    return strength + 2 * BUDGET_TOLERANCE * max(1.0, strength)  # stored in float32
