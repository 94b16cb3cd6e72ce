"""What a command prints: on every console, and what a model prints while it is built once. No torch."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout

_shown: list[set[str]] = []


def replace_unknown_characters() -> None:
    """Print ``?`` for what a console cannot show, such as ℓ on one with cp1252, instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@contextmanager
def each_line_once() -> Iterator[None]:
    """For a block, have `show_line` show each line once, and `printing_once` pass on no other."""
    _shown.append(set())
    try:
        yield
    finally:
        _shown.pop()


def show_line(line: str) -> None:
    """Print what a model printed in another process, unless it was shown before."""
    if _is_new(line):
        print(line)


@contextmanager
def printing_once() -> Iterator[None]:
    """While a model is built, pass each line that it prints on once; outside `each_line_once` all of them."""
    stdout = sys.stdout
    stream = LineStream(lambda line: print(line, file=stdout) if _is_new(line) else None) if _shown else None
    try:
        with redirect_stdout(stream) if stream else nullcontext():
            yield
    finally:
        if stream:
            stream.finish()


def _is_new(line: str) -> bool:
    if not _shown:
        return True
    new = line not in _shown[-1]
    _shown[-1].add(line)
    return new


class LineStream(io.TextIOBase):
    """A stream that calls `on_line` with each complete line that is written to it, without its end."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line, self._begun = on_line, ""

    def writable(self) -> bool:
        """Whether it can be written to."""
        return True

    def write(self, text: str) -> int:
        """Pass on the lines that `text` completes."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._on_line(line)
        return len(text)

    def finish(self) -> None:
        """Pass on a line without an end."""
        if self._begun:
            self.write("\n")
