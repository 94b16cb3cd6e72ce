"""Lines that tell a user, once each, what other people's code changed. No torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..._errors import ForeignCodeWarning


def _warn(line: str) -> None:
    warnings.warn(line, ForeignCodeWarning, stacklevel=3)


_tellers: list[tuple[Callable[[str], None], set[str]]] = [(_warn, set())]


@contextmanager
def telling(tell: Callable[[str], None]) -> Iterator[None]:
    """For a block, have `tell` called with each line; elsewhere a line is a `ForeignCodeWarning`."""
    _tellers.append((tell, set()))
    try:
        yield
    finally:
        _tellers.pop()


def announce(line: str) -> None:
    """Tell the user `line`, unless it was told before in this `telling`."""
    tell, told = _tellers[-1]
    if line not in told:
        told.add(line)
        tell(line)
