"""The line that a run prints for each model and training seed when its cells are done. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from ..records.record import Record
from ..report.worst_case import worst_cases
from ..runtime.progress import duration

NORMS = ("linf", "l2")
"""The norms whose worst cases are shown, where they are reported."""


def result_line(
    model: str, seed: int, records: list[Record], seconds: float, reported: Mapping[str, float]
) -> str:
    """Name, seed, clean accuracy, worst case at each reported strength of `NORMS`, and the time.

    Parameters
    ----------
    records
        Those of this model and seed; what failed or is not known of them is left out.
    reported
        Strength by norm or noise threat, as in `Headline.reported`.
    """
    parts = [
        f"clean {record.accuracy:.1%}"
        for record in records
        if record.status == "ok" and record.cell.family == "clean"
    ]
    survived = {
        (norm, strength): each[0].robust.mean()
        for _, _, norm, found in worst_cases(records)
        for strength, each in found.items()
    }
    for norm in NORMS:
        budget = norm, reported.get(norm, 0.0)
        if budget in survived:
            parts.append(f"worst case {norm} {budget[1]:g} {survived[budget]:.1%}")
    failures = sum(record.status != "ok" for record in records)
    if failures:
        parts.append(f"{failures} failed")
    return f"{model} seed {seed}: {', '.join(parts) or 'no result'} in {duration(seconds)}"
