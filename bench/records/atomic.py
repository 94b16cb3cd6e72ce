"""Writing that a crash cannot spoil: the whole file or the old one, lines that are added on disk."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from pathlib import Path

_TEMPORARY = re.compile(r"\.tmp-([0-9a-f]{16})-([0-9a-f]{16})")


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / temporary_name()
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_name() -> str:
    """A name for a file that is not whole yet; its second half follows from the first."""
    begin = secrets.token_hex(8)
    return f".tmp-{begin}-{_end(begin)}"


def is_temporary(name: str) -> bool:
    """Whether `temporary_name` gave this name, rather than somebody else one that looks alike."""
    found = _TEMPORARY.fullmatch(name)
    return found is not None and found[2] == _end(found[1])


def _end(begin: str) -> str:
    return hashlib.sha256(f"robustode {begin}".encode()).hexdigest()[:16]


def move_file(path: Path, target: Path) -> Path:
    """Move a file to `target`, or to a name like it where that is taken; its new path."""
    free, n = target, 1
    while os.path.lexists(free):
        n += 1
        free = target.with_name(f"{target.stem}-{n}{target.suffix}")
    free.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, free)
    return free


def append_durably(file: int, data: bytes) -> None:
    """Add `data` to a file opened for reading and appending, on its own line; on disk when this returns.

    What the disk has no room for is taken back.
    """
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":
        data = b"\n" + data
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(file, left) :]
        os.fsync(file)
    except OSError:
        os.ftruncate(file, size)
        raise
