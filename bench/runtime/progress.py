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

    def start(self, total: float) -> None:
        """Announce the whole work."""

    def doing(self, what: str) -> None:
        """Name what is being done now."""

    def advance(self, work: float) -> None:
        """Report work done."""

    def say(self, line: str) -> None:
        """Show one line that stays."""


class Quiet:
    """Says nothing; for ``--quiet``, notebooks and tests."""

    def start(self, total: float) -> None:
        """Ignore."""

    def doing(self, what: str) -> None:
        """Ignore."""

    def advance(self, work: float) -> None:
        """Ignore."""

    def say(self, line: str) -> None:
        """Ignore."""


class _Clock:
    """Time left from the work done so far and the time it took."""

    def __init__(self) -> None:
        self.total = 0.0
        self.done = 0.0
        self.began = time.monotonic()

    def start(self, total: float) -> None:
        self.total, self.done, self.began = total, 0.0, time.monotonic()

    @property
    def fraction(self) -> float:
        return min(self.done / self.total, 1.0) if self.total else 1.0

    def left(self) -> str:
        """Estimated work left, at the pace seen so far; early on the estimate itself counts most."""
        elapsed, prior = time.monotonic() - self.began, 0.05 * self.total
        pace = (elapsed + prior) / (self.done + prior) if self.total else 1.0
        return duration(pace * max(self.total - self.done, 0))


class Terminal:
    """A live bar on a terminal and in a notebook with ipywidgets, which rich draws bars with there.

    Where output is a pipe, or a notebook without them, one timed line for each finished curve.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._clock = _Clock()
        self._bar: Progress | None = None
        if console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None):
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]} left", markup=False),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("starting", total=None, left="")

    def __enter__(self) -> Terminal:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def start(self, total: float) -> None:
        """Announce the whole work, in estimated seconds."""
        self._clock.start(total)
        if self._bar:
            self._bar.update(self._task, total=total, completed=0, left=self._clock.left())

    def doing(self, what: str) -> None:
        """Name what is being done now."""
        if self._bar:
            self._bar.update(self._task, description=what)

    def advance(self, work: float) -> None:
        """Report work done, in estimated seconds."""
        self._clock.done += work
        if self._bar:
            self._bar.update(
                self._task, completed=min(self._clock.done, self._clock.total), left=self._clock.left()
            )

    def say(self, line: str) -> None:
        """Show one line that stays; in a pipe with the share done and the time left before it."""
        if self._bar:
            self._bar.console.print(Text(line))
        else:
            print(f"[{self._clock.fraction:4.0%}, {self._clock.left()} left] {line}", flush=True)


def shown(progress: bool | None = None) -> AbstractContextManager[Reporter]:
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
