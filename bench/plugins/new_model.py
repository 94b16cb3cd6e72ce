"""A one-file model to start from, which passes `robustode check` as written."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from ..._errors import InvalidArgument
from ..._registry import check_name
from ..records.store import write_atomically


def new_model(name: str, file: Path | None = None) -> Path:
    """Write the starting point of a model called `name` to `file`, or to ``NAME.py`` here.

    Raises
    ------
    InvalidArgument
        When the name is not allowed or the file exists already.
    """
    check_name(name, "model")
    path = file or Path(f"{name.replace('-', '_').replace('.', '_')}.py")
    if path.suffix != ".py":
        raise InvalidArgument(f"{path}: the file of a model ends in .py")
    if path.exists():
        raise InvalidArgument(f"{path} exists already: choose another name or delete it")
    template = (files("robustode.bench") / "templates" / "model.py.txt").read_text(encoding="utf-8")
    write_atomically(path, template.replace("@NAME@", name).encode())
    return path
