"""Which adversarial examples of one model and seed are stored: those that prove its worst case."""

from __future__ import annotations

import dataclasses
from contextlib import suppress

from ..._errors import RecordError
from ..config.cells import samples_in_common
from ..config.plan import Plan
from ..data import Data
from ..records.adversarial_examples import AdversarialExamples, unpack
from ..records.record import Cell, Record
from ..records.store import Store


class ExampleSelection:
    """Stores one example of each sample that an attack broke at the reported strength of its norm.

    It is that of the first attack that has one, among the samples that all attacks of the norm share.
    """

    def __init__(self, plan: Plan, data: Data, store: Store, *, on_gpu: bool) -> None:
        self._plan, self._data, self._store, self._on_gpu = plan, data, store, on_gpu
        self._reported = plan.headline().reported
        self._stored: dict[str, set[int]] = {}

    def wanted(self, cell: Cell) -> bool:
        """Whether examples of `cell` are to be stored: of an attack at the strength that is reported."""
        return cell.norm is not None and cell.strength == self._reported.get(cell.norm)

    def remember(self, record: Record) -> None:
        """Take account of a stored record, whose examples need not be stored again."""
        if self.wanted(record.cell) and "adversarial" in record.card:
            with suppress(OSError, RecordError):  # what cannot be read holds none
                breaks = unpack(self._store.breaks_path(record.cell).read_bytes())
                self._stored.setdefault(str(record.cell.norm), set()).update(breaks.index.tolist())

    def store(self, record: Record, breaks: AdversarialExamples | None) -> Record:
        """Store what is to be stored of `breaks`, all that the cell broke; the record that vouches for it."""
        if breaks is None or not self.wanted(record.cell):
            return record
        norm = str(record.cell.norm)
        shared = samples_in_common(self._plan, norm, self._data, on_gpu=self._on_gpu)
        count = min(record.cell.samples, shared)
        stored = self._stored.setdefault(norm, set())
        new = breaks.of(set(self._data.test.indices[:count].tolist()) - stored)
        stored.update(new.index.tolist())
        facts = {**self._store.put_breaks(record.cell, new), "samples": count}
        return dataclasses.replace(record, card={**record.card, "adversarial": facts})
