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
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

import torch

from ..._errors import ModelFailure
from ...models.ode.kernels.fixed_step import SWITCH
from ..config.run_request import Request
from ..evaluation.accuracy import failed
from ..records.record import Cell
from ..records.store import Store
from ..runtime.device import environment, share_machine
from ..runtime.memory import free_memory
from ..runtime.progress import Reporter
from .cost_estimate import Cost
from .model_run import Outcome, Unit

MEMORY = 2 * 2**30
"""Bytes of free memory that each process is allowed for: torch, a dataset and a batch of an attack."""

_PATIENCE = 10.0
"""Seconds that a process is given to end once it has said its last word."""
_SPARING = 0.1
"""Seconds between reports of progress from one process."""


def side_by_side(units: int) -> int:
    """How many processes `units` units are best given here: one a thread of torch's, as memory allows."""
    return max(1, min(units, torch.get_num_threads(), free_memory() // MEMORY))


def at_once(units: int, device: torch.device, jobs: int | None) -> int:
    """How many processes a run of `units` units has, `jobs` asked for: a GPU serves one after the other."""
    return max(1, min(jobs or side_by_side(units), units)) if device.type == "cpu" else 1


@dataclass(frozen=True, kw_only=True)
class Job:
    """One unit, and all that its process must know.

    Attributes
    ----------
    switch
        The value of the environment variable `SWITCH`: a server that forks processes keeps an older one.
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
    folder: Path
    switch: str
    settled: frozenset[str] = frozenset()


@dataclass(kw_only=True)
class _Worker:
    job: Job
    process: BaseProcess
    cells: list[Cell] = field(default_factory=list)
    present: list[Cell] = field(default_factory=list)
    before: Outcome = field(default_factory=Outcome)


def run_jobs(
    jobs: Sequence[Job], store: Store, reporter: Reporter, *, processes: int
) -> Iterator[tuple[Job, list[str], Outcome, bool]]:
    """Do `jobs`, at most `processes` at once; yields each as it ends: keys of its cells, outcome, whether
    its process lived to the end.

    A cell at which a process ends, or a threat's strengths, is stored as failed, and another process goes on
    with the cells after it.
    An error of the harness itself, such as a full disk, is raised here. When the caller stops, so do the
    processes.
    """
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([__name__])
    waiting, live = deque((job, Outcome()) for job in jobs), dict[Connection, _Worker]()
    try:
        while waiting or live:
            while waiting and len(live) < processes:
                ours, theirs = context.Pipe(duplex=False)
                job, before = waiting.popleft()
                process = context.Process(target=_serve, args=(job, theirs))  # type: ignore[attr-defined]
                process.start()
                theirs.close()
                live[ours] = _Worker(job=job, process=process, before=before)
            for ready in wait(list(live)):
                connection = cast(Connection, ready)
                worker = live[connection]
                try:
                    kind, content = connection.recv()
                except (EOFError, OSError):
                    kind, content = "died", None
                if kind in ("end", "died"):
                    del live[connection]
                    worker.process.join(_PATIENCE)
                    worker.process.terminate()  # a thread of the model's may hold it
                    keys, outcome = content or _died(worker, store, reporter)
                    worker.before.add(outcome)
                    if kind == "died" and len(keys) > 1 and worker.cells:
                        waiting.appendleft((replace(worker.job, settled=frozenset(keys)), worker.before))
                    else:
                        yield worker.job, keys, worker.before, kind == "end" and not worker.job.settled
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
    if kind == "cells":
        worker.cells += content
        worker.present = content
    elif kind == "doing":
        others = len(live) - 1
        reporter.doing(f"{content} (and {others} more)" if others else content)
    elif kind == "advance":
        reporter.advance(content)
    else:
        reporter.say(content)


def _died(worker: _Worker, store: Store, reporter: Reporter) -> tuple[list[str], Outcome]:
    """What is left of a unit whose process ended by itself: what it did, and a failure of what it was at.

    The keys are those of all cells begun so far.
    """
    worker.process.join()
    code, job = worker.process.exitcode or 0, worker.job
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}"
    error = ModelFailure(f"its process {how}")
    if not worker.cells:
        line = f"{job.model} seed {job.seed}: {error}"
        reporter.say(f"failed: {line}")
        return sorted(job.settled), Outcome(failures=[line])
    for cell in worker.present:
        store.put(failed(cell, error, seconds=0.0, environment=environment(torch.device("cpu"))))
    done = [store.get(cell) for cell in worker.cells]
    lines = [f"{r.cell.label()}: {r.status}: {r.error}" for r in done if r is not None and r.status != "ok"]
    reporter.say(f"failed: {lines[-1]}")
    begun = dict.fromkeys([*sorted(job.settled), *(cell.key() for cell in worker.cells)])
    return list(begun), Outcome(done=len(done), failures=lines)


class _Remote:
    """A reporter at the other end of a pipe; progress is gathered for a moment before it is sent."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._work, self._sent = 0.0, time.monotonic()

    def start(self, total: float) -> None:
        """Ignore: the whole is the parent's business."""

    def doing(self, what: str) -> None:
        """Name what is being done now."""
        self.send("doing", what)

    def advance(self, work: float) -> None:
        """Report work done."""
        self._work += work
        if time.monotonic() - self._sent > _SPARING:
            self.flush()

    def say(self, line: str) -> None:
        """Show one line that stays."""
        self.flush()
        self.send("say", line)

    def flush(self) -> None:
        """Send the progress gathered so far."""
        self.send("advance", self._work)
        self._work, self._sent = 0.0, time.monotonic()

    def send(self, kind: str, content: Any) -> None:
        """Tell the parent; without one there is nobody left to work for, and no failure to be recorded."""
        try:
            self._pipe.send((kind, content))
        except BrokenPipeError:
            os._exit(130)


def _serve(job: Job, pipe: Connection) -> None:
    """Do one job in this process and tell the parent about it."""
    _end_with_parent()
    os.chdir(job.folder)
    os.environ[SWITCH] = job.switch
    torch.set_num_threads(job.threads)
    share_machine(job.processes)
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
            on_cells=partial(remote.send, "cells"),
            settled=job.settled,
        )
        keys = unit.evaluate()
        remote.flush()
        remote.send("end", (keys, unit.outcome))
    except KeyboardInterrupt:
        os._exit(130)
    except Exception as error:
        remote.send("raise", _portable(error))


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
