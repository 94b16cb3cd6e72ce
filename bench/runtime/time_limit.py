"""A time limit that also stops a model that sleeps or loops forever."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from ..._errors import TimeLimitExceeded

_active: list[Limit] = []
"""The limits of the blocks that run now, outermost first."""


@dataclass
class Limit:
    """The limit of a block that runs: seconds since it began, and what is said when they are over."""

    seconds: float
    what: str
    advice: str = ""
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.began + self.seconds - time.monotonic()

    def set(self, seconds: float) -> None:
        """Allow the block so many seconds, since it began."""
        self.seconds = seconds
        if self in _active:
            _arm()

    def error(self) -> TimeLimitExceeded:
        """What is raised in the block."""
        return TimeLimitExceeded(
            f"{self.what} took longer than its limit of {_in_words(self.seconds)}{self.advice}"
        )


@contextmanager
def time_limit(seconds: float, what: str, advice: str = "") -> Iterator[Limit]:
    """Raise `TimeLimitExceeded` in the block after `seconds` of wall time; they can be changed meanwhile.

    A block within another one has the limits of both.

    It uses the interval timer of POSIX, which interrupts Python code, sleeping included, in the main
    thread; elsewhere (other threads, Windows) the block runs without a limit. The timer repeats, so a
    model that swallows the first exception meets the next.
    """
    limit = Limit(seconds, what, advice)
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield limit
        return
    previous = signal.signal(signal.SIGALRM, _stop)
    _active.append(limit)
    _arm()
    try:
        yield limit
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _active.remove(limit)
        signal.signal(signal.SIGALRM, previous)
        _arm()


def _stop(_signal: int, _frame: FrameType | None) -> None:
    over = next((limit for limit in _active if limit.left <= 0), None)
    if over is not None:
        raise over.error()


def _arm() -> None:
    """Set the timer to the first of the limits; one that is over is due at once, and again each second."""
    if _active:
        signal.setitimer(signal.ITIMER_REAL, max(min(limit.left for limit in _active), 1e-3), 1.0)


def _in_words(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
