"""Which files other people's code reads: weights, tables, settings that it opens when it is imported or run.

Python tells of every file that is opened. While `foreign_code` runs, the files that code outside of installed
packages opens for reading are noted, by whose code opened them: what a file has cached, it has read, too.
Not seen are files that C code opens by itself, and those that other processes open.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from ...attacks.core.torch_settings import guard
from ...models import ModelSpec
from ..records.model_files import label_from
from .code_places import is_installed, is_ours

_WRITING = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
_OF_THE_SYSTEM = ("/proc/", "/dev/", "/sys/", "/etc/", "/run/")
_IMPORTING = "<frozen importlib"

_read: dict[str, dict[Path, str]] = {}  # by the file of the code: what it read, and its hash
_written: set[Path] = set()
_updated: set[Path] = set()  # opened to be read and written, as `numpy.memmap` does
_seen: dict[Path, tuple[tuple[int, ...], str]] = {}  # state of a file, and its hash then
_busy = threading.local()


def files_read(spec: ModelSpec, outside: Collection[Path] = ()) -> dict[str, str]:
    """Return the files that the code of `spec` has read so far, and their hashes.

    They are named as seen from the folder of the model's file, or from the user's home, or in full. Left out
    are its source, what it also writes, what is gone, and what lies in a folder of `outside`. The hash of a
    file that was looked for and was not there is empty.
    """
    if spec.in_package:
        return {}
    found: dict[str, str] = {}
    for file, sha256 in _reached([*spec.sources, _code_file(spec.build)]).items():
        now = file_sha256(file)
        kept = file not in _written and (file not in _updated or now == sha256) and (now or not sha256)
        if kept and file not in spec.sources and not any(file.is_relative_to(f) for f in outside):
            found[label_from(file, _folder(spec))] = sha256
    return dict(sorted(found.items()))


def changed_files(files: Mapping[str, str], spec: ModelSpec) -> list[str]:
    """Return those of `files`, as `files_read` gives them, that are not as they were."""
    folder = _folder(spec)
    return [name for name, known in files.items() if file_sha256(folder / Path(name).expanduser()) != known]


@dataclass(frozen=True)
class FilesRead:
    """What the code of `spec` reads, but for what lies in a folder of `outside`."""

    spec: ModelSpec
    outside: tuple[Path, ...] = ()

    def so_far(self) -> dict[str, str]:
        """The files and their hashes, see `files_read`."""
        return files_read(self.spec, self.outside)

    def are_still(self, files: Mapping[str, str]) -> bool:
        """Whether `files` that were read before are as they were."""
        return not changed_files(files, self.spec)


def forget_reads(sources: Collection[Path], but: Collection[Path] = ()) -> None:
    """Forget what `sources` have read, and the modules that were imported so; not of the code of `but`."""
    read = {str(file) for file in _reached(sources) if file not in but}
    for file in read | {str(file) for file in sources if file not in but}:
        _read.pop(file, None)
    for name, module in list(sys.modules.items()):
        place = getattr(module, "__file__", None)
        if place in read and Path(place) not in sources and not is_ours(name):
            del sys.modules[name]


def _reached(code: Iterable[Path]) -> dict[Path, str]:
    """What `code` has read, and what the code that it has read, to import it, has."""
    found: dict[Path, str] = {}
    left = list(code)
    while left:
        for file, sha256 in _read.get(str(left.pop()), {}).items():
            if file not in found:
                found[file] = sha256
                left.append(file)
    return found


def _code_file(build: Callable[..., Any]) -> Path:
    code = getattr(inspect.unwrap(build), "__code__", None)
    return Path(os.path.abspath(code.co_filename if code else "unknown"))


def _folder(spec: ModelSpec) -> Path:
    return spec.folder or _code_file(spec.build).parent


def file_sha256(file: Path) -> str:
    """The hash of a file, read where it has changed; empty where there is none."""
    try:
        stat = file.stat()
        state = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if file not in _seen or _seen[file][0] != state:
            with file.open("rb") as content:
                _seen[file] = state, hashlib.file_digest(content, "sha256").hexdigest()
    except OSError:
        return ""
    return _seen[file][1]


# --- what Python tells ----------------------------------------------------------------------------


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not guard.depth or getattr(_busy, "now", False):
        return
    _busy.now = True
    try:
        name, _, flags = arguments
        _note(name, flags, sys._getframe(1))
    except (OSError, ValueError, TypeError):  # nothing that can be opened
        pass
    finally:
        _busy.now = False


def _note(name: Any, flags: int, frame: FrameType | None) -> None:
    if isinstance(name, int):
        return
    file = Path(os.path.abspath(os.fsdecode(name)))
    if flags & _WRITING:
        _written.add(file)
        return
    if flags & os.O_RDWR:
        _updated.add(file)
    if file.parent.name == "__pycache__":
        file = Path(importlib.util.source_from_cache(str(file)))
    if str(file).startswith(_OF_THE_SYSTEM) or is_installed(str(file)):
        return
    if file.exists() and not file.is_file():
        return
    reader = _reader(frame)
    if reader is not None:
        known, sha256 = _read.setdefault(reader, {}), file_sha256(file)
        if known.setdefault(file, sha256) != sha256:
            known[file] = hashlib.sha256(f"{known[file]} {sha256}".encode()).hexdigest()  # it was both


def _reader(frame: FrameType | None) -> str | None:
    """The file of the code that opens a file; None where a library does when it is imported, or we do."""
    importing = frame is not None and frame.f_code.co_filename.startswith(_IMPORTING)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_IMPORTING) and not importing:
            return None
        if is_ours(frame.f_globals.get("__name__") or ""):
            return None
        if not file.startswith("<") and not is_installed(file):
            return _absolute(file)
        frame = frame.f_back
    return None


@cache
def _absolute(file: str) -> str:
    return os.path.abspath(file)


sys.addaudithook(_hook)
