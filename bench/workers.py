"""Units side by side, each in a process of its own with its share of the threads.

A process costs a fork of a server that has torch loaded already, and keeps whatever a model does to it to
itself: one that ends is a failure of its cell, and the others go on. Timings are not done here: they need
the machine for themselves.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from .._errors import ModelFailure
from .device import environment
from .estimate import Cost
from .evaluate import failed
from .progress import Reporter
from .records import Cell
from .request import Request
from .store import Store
from .unit import Outcome, Unit

MEMORY = 2 * 2**30
"""Bytes of free memory that each process is allowed for: torch, a dataset and a batch of an attack."""

_SPARING = 0.1
"""Seconds between reports of progress from one process."""


def side_by_side(units: int) -> int:
    """How many processes `units` units are best given here: one a thread of torch's, as memory allows."""
    return max(1, min(units, torch.get_num_threads(), _free_memory() // MEMORY))


def _free_memory() -> int:
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))
    return 64 * MEMORY


@dataclass(frozen=True, kw_only=True)
class Job:
    """One unit, and all that its process must know."""

    request: Request
    model: str
    seed: int
    out: Path
    fresh: bool
    cost: Cost
    threads: int
    folder: Path


@dataclass(kw_only=True)
class _Worker:
    job: Job
    process: BaseProcess
    doing: str = ""
    cell: Cell | None = None


def run_jobs(
    jobs: Sequence[Job], store: Store, reporter: Reporter, *, processes: int
) -> Iterator[tuple[Job, list[str], Outcome]]:
    """Do `jobs`, at most `processes` at once; yields each with its cells' keys and outcome as it ends.

    An error of the harness itself, such as a full disk, is raised here. When the caller stops, so do the
    processes.
    """
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([__name__])
    waiting, live = deque(jobs), dict[Connection, _Worker]()
    try:
        while waiting or live:
            while waiting and len(live) < processes:
                ours, theirs = context.Pipe(duplex=False)
                job = waiting.popleft()
                process = context.Process(target=_serve, args=(job, theirs), daemon=True)  # type: ignore[attr-defined]
                process.start()
                theirs.close()
                live[ours] = _Worker(job=job, process=process)
            for connection in wait(list(live)):
                assert isinstance(connection, Connection)
                worker = live[connection]
                try:
                    kind, content = connection.recv()
                except (EOFError, OSError):
                    kind, content = "died", None
                if kind in ("end", "died"):
                    del live[connection]
                    worker.process.join()
                    yield (worker.job, *(content or _died(worker, store, reporter)))
                elif kind == "raise":
                    raise content
                else:
                    _pass_on(kind, content, worker, list(live.values()), reporter)
    finally:
        for worker in live.values():
            worker.process.terminate()
        for worker in live.values():
            worker.process.join()


def _pass_on(kind: str, content: Any, worker: _Worker, live: list[_Worker], reporter: Reporter) -> None:
    if kind == "cell":
        worker.cell = content
    elif kind == "doing":
        others = len(live) - 1
        reporter.doing(f"{content} (and {others} more)" if others else content)
    elif kind == "advance":
        reporter.advance(content)
    else:
        reporter.say(content)


def _died(worker: _Worker, store: Store, reporter: Reporter) -> tuple[list[str], Outcome]:
    """What is left of a unit whose process ended by itself: a failure of the cell it was at."""
    code, job = worker.process.exitcode or 0, worker.job
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}"
    error = ModelFailure(f"its process {how}; the cells after this one were not done")
    if worker.cell is None:
        return [], Outcome(failures=[f"{job.model} seed {job.seed}: {error}"])
    record = failed(worker.cell, error, seconds=0.0, environment=environment(torch.device("cpu")))
    store.put(record)
    line = f"{record.cell.label()}: {record.status}: {record.error}"
    reporter.say(f"failed: {line}")
    return [record.cell.key()], Outcome(done=1, failures=[line])


class _Remote:
    """A reporter at the other end of a pipe; progress is gathered for a moment before it is sent."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._work, self._sent = 0.0, time.monotonic()

    def start(self, total: float) -> None:
        """Ignore: the whole is the parent's business."""

    def doing(self, what: str) -> None:
        """Name what is being done now."""
        self._pipe.send(("doing", what))

    def advance(self, work: float) -> None:
        """Report work done."""
        self._work += work
        if time.monotonic() - self._sent > _SPARING:
            self.flush()

    def say(self, line: str) -> None:
        """Show one line that stays."""
        self.flush()
        self._pipe.send(("say", line))

    def flush(self) -> None:
        """Send the progress gathered so far."""
        self._pipe.send(("advance", self._work))
        self._work, self._sent = 0.0, time.monotonic()


def _serve(job: Job, pipe: Connection) -> None:
    """Do one job in this process and tell the parent about it."""
    _end_with_parent()
    os.chdir(job.folder)
    torch.set_num_threads(job.threads)
    remote = _Remote(pipe)
    try:
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
            reporter=remote,
            on_cell=lambda cell: pipe.send(("cell", cell)),
        )
        keys = unit.evaluate()
        remote.flush()
        pipe.send(("end", (keys, unit.outcome)))
    except (KeyboardInterrupt, BrokenPipeError):
        os._exit(130)
    except Exception as error:
        pipe.send(("raise", _portable(error)))


def _portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _end_with_parent() -> None:
    """End this process when its parent has: a killed run must not go on writing."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
