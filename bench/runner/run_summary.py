"""What a run, or a part of it, did: cells done and skipped, and what failed."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..records.record import Record


@dataclass(kw_only=True)
class RunSummary:
    """Cells done, cells skipped because they were stored, and what failed, a line each.

    `others_load` is the largest share of the machine that other processes took during a timing.
    """

    done: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)
    others_load: float = field(default=0.0, compare=False)

    def add(self, other: RunSummary) -> None:
        """Count what another part of the run did."""
        self.done += other.done
        self.skipped += other.skipped
        self.failures += other.failures
        self.others_load = max(self.others_load, other.others_load)


def failure_line(record: Record) -> str:
    """Return the line about a cell that failed."""
    return f"{record.cell.label()}: {record.status}: {record.error}"
