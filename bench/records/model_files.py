"""Where the models of a results folder that come from files lie, as its plan notes it. No torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ModelFile:
    """The file of a model, as its last run found it.

    Attributes
    ----------
    place
        ``FILE.py:factory``, the file as seen from the results folder, or from the user's home.
    sha256
        Hash of the file then.
    """

    place: str
    sha256: str

    @classmethod
    def of(cls, file: Path, factory: str, folder: Path) -> ModelFile:
        """That of the model that `factory` in `file` builds, seen from a results `folder`."""
        place = f"{label_from(file, Path(folder).resolve())}:{factory}"
        return cls(place=place, sha256=hashlib.sha256(file.read_bytes()).hexdigest())

    def reference(self, folder: Path) -> str:
        """``FILE.py:factory`` with the whole path of the file, for the results `folder` as it lies now."""
        file, _, factory = self.place.rpartition(":")
        return f"{os.path.normpath(Path(folder).resolve() / Path(file).expanduser())}:{factory}"

    def path(self, folder: Path) -> Path:
        """The whole path of the file, for the results `folder` as it lies now."""
        return Path(self.reference(folder).rpartition(":")[0])

    def problem(self, folder: Path) -> str:
        """``FILE is not there any more`` or ``FILE has changed since``; empty where it is as it was."""
        path = self.path(folder)
        try:
            same = hashlib.sha256(path.read_bytes()).hexdigest() == self.sha256
        except OSError:
            return f"{path} is not there any more"
        return "" if same else f"{path} has changed since"


def label_from(file: Path, folder: Path) -> str:
    """The name of a file from `folder`, unless they have only the root or the home in common."""
    home = Path.home()
    common = Path(os.path.commonpath([file, folder])) if file.drive == folder.drive else None
    if common is not None and common not in (home, *home.parents):
        return Path(os.path.relpath(file, folder)).as_posix()
    return f"~/{file.relative_to(home).as_posix()}" if file.is_relative_to(home) else file.as_posix()


def read_model_files(body: object) -> dict[str, ModelFile]:
    """The files by model that a plan's member ``files`` names; what is no such entry is left out."""
    entries: Iterable[tuple[object, object]] = body.items() if isinstance(body, dict) else ()
    return {
        str(name): ModelFile(place=entry["place"], sha256=str(entry.get("sha256", "")))
        for name, entry in entries
        if isinstance(entry, dict) and ".py:" in str(entry.get("place", ""))
    }
