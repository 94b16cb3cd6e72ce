"""From the result of an audit to a record of kind ``audit``, and back. No torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..records.record import Cell, Record
from .registry import Audit, AuditResult
from .stored_records import StoredRecords

FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """The result of an audit of a model trained with one seed.

    Attributes
    ----------
    verdict
        ``pass``, ``flag``, ``not applicable``, ``not asked``, or ``failed`` where the audit could not be run.
    exempt
        The model's explanation of a flag that it expects; empty where it states none.
    """

    name: str
    title: str = ""
    seed: int
    verdict: str
    sentence: str
    value: float = math.nan
    threshold: float = math.nan
    unit: str = ""
    exempt: str = ""
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    axes: Sequence[str] = ("", "")

    @property
    def counts_against(self) -> bool:
        """Whether it withholds a rank: a flag without an explanation, or an audit that could not be run."""
        return self.verdict == FAILED or (self.verdict == "flag" and not self.exempt)


def audit_cell(training: Cell, checkpoint_sha256: str, audit: Audit, settings: Mapping[str, Any]) -> Cell:
    """The cell of one audit of the weights that `training` made.

    `settings` are ``samples``, ``batch_size``, ``norm``, ``strength``, ``solver`` and ``parameters``.
    """
    return dataclasses.replace(
        training,
        kind="audit",
        checkpoint_sha256=checkpoint_sha256,
        threat=audit.name,
        threat_version=audit.version,
        family="audit",
        draws=1,
        attack_seed=0,
        **settings,
    )


def audit_record(cell: Cell, result: AuditResult, title: str, exempt: str, **rest: Any) -> Record:
    """The record of `result`; a value that is not finite is left out and only the sentence names it."""
    numbers = {"value": result.value, "threshold": result.threshold}
    card: dict[str, Any] = {
        "title": title,
        "verdict": result.verdict,
        "sentence": result.sentence,
        "unit": result.unit,
        "axes": list(result.axes),
    }
    if exempt:
        card["exempt"] = exempt
    return Record(
        cell=cell,
        measures={name: float(value) for name, value in numbers.items() if math.isfinite(value)},
        outcomes={name: np.asarray(values, np.float64) for name, values in result.arrays.items()},
        card=card,
        **rest,
    )


def stored_result(record: Record) -> SeedResult:
    """The result in a record of kind ``audit``."""
    cell, card = record.cell, record.card
    if record.status != "ok":
        sentence = f"The audit could not be run: {record.error or record.status}"
        return SeedResult(name=cell.threat, seed=cell.training_seed, verdict=FAILED, sentence=sentence)
    return SeedResult(
        name=cell.threat,
        title=str(card.get("title", "")),
        seed=cell.training_seed,
        verdict=str(card["verdict"]),
        sentence=str(card["sentence"]),
        value=record.measures.get("value", math.nan),
        threshold=record.measures.get("threshold", math.nan),
        unit=str(card.get("unit", "")),
        exempt=str(card.get("exempt", "")),
        arrays=record.outcomes,
        axes=card.get("axes", ("", "")),
    )


def result_of_audit(audit: Audit, stored: StoredRecords, seed: int, exempt: str) -> SeedResult:
    """Run an audit of stored records."""
    try:
        found = audit(stored)
    except Exception as error:
        sentence = f"The audit could not be run: {type(error).__name__}: {error}"
        return SeedResult(name=audit.name, seed=seed, verdict=FAILED, sentence=sentence)
    return SeedResult(
        name=audit.name,
        title=audit.title,
        seed=seed,
        verdict=found.verdict,
        sentence=found.sentence,
        value=found.value,
        threshold=found.threshold,
        unit=found.unit,
        exempt=exempt,
        arrays=found.arrays,
        axes=found.axes,
    )
