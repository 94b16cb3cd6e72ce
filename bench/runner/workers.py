"""Model runs in other processes, several at once, each with its share of the threads.

A process costs a fork of a server that has torch loaded already, and keeps whatever a model does to it to
itself: when one dies, its cell has failed, and the other cells go on. Timings are not done here: they need
the machine for themselves.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from ..._errors import ModelFailure
from ...models import set_ode_backend
from ..config.run_request import RunRequest
from ..evaluation.accuracy import failed
from ..records.record import Cell
from ..records.store import Store
from ..runtime.announcements import announce, telling
from ..runtime.device import environment
from ..runtime.machine import free_memory
from ..runtime.printed import LineStream, show_line
from ..runtime.processes import Died, Message, Raised, Returned, Send, run_jobs
from ..runtime.progress import Reporter
from .cost_estimate import Cost
from .model_run import ModelRun
from .run_context import RunContext
from .run_summary import RunSummary, failure_line

MEMORY = 2 * 2**30
"""Bytes of free memory that each process needs: torch, a dataset and a batch of an attack."""

PRELOAD = [__name__, "numba", "torch._dynamo"]
"""Modules loaded once for all processes: besides this one, what kernels and optimisers load on first use."""

_REPORT_INTERVAL = 0.1
"""Seconds between reports of progress from one process."""


def default_processes(runs: int) -> int:
    """Default number of processes for `runs` model runs: one per thread of torch, as memory allows."""
    return max(1, min(runs, torch.get_num_threads(), free_memory() // MEMORY))


def count_processes(runs: int, device: torch.device, jobs: int | None) -> int:
    """Number of processes for `runs` model runs, `jobs` if it is given; always one on a GPU."""
    return max(1, min(jobs or default_processes(runs), runs)) if device.type == "cpu" else 1


@dataclass(frozen=True, kw_only=True)
class ModelRunJob:
    """One model run, as another process needs it.

    Attributes
    ----------
    processes
        How many processes run at once, this one included.
    already_begun
        Keys of the cells that an earlier process of this run has begun: they are not begun again.
    """

    request: RunRequest
    model: str
    seed: int
    out: Path
    fresh: bool
    cost: Cost
    threads: int
    processes: int
    already_begun: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class FinishedJob:
    """What a job did: keys of all its cells, and the cells and seconds where a process lived to the end."""

    job: ModelRunJob
    keys: list[str]
    cells: list[Cell] = field(default_factory=list)
    summary: RunSummary
    seconds: float = 0.0
    died: bool


@dataclass(kw_only=True)
class _State:
    """The state of one job: cells begun by its process, those begun last, what earlier processes did."""

    cells: list[Cell] = field(default_factory=list)
    present: list[Cell] = field(default_factory=list)
    summary: RunSummary = field(default_factory=RunSummary)
    began: float = field(default_factory=time.perf_counter)


def run_in_processes(
    jobs: Sequence[ModelRunJob], store: Store, reporter: Reporter, *, processes: int
) -> Iterator[FinishedJob]:
    """Run `jobs`, at most `processes` at once.

    Yields what each job did, as it ends.
    A cell, or a threat's strengths, at which a process dies is stored as failed, and another process goes on
    with the cells after it. When the caller stops, the processes are terminated.

    Raises
    ------
    Exception
        An error of the harness itself in a process, such as a full disk.
    """
    queue, unfinished = deque(jobs), len(jobs)
    states = defaultdict[tuple[str, int], _State](_State)
    for job, answer in run_jobs(_run, queue, processes=processes, preload=PRELOAD):
        state = states[job.model, job.seed]
        match answer:
            case Message("cells", content):
                state.cells += content
                state.present = content
            case Message("activity", content):
                others = min(processes, unfinished) - 1
                reporter.activity(f"{content} (and {others} more)" if others else content)
            case Message("advance", content):
                reporter.advance(content)
            case Message("detail", content):
                reporter.detail(content)
            case Message("announcement", content):
                announce(*content)
            case Message("printed", content):
                show_line(content)
            case Message(_, content):
                reporter.line(content)
            case Raised(error):
                raise error
            case Returned((cells, summary)):
                state.summary.add(summary)
                unfinished -= 1
                yield FinishedJob(
                    job=job,
                    keys=[cell.key() for cell in cells],
                    cells=cells,
                    summary=state.summary,
                    seconds=time.perf_counter() - state.began,
                    died=bool(job.already_begun),
                )
            case Died(reason):
                keys, summary = _after_death(job, state, reason, store, reporter)
                state.summary.add(summary)
                if state.cells and (len(keys) > 1 or not summary.failures):
                    state.cells, state.present = [], []
                    queue.appendleft(replace(job, already_begun=frozenset(keys)))
                else:
                    unfinished -= 1
                    yield FinishedJob(job=job, keys=keys, summary=state.summary, died=True)


def _after_death(
    job: ModelRunJob, state: _State, reason: str, store: Store, reporter: Reporter
) -> tuple[list[str], RunSummary]:
    """Store a failure for the cells at which a process died.

    Returns the keys of all cells begun so far, and what was done of those that this process began.
    """
    error = ModelFailure(f"its process {reason}")
    if not state.cells:
        line = f"{job.model} seed {job.seed}: {error}"
        return sorted(job.already_begun), RunSummary(failures=[line])
    described = environment(torch.device("cpu"), processes=job.processes)
    for cell in state.present:
        store.put(failed(cell, error, seconds=0.0, environment=described))
    done = [store.get(cell) for cell in state.cells]
    lines = [failure_line(record) for record in done if record is not None and record.status != "ok"]
    reporter.line(f"{job.model} seed {job.seed}: {error}; another process goes on after it")
    begun = dict.fromkeys([*sorted(job.already_begun), *(cell.key() for cell in state.cells)])
    return list(begun), RunSummary(done=len(done), failures=lines)


class _RemoteReporter:
    """A reporter that sends everything to the process that asked; progress is gathered for a moment."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._work, self._sent = 0.0, time.monotonic()

    def start(self, total: float, seconds: float | None = None) -> None:
        """Ignore: the total is known where the jobs come from."""

    def activity(self, what: str) -> None:
        """Name what is being done now."""
        self._send("activity", what)

    def advance(self, work: float) -> None:
        """Report work done, in estimated seconds."""
        self._work += work
        if time.monotonic() - self._sent > _REPORT_INTERVAL:
            self.flush()

    def line(self, text: str) -> None:
        """Show one line that stays."""
        self.flush()
        self._send("line", text)

    def detail(self, text: str) -> None:
        """Show one line about a single step, where the user asked for these."""
        self.flush()
        self._send("detail", text)

    def flush(self) -> None:
        """Send the progress gathered so far."""
        self._send("advance", self._work)
        self._work, self._sent = 0.0, time.monotonic()


def _run(send: Send, job: ModelRunJob) -> tuple[list[Cell], RunSummary]:
    """Do one job in this process; its cells, and what was done of them."""
    # What a model prints is printed by the process that asked, where it damages no progress bar.
    printed = LineStream(partial(send, "printed"))
    with telling(lambda *changed: send("announcement", changed)), redirect_stdout(printed):
        return _run_here(send, job)


def _run_here(send: Send, job: ModelRunJob) -> tuple[list[Cell], RunSummary]:
    set_ode_backend(job.request.ode_backend)
    torch.set_num_threads(job.threads)
    reporter = _RemoteReporter(send)
    plan, data = job.request.plan(), job.request.data()
    run = RunContext(
        plan=plan,
        data=data,
        store=Store(job.out),
        device=torch.device("cpu"),
        spec=next(spec for spec in plan.specs if spec.name == job.model),
        seed=job.seed,
        cost=job.cost,
        fresh=job.fresh,
        reporter=reporter,
        processes=job.processes,
        on_start=partial(send, "cells"),
        already_begun=job.already_begun,
    )
    cells = ModelRun(run).evaluate()
    reporter.flush()
    return cells, run.summary
