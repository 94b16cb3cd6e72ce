"""A time limit that also stops a model that sleeps or loops forever."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..._errors import TimeLimitExceeded


@contextmanager
def time_limit(seconds: float, what: str, advice: str = "") -> Iterator[None]:
    """Raise `TimeLimitExceeded` in the block after `seconds` of wall time.

    It uses the interval timer of POSIX, which interrupts Python code, sleeping included, in the main
    thread; elsewhere (other threads, Windows) the block runs without a limit. The timer repeats, so a
    model that swallows the first exception meets the next.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TimeLimitExceeded(f"{what} took longer than its limit of {seconds:.3g} s{advice}")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
