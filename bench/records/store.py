"""The results folder: what lies where, and who may write. No torch.

``<out>/records/<model>/seed<k>.jsonl``
    The records of one model and training seed, one per line (see `lines`).
``<out>/adversarial/<model>/seed<k>.zip``
    Their adversarial examples (see `examples_archive`).
``<out>/checkpoints/<model>/*.safetensors.xz``
    Weights: safetensors in xz (see `checkpoint`).
``<out>/plan.json``, ``<out>/report/``, ``<out>/set-aside/``
    What the last runs asked for; tables, page and figures (see `report_files`); what was moved out of the
    way: damaged lines, a plan that cannot be read, files that were in the way of a report.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..._errors import InvalidArgument
from . import examples_archive
from .adversarial_examples import AdversarialExamples
from .atomic import is_temporary, move_file
from .foreign_files import FOLDERS, LOCK, holds_schema_1, refuse_foreign_files
from .record import Cell, Record
from .record_file import SUFFIX, Damage, RecordFile, path_of

UPGRADED = "upgrade"
"""Folder in a results folder where an upgrade makes the new files."""
COMPLETE = "complete"
"""File in that folder that says that all of them are made and checked."""


class Store:
    """Records, adversarial examples and checkpoints of one results folder.

    Whoever writes holds `lock`. Reading changes nothing.

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
        self._files: dict[Path, RecordFile] = {}
        self._current = False

    def path(self, cell: Cell) -> Path:
        """The file of the records of the model and training seed of `cell`."""
        return path_of(self.records, cell)

    def checkpoint_path(self, cell: Cell) -> Path:
        """Where the weights that the training `cell` makes lie."""
        name = f"{cell.dataset}-seed{cell.training_seed}-{cell.key()[:12]}.safetensors.xz"
        return self.checkpoints / cell.model / name

    def examples_path(self, cell: Cell) -> Path:
        """The archive of the adversarial examples of the model and training seed of `cell`."""
        return self.adversarial / cell.model / f"seed{cell.training_seed}{examples_archive.SUFFIX}"

    def name(self, cell: Cell) -> str:
        """Where the record of `cell` lies, for messages: its file, ``#``, and what it is of."""
        return f"{self.path(cell).relative_to(self.folder).as_posix()}#{label_in_file(cell)}"

    def examples_name(self, cell: Cell) -> str:
        """Where the adversarial examples of `cell` lie, for messages."""
        return f"{self.examples_path(cell).relative_to(self.folder).as_posix()}#{label_in_file(cell)}"

    def get(self, cell: Cell) -> Record | None:
        """Return the stored record of `cell`, or None.

        One that cannot be used counts as absent, and so does one whose adversarial examples are gone.
        """
        self.check_schema()
        record = self._file(self.path(cell)).get(cell)
        gone = record is not None and "adversarial" in record.card and not self.has_examples(cell)
        return None if gone else record

    def put(self, record: Record) -> Path:
        """Append `record` to its file, where it supersedes an earlier one of the same cell; that file."""
        self.check_schema()
        path = self.path(record.cell)
        self._file(path).append(record)
        return path

    def has_examples(self, cell: Cell) -> bool:
        """Whether adversarial examples of `cell` are stored, empty ones too."""
        return label_in_file(cell) in examples_archive.names(self.examples_path(cell))

    def get_examples(self, cell: Cell) -> AdversarialExamples:
        """The adversarial examples of `cell`; raises `FileNotFoundError`, or `RecordError` if damaged."""
        return examples_archive.read(self.examples_path(cell), label_in_file(cell))

    def put_examples(self, cell: Cell, examples: AdversarialExamples) -> dict[str, Any]:
        """Store the adversarial examples of `cell`; returns what its record's card says of them."""
        examples_archive.write(self.examples_path(cell), label_in_file(cell), examples)
        return {"sha256": examples_archive.content_sha256(examples), "count": len(examples)}

    def load(self) -> tuple[list[Record], list[Damage]]:
        """Read every record that counts, in a fixed order; what cannot be used is returned beside them.

        Raises
        ------
        InvalidArgument
            When the folder is of another schema.
        """
        self.check_schema()
        records: list[Record] = []
        damages: list[Damage] = []
        for path in self._paths():
            found, damaged = self._file(path).load()
            records += found
            damages += damaged
        return sorted(records, key=_place), damages

    def of_model(self, name: str) -> list[Record]:
        """Read every record of the model `name` that counts."""
        self.check_schema()
        paths = [path for path in self._paths() if path.parent.name == name]
        return [record for path in paths for record in self._file(path).load()[0]]

    def discard(self, training: Record) -> None:
        """Drop a training and all that was asked of its weights. For the holder of `lock` alone."""
        cell, sha256 = training.cell, training.card.get("checkpoint_sha256")
        gone = self._file(self.path(cell)).discard(
            lambda c: c == cell or (c.checkpoint_sha256 == sha256 and c.variant() == cell.variant())
        )
        examples_archive.remove(self.examples_path(cell), {label_in_file(c) for c in gone})

    def clear(self) -> list[Damage]:
        """Move damaged lines to ``set-aside/``, so that their cells are done again; what was moved.

        Superseded lines are dropped. For the holder of `lock` alone.
        """
        self.check_schema()
        damages: list[Damage] = []
        for path in self._paths():
            damages += self._file(path).clear(self.folder / "set-aside" / path.parent.name / path.name)
        return damages

    def set_aside(self, name: str) -> None:
        """Move a file of the folder, where it is there, to ``set-aside/``."""
        path = self.folder / name
        if path.exists():
            move_file(path, self.folder / "set-aside" / name)

    def check_schema(self) -> None:
        """Refuse a folder whose records are of schema 1, one JSON file each, or half way to this one."""
        if self._current:
            return
        how = f"run `robustode upgrade --out {self.folder}`"
        if (self.folder / UPGRADED / COMPLETE).exists():
            raise InvalidArgument(f"an upgrade of {self.folder} was interrupted: {how} again")
        if holds_schema_1(self.folder):
            raise InvalidArgument(f"the records in {self.folder} are of schema 1: {how}")
        self._current = True

    def require_records(self) -> None:
        """Refuse a folder without records."""
        self.check_schema()
        if next(iter(self._paths()), None) is None:
            raise InvalidArgument(f"no records in {self.folder}: run `robustode run` first, or pass --out")

    def size(self) -> int:
        """Bytes of all records."""
        return sum(path.stat().st_size for path in self._paths())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one writer; a second one is refused.

        So is a folder in which somebody else's files are in the way; nothing is written then.
        """
        with locked(self.folder):
            self.check_schema()
            yield

    def _paths(self) -> list[Path]:
        return sorted(p for p in self.records.glob(f"*/seed*{SUFFIX}") if p.stem[4:].isdecimal())

    def _file(self, path: Path) -> RecordFile:
        return self._files.setdefault(path, RecordFile(path))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a results folder of any schema.

    Raises
    ------
    InvalidArgument
        Where another process holds it, or files that robustode did not write are in the way.
    """
    refuse_foreign_files(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InvalidArgument(f"{folder} is or lies in a file: choose a folder with --out") from None
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InvalidArgument(
            f"another run is writing to {folder}: wait for it, or choose another --out"
        ) from None
    try:
        _remove_temporary_files(folder)
        yield
    finally:
        lock.release()


def _remove_temporary_files(folder: Path) -> None:
    """Remove what a killed process left half written, where robustode writes."""
    for pattern in ("*", *(f"{name}/*" for name in FOLDERS), *(f"{name}/*/*" for name in FOLDERS)):
        for path in folder.glob(pattern):
            if is_temporary(path.name):
                path.unlink(missing_ok=True)


def label_in_file(cell: Cell) -> str:
    """What a cell is called among those of its model and training seed: readable first, unique by its key."""
    what = cell.kind if cell.kind == "training" else f"{cell.threat}-{cell.strength:g}"
    return f"{cell.dataset}-{what}-{cell.key()[:12]}"


def _place(record: Record) -> tuple[str, str]:
    cell = record.cell
    what, key = label_in_file(cell).rsplit("-", 1)
    return cell.model, f"{what}-seed{cell.training_seed}-{key}.json"
