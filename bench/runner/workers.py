"""Model runs in other processes, several at once, each with its share of the threads.

A process costs a fork of a server that has torch loaded already, and keeps whatever a model does to it to
itself: when one dies, its cell has failed, and the other cells go on. Timings are not done here: they need
the machine for themselves.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from ..._errors import ModelFailure
from ...models import set_ode_backend
from ..config.run_request import Request
from ..evaluation.accuracy import failed
from ..records.record import Cell
from ..records.store import Store
from ..runtime.device import environment
from ..runtime.machine import free_memory
from ..runtime.processes import Died, Message, Raised, Returned, Send, run_jobs
from ..runtime.progress import Reporter
from .cost_estimate import Cost
from .model_run import Outcome, Unit

MEMORY = 2 * 2**30
"""Bytes of free memory that each process needs: torch, a dataset and a batch of an attack."""

_REPORT_INTERVAL = 0.1
"""Seconds between reports of progress from one process."""


def default_processes(units: int) -> int:
    """Default number of processes for `units` model runs: one per thread of torch, as memory allows."""
    return max(1, min(units, torch.get_num_threads(), free_memory() // MEMORY))


def count_processes(units: int, device: torch.device, jobs: int | None) -> int:
    """Number of processes for `units` model runs, `jobs` if it is given; always one on a GPU."""
    return max(1, min(jobs or default_processes(units), units)) if device.type == "cpu" else 1


@dataclass(frozen=True, kw_only=True)
class Job:
    """One model run, as another process needs it.

    Attributes
    ----------
    processes
        How many processes run at once, this one included.
    settled
        Keys of the cells that an earlier process of this run has begun: they are not begun again.
    """

    request: Request
    model: str
    seed: int
    out: Path
    fresh: bool
    cost: Cost
    threads: int
    processes: int
    settled: frozenset[str] = frozenset()


@dataclass(kw_only=True)
class _State:
    """What is known here of one job: cells begun, those begun last, and what earlier processes did of it."""

    cells: list[Cell] = field(default_factory=list)
    present: list[Cell] = field(default_factory=list)
    before: Outcome = field(default_factory=Outcome)


def run_in_processes(
    jobs: Sequence[Job], store: Store, reporter: Reporter, *, processes: int
) -> Iterator[tuple[Job, list[str], Outcome, bool]]:
    """Run `jobs`, at most `processes` at once.

    Yields each job as it ends, with the keys of its cells, its outcome, and whether no process died.
    A cell, or a threat's strengths, at which a process dies is stored as failed, and another process goes on
    with the cells after it. When the caller stops, the processes are terminated.

    Raises
    ------
    Exception
        An error of the harness itself in a process, such as a full disk.
    """
    queue, unfinished = deque(jobs), len(jobs)
    states: dict[tuple[str, int], _State] = {(job.model, job.seed): _State() for job in jobs}
    for job, answer in run_jobs(_run, queue, processes=processes, preload=[__name__]):
        state = states[job.model, job.seed]
        match answer:
            case Message("cells", content):
                state.cells += content
                state.present = content
            case Message("doing", content):
                others = min(processes, unfinished) - 1
                reporter.doing(f"{content} (and {others} more)" if others else content)
            case Message("advance", content):
                reporter.advance(content)
            case Message(_, content):
                reporter.say(content)
            case Raised(error):
                raise error
            case Returned((keys, outcome)):
                state.before.add(outcome)
                unfinished -= 1
                yield job, keys, state.before, not job.settled
            case Died(reason):
                keys, outcome = _after_death(job, state, reason, store, reporter)
                state.before.add(outcome)
                if len(keys) > 1 and state.cells:
                    state.cells, state.present = [], []
                    queue.appendleft(replace(job, settled=frozenset(keys)))
                else:
                    unfinished -= 1
                    yield job, keys, state.before, False


def _after_death(
    job: Job, state: _State, reason: str, store: Store, reporter: Reporter
) -> tuple[list[str], Outcome]:
    """Store a failure for the cells at which a process died.

    Returns the keys of all cells begun so far, and the outcome of those that this process began.
    """
    error = ModelFailure(f"its process {reason}")
    if not state.cells:
        line = f"{job.model} seed {job.seed}: {error}"
        reporter.say(f"failed: {line}")
        return sorted(job.settled), Outcome(failures=[line])
    described = environment(torch.device("cpu"), processes=job.processes)
    for cell in state.present:
        store.put(failed(cell, error, seconds=0.0, environment=described))
    done = [store.get(cell) for cell in state.cells]
    lines = [f"{r.cell.label()}: {r.status}: {r.error}" for r in done if r is not None and r.status != "ok"]
    reporter.say(f"failed: {lines[-1]}")
    begun = dict.fromkeys([*sorted(job.settled), *(cell.key() for cell in state.cells)])
    return list(begun), Outcome(done=len(done), failures=lines)


class _RemoteReporter:
    """A reporter that sends everything to the process that asked; progress is gathered for a moment."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._work, self._sent = 0.0, time.monotonic()

    def start(self, total: float) -> None:
        """Ignore: the total is known where the jobs come from."""

    def doing(self, what: str) -> None:
        """Name what is being done now."""
        self._send("doing", what)

    def advance(self, work: float) -> None:
        """Report work done, in estimated seconds."""
        self._work += work
        if time.monotonic() - self._sent > _REPORT_INTERVAL:
            self.flush()

    def say(self, line: str) -> None:
        """Show one line that stays."""
        self.flush()
        self._send("say", line)

    def flush(self) -> None:
        """Send the progress gathered so far."""
        self._send("advance", self._work)
        self._work, self._sent = 0.0, time.monotonic()


def _run(send: Send, job: Job) -> tuple[list[str], Outcome]:
    """Do one job in this process; the keys of its cells, and its outcome."""
    set_ode_backend(job.request.ode_backend)
    torch.set_num_threads(job.threads)
    reporter = _RemoteReporter(send)
    plan, data = job.request.plan(), job.request.data()
    unit = Unit(
        plan,
        data,
        Store(job.out),
        torch.device("cpu"),
        next(spec for spec in plan.specs if spec.name == job.model),
        job.seed,
        job.cost,
        fresh=job.fresh,
        reporter=reporter,
        processes=job.processes,
        on_cells=partial(send, "cells"),
        settled=job.settled,
    )
    keys = unit.evaluate()
    reporter.flush()
    return keys, unit.outcome
