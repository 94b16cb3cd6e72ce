"""The file of the records of one model and training seed: append, read, clear of damage. No torch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..._errors import InvalidArgument, RecordError
from .atomic import append_durably, write_atomically
from .lines import line_key, read_line, read_record, write_record
from .record import Cell, Record

with suppress(ImportError):  # Windows has none
    import fcntl

SUFFIX = ".jsonl"


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A file of a results folder, or one line of it (counted from 1), that cannot be used, and why."""

    path: Path
    reason: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"{self.path} line {self.line}" if self.line else str(self.path)
        return f"{where}: {self.reason}"


@dataclass(kw_only=True)
class _Content:
    """What a file held when it was read; lines are counted from 0.

    `latest` is the line of each key that counts. `bodies` are the members of the lines of records, `shared`
    what records have in common, and `copies` how often the file holds it.
    """

    lines: list[bytes] = field(default_factory=list)
    latest: dict[str, int] = field(default_factory=dict)
    bodies: dict[int, dict[str, Any]] = field(default_factory=dict)
    shared: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    copies: Counter[str] = field(default_factory=Counter)
    reasons: dict[int, str] = field(default_factory=dict)


class RecordFile:
    """The records of one model and training seed, one per line; a later one of the same key supersedes.

    Reading changes nothing. What was read is kept until the file changes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, ...] | None = None
        self._content = _Content()

    def get(self, cell: Cell) -> Record | None:
        """The record of `cell`; None where there is none that can be used.

        Raises
        ------
        InvalidArgument
            When a line is of a schema that this version does not know.
        """
        content = self._read()
        number = content.latest.get(line_key(cell))
        if number is None:
            return None
        with suppress(RecordError):
            return self._record(content, number)
        return None

    def load(self) -> tuple[list[Record], list[Damage]]:
        """The records that count, in the order of their lines, and the lines that cannot be used."""
        content = self._read()
        records, reasons = [], dict(content.reasons)
        for number in content.latest.values():
            try:
                records.append(self._record(content, number))
            except RecordError as error:
                reasons[number] = str(error)
        damages = [Damage(path=self.path, line=n + 1, reason=reasons[n]) for n in sorted(reasons)]
        return records, damages

    def append(self, record: Record) -> None:
        """Add `record` as the last line, on disk when this returns.

        A line that was cut before gets its line end first, so that no other line is spoiled by it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path) as file:
            lines, _ = write_record(record, self._read().copies)
            append_durably(file, lines)

    def clear(self, aside: Path) -> list[Damage]:
        """Move the lines that cannot be used to the file `aside`, drop superseded ones; what was moved."""
        if not self.path.exists():
            return []
        with _locked(self.path):
            _, damages = self.load()
            content = self._read()
            bad = {damage.line - 1 for damage in damages if damage.line}
            superseded = content.bodies.keys() - set(content.latest.values())
            if bad:
                aside.parent.mkdir(parents=True, exist_ok=True)
                with open(aside, "ab+") as file:
                    append_durably(file.fileno(), b"".join(content.lines[n] + b"\n" for n in sorted(bad)))
            if bad or superseded:
                keep = [line for n, line in enumerate(content.lines) if line and n not in bad | superseded]
                write_atomically(self.path, b"".join(line + b"\n" for line in keep))
        return damages

    def discard(self, drop: Callable[[Cell], bool]) -> list[Cell]:
        """Remove the records of the cells of which `drop` is true; these cells."""
        with _locked(self.path):
            gone = [record.cell for record in self.load()[0] if drop(record.cell)]
            keys, content = set(map(line_key, gone)), self._read()
            lines = {n for n, body in content.bodies.items() if body["key"] in keys}
            keep = [line for n, line in enumerate(content.lines) if line and n not in lines]
            write_atomically(self.path, b"".join(line + b"\n" for line in keep))
        return gone

    def _record(self, content: _Content, number: int) -> Record:
        record = read_record(content.bodies[number], content.shared)
        if path_of(self.path.parent.parent, record.cell) != self.path:
            raise RecordError("it belongs into the file of another model or training seed")
        return record

    def _read(self) -> _Content:
        """What the file holds now."""
        try:
            stat = self.path.stat()
            seen = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if seen != self._seen:
                self._content = self._parse(self.path.read_bytes())
                self._seen = seen
        except (FileNotFoundError, NotADirectoryError):
            self._content, self._seen = _Content(), None
        return self._content

    def _parse(self, data: bytes) -> _Content:
        content = _Content(lines=data.split(b"\n"))
        if not content.lines[-1]:
            content.lines.pop()
        for number, line in enumerate(content.lines):
            if not line:
                continue
            try:
                body = read_line(line)
                if "shared" in body:
                    content.copies[body["shared"]] += 1
                    content.shared[body["shared"]] = body["content"]
                else:
                    content.bodies[number] = body
                    content.latest[body["key"]] = number
            except InvalidArgument as error:
                raise InvalidArgument(f"{self.path} line {number + 1}: {error}") from None
            except RecordError as error:
                content.reasons[number] = str(error)
            except (KeyError, TypeError) as error:
                content.reasons[number] = f"not a line of records ({type(error).__name__}: {error})"
        return content


def path_of(folder: Path, cell: Cell) -> Path:
    """Where the record of `cell` lies in the `folder` of records."""
    return folder / cell.model / f"seed{cell.training_seed}{SUFFIX}"


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The file open for appending, made if it is not there, while no other process holds it so."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if "fcntl" in globals():
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file), os.stat(path)):  # else it was replaced while we waited
                yield file
                return
        finally:
            os.close(file)
