"""Which examples of one model and seed are stored: those that scores rest on, and images for figures."""

from __future__ import annotations

import dataclasses
from contextlib import suppress

from ..._errors import RecordError
from ..config.cells import samples_in_common
from ..config.plan import Plan
from ..data import Data
from ..records.adversarial_examples import AdversarialExamples
from ..records.record import Cell, Record
from ..records.store import Store


class ExampleSelection:
    """Chooses what is stored of the examples that the attacks on one model and training seed find.

    One adversarial example of each sample that an attack broke at the reported strength of its norm: that of
    the first attack that has one, of the samples that all attacks of the norm are given. And the images of a
    record where figures show them: of training seed 0, at one strength of each threat.
    """

    def __init__(self, plan: Plan, data: Data, store: Store, *, on_gpu: bool) -> None:
        self._plan, self._data, self._store, self._on_gpu = plan, data, store, on_gpu
        self._headline = plan.headline()
        self._stored: dict[str, set[int]] = {}

    def wanted(self, cell: Cell) -> bool:
        """Whether adversarial examples of `cell` are to be stored: of an attack at the reported strength."""
        return cell.norm is not None and cell.strength == self._headline.reported.get(cell.norm)

    def remember(self, record: Record) -> None:
        """Take account of a record of before, whose adversarial examples need not be stored again."""
        if self.wanted(record.cell) and "adversarial" in record.card:
            with suppress(OSError, RecordError):  # what cannot be read holds none
                examples = self._store.get_examples(record.cell)
                self._stored.setdefault(str(record.cell.norm), set()).update(examples.index.tolist())

    def store(self, record: Record, examples: AdversarialExamples | None) -> Record:
        """Store what is to be stored of `examples`, all that the cell broke; the record to store."""
        if not self._in_figures(record.cell):
            record = dataclasses.replace(record, examples={})
        if examples is None or not self.wanted(record.cell):
            return record
        norm = str(record.cell.norm)
        shared = samples_in_common(self._plan, norm, self._data, on_gpu=self._on_gpu)
        count = min(record.cell.samples, shared)
        stored = self._stored.setdefault(norm, set())
        new = examples.of(set(self._data.test.indices[:count].tolist()) - stored)
        stored.update(new.index.tolist())
        facts = {**self._store.put_examples(record.cell, new), "samples": count}
        return dataclasses.replace(record, card={**record.card, "adversarial": facts})

    def _in_figures(self, cell: Cell) -> bool:
        strengths = [s for a in self._plan.attacks if a.threat.name == cell.threat for s in a.plan.strengths]
        shown = self._headline.shown_strength(cell.threat, cell.norm, strengths or [cell.strength])
        return cell.training_seed == 0 and cell.strength == shown
