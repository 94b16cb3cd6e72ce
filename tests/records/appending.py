"""What another process does to a results folder: a module of its own, so that it loads no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from robustode.bench.records.record import Record
from robustode.bench.records.store import Store


def append_many(folder: Path, records: Sequence[Record], seconds: float) -> None:
    """Store `records` three times, as measured in `seconds` by the process of that number."""
    store = Store(folder)
    for record in (*records, *records, *records):
        store.put(dataclasses.replace(record, seconds=seconds, environment={"process": seconds}))
