"""What the run of one model and training seed is given, and its account: records, progress, failures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from ...models import ModelSpec
from ..config.cells import training_cell
from ..config.plan import Plan
from ..data import Data
from ..records.record import Cell, Record
from ..records.store import Store
from ..runtime.progress import Quiet, Reporter
from .build_planned import build_planned
from .cost_estimate import Cost
from .run_summary import RunSummary, failure_line

ADVICE = " (--time-limit sets it)"
"""What a time limit says besides."""


@dataclass(kw_only=True)
class RunContext:
    """One model and one training seed of a plan.

    Attributes
    ----------
    cost
        Estimated seconds per query, the unit of progress.
    fresh
        Do everything again, stored or not.
    processes
        How many processes of this run work at once, this one included.
    on_start
        Called with the cells that are begun together, before they are: one, or a threat's strengths.
    already_begun
        Keys of cells that are left as they are stored, failed or not, and not counted: an earlier process of
        this run began them.
    training
        The cell of the training.
    summary
        What has been done so far.
    can_be_timed
        Whether it may be timed in this process; False for a model at which another process died.
    """

    plan: Plan
    data: Data
    store: Store
    device: torch.device
    spec: ModelSpec
    seed: int
    cost: Cost
    fresh: bool = False
    reporter: Reporter = field(default_factory=Quiet)
    processes: int = 1
    on_start: Callable[[list[Cell]], None] = lambda cells: None
    already_begun: frozenset[str] = frozenset()
    training: Cell = field(init=False)
    summary: RunSummary = field(default_factory=RunSummary, init=False)
    can_be_timed: bool = field(default=True, init=False)
    _work: tuple[float, float] = field(default=(0.0, 0.0), init=False)

    def __post_init__(self) -> None:
        self.training = training_cell(self.plan, self.spec, self.seed, self.data)

    @property
    def name(self) -> str:
        """Model and seed, as lines name them."""
        return f"{self.spec.name} seed {self.seed}"

    def build(self) -> nn.Module:
        """Build the untrained model; raises `ModelFailure` where it cannot be built or gives no logits."""
        return build_planned(self.plan, self.spec, self.data, self.seed)

    def put(self, record: Record) -> None:
        """Store a record and count it, also among the failures where it is one."""
        self.store.put(record)
        self.summary.done += 1
        if record.status != "ok":
            self.fail(failure_line(record))

    def fail(self, line: str) -> None:
        """Count a failure; all of them are shown when the run ends."""
        self.summary.failures.append(line)

    def limit(self, cells: Sequence[Cell]) -> float:
        """Seconds that `cells`, done at once, may take; what was measured so far scales their estimate."""
        limits = self.plan.limits
        least = limits.training if cells[0].kind == "training" else len(cells) * limits.cell
        return self.plan.allowed(least, self.pace * self.seconds_for(cells))

    @property
    def pace(self) -> float:
        """How many times their estimate the cells done so far have taken; at least 1."""
        estimated, taken = self._work
        return max(1.0, taken / estimated) if estimated else 1.0

    def measured(self, estimate: float, seconds: float) -> None:
        """Note how many seconds something took, and its estimate."""
        estimated, taken = self._work
        self._work = estimated + estimate, taken + seconds

    def seconds_for(self, cells: Iterable[Cell]) -> float:
        """Estimated seconds of `cells`."""
        return sum(self.cost.seconds_for(cell, self.plan) for cell in cells)

    def advance(self, cells: Iterable[Cell], samples: int) -> Callable[[int], None]:
        """A function that reports progress on `cells`, called with how many of their `samples` are done."""
        work = self.seconds_for(cells)
        return lambda done: self.reporter.advance(work * done / samples)
