"""The results folder: where records lie, how they are written whole or not at all. No torch.

``<out>/records/<model>/*.json``, ``<out>/checkpoints/``, ``<out>/report/``, and ``<out>/set-aside/``
for records that could not be used. ``<out>/adversarial/<model>/*.npz`` holds the adversarial examples of a
record of the same name.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..._errors import InvalidArgument, RecordError
from .adversarial_examples import AdversarialExamples, pack
from .record import Cell, Record, from_json, to_json


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A record file that was not used, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class Store:
    """Records of one results folder.

    Parameters
    ----------
    folder
        The results folder; it is created on the first write, not before.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.records = self.folder / "records"
        self.checkpoints = self.folder / "checkpoints"
        self.adversarial = self.folder / "adversarial"
        self.report = self.folder / "report"

    def path(self, cell: Cell) -> Path:
        """Where the record of `cell` lies: readable first, unique by its key."""
        return self.records / cell.model / _file_name(cell)

    def checkpoint_path(self, cell: Cell) -> Path:
        """Where the weights that the training `cell` makes lie."""
        name = f"{cell.dataset}-seed{cell.training_seed}-{cell.key()[:12]}.safetensors"
        return self.checkpoints / cell.model / name

    def breaks_path(self, cell: Cell) -> Path:
        """Where the adversarial examples of `cell` lie, if they are kept: beside its record, so to speak."""
        return self.adversarial / cell.model / f"{self.path(cell).stem}.npz"

    def get(self, cell: Cell) -> Record | None:
        """Return the stored record of `cell`, or None.

        One that cannot be used counts as absent, and so does one whose adversarial examples are gone.
        """
        path = self.path(cell)
        try:
            record = from_json(path.read_text(encoding="utf-8"))
        except (OSError, RecordError, UnicodeDecodeError):
            return None
        gone = "adversarial" in record.card and not self.breaks_path(cell).exists()
        return None if gone or record.cell.key() != cell.key() else record

    def put(self, record: Record) -> Path:
        """Write `record`, replacing an earlier one of the same cell, and return its path."""
        path = self.path(record.cell)
        write_atomically(path, to_json(record).encode())
        return path

    def put_breaks(self, cell: Cell, breaks: AdversarialExamples) -> dict[str, Any]:
        """Write the adversarial examples of `cell`; returns what its record's card says of them."""
        path, data = self.breaks_path(cell), pack(breaks)
        write_atomically(path, data)
        return {
            "file": path.relative_to(self.folder).as_posix(),
            "sha256": hashlib.sha256(data).hexdigest(),
            "count": len(breaks),
        }

    def load(self) -> tuple[list[Record], list[Problem]]:
        """Read every record, in a fixed order; what cannot be used is returned as problems."""
        records: list[Record] = []
        problems: list[Problem] = []
        for path in sorted(self.records.glob("*/*.json")):
            if path.name.startswith("."):
                continue
            try:
                record = from_json(path.read_text(encoding="utf-8"))
                if (path.parent.name, path.name) != (record.cell.model, _file_name(record.cell)):
                    raise RecordError("its name does not match its content")
            except (RecordError, OSError, ValueError, TypeError) as error:
                problems.append(Problem(path=path, reason=str(error)))
            else:
                records.append(record)
        return records, problems

    def set_aside(self, problems: list[Problem]) -> None:
        """Move unusable records to ``set-aside/`` so that their cells are done again."""
        for problem in problems:
            target = self.folder / "set-aside" / problem.path.parent.name / problem.path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(problem.path, target)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one run; a second run of the same folder is refused."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise InvalidArgument(f"{self.folder} is or lies in a file: choose a folder with --out") from None
        lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise InvalidArgument(
                f"another run is writing to {self.folder}: wait for it, or choose another --out"
            ) from None
        try:
            for stale in self.folder.rglob(".tmp-*"):
                stale.unlink(missing_ok=True)
            yield
        finally:
            lock.release()


def _file_name(cell: Cell) -> str:
    what = cell.kind if cell.kind == "training" else f"{cell.threat}-{cell.strength:g}"
    return f"{cell.dataset}-{what}-seed{cell.training_seed}-{cell.key()[:12]}.json"
