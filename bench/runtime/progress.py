"""What a person sees while a run goes on: a bar with the time left, or plain lines in a pipe."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text


class Reporter(Protocol):
    """Receives what a run does. Work is measured in estimated seconds."""

    def start(self, total: float, seconds: float | None = None) -> None:
        """Announce the whole work, and how long it takes where parts of it are done side by side."""

    def activity(self, what: str) -> None:
        """Name what is being done now."""

    def advance(self, work: float) -> None:
        """Report work done."""

    def line(self, text: str) -> None:
        """Show one line that stays."""

    def detail(self, text: str) -> None:
        """Show one line about a single step, where the user asked for these."""


class Quiet:
    """Shows nothing; for ``--quiet``, notebooks and tests."""

    def start(self, total: float, seconds: float | None = None) -> None:
        """Ignore."""

    def activity(self, what: str) -> None:
        """Ignore."""

    def advance(self, work: float) -> None:
        """Ignore."""

    def line(self, text: str) -> None:
        """Ignore."""

    def detail(self, text: str) -> None:
        """Ignore."""


PRIOR = 20.0
"""Seconds for which the estimate counts as much as what is measured."""


class _Clock:
    """Time left from the work done so far and the time it took."""

    def __init__(self) -> None:
        self.start(0.0)

    def start(self, total: float, seconds: float | None = None) -> None:
        self.total, self.done, self.began = total, 0.0, time.monotonic()
        self.seconds = total if seconds is None else seconds

    @property
    def fraction(self) -> float:
        return min(self.done / self.total, 1.0) if self.total else 1.0

    def left(self) -> str:
        """Estimated time left, at the pace seen so far; early on the estimate itself counts most."""
        if not self.total:
            return duration(0.0)
        elapsed, prior = time.monotonic() - self.began, min(0.05 * self.seconds, PRIOR)
        pace = (elapsed + prior) / (self.done + prior * self.total / max(self.seconds, 1e-9))
        return duration(pace * max(self.total - self.done, 0))


INTERVAL = 60.0
"""Seconds between plain lines of progress where there is no bar."""


class Terminal:
    """A bar with the time left on a terminal, and in a notebook with ipywidgets; lines stay above it.

    Into a pipe, a file or a dumb terminal go plain lines, each with the share done and the time left, and one
    at least every `INTERVAL` seconds in which something advances: no escape codes, no carriage returns.

    Parameters
    ----------
    verbose
        Show details too.
    """

    def __init__(self, console: Console, *, verbose: bool = False) -> None:
        self._verbose = verbose
        self._clock = _Clock()
        self._activity, self._printed = "starting", time.monotonic()
        self._bar: Progress | None = None
        live = console.is_terminal and not console.is_dumb_terminal
        if live or (console.is_jupyter and find_spec("ipywidgets") is not None):
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]} left", markup=False),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(self._activity, total=None, left="")

    def __enter__(self) -> Terminal:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def start(self, total: float, seconds: float | None = None) -> None:
        """Announce the whole work, in estimated seconds, and how long it takes from now on."""
        self._clock.start(total, seconds)
        if self._bar:
            self._bar.update(self._task, total=total, completed=0, left=self._clock.left())

    def activity(self, what: str) -> None:
        """Name what is being done now."""
        self._activity = what
        if self._bar:
            self._bar.update(self._task, description=what)

    def advance(self, work: float) -> None:
        """Report work done, in estimated seconds."""
        self._clock.done += work
        if self._bar:
            self._bar.update(
                self._task, completed=min(self._clock.done, self._clock.total), left=self._clock.left()
            )
        elif time.monotonic() - self._printed >= INTERVAL:
            self.line(self._activity)

    def line(self, text: str) -> None:
        """Show one line that stays; without a bar, the share done and the time left come first."""
        self._printed = time.monotonic()
        if self._bar:
            self._bar.console.print(Text(text))
        else:
            print(f"[{self._clock.fraction:4.0%}, {self._clock.left()} left] {text}", flush=True)

    def detail(self, text: str) -> None:
        """Show one line about a single step, where the user asked for these."""
        if self._verbose:
            self.line(text)


def reporter_for_call(progress: bool | None = None) -> AbstractContextManager[Reporter]:
    """A reporter for a call from Python: True shows, False is silent, None asks where output goes."""
    console = Console()
    if progress is None:
        progress = console.is_terminal or console.is_jupyter
    return Terminal(console) if progress else nullcontext(Quiet())


def duration(seconds: float) -> str:
    """A span of time for people: ``12 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(max(seconds, 0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
