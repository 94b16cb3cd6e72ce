"""Writes a one-file model to start from; it passes `robustode check` unchanged."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from ..._errors import InvalidArgument
from ..._registry import check_name
from ..records.atomic import write_atomically


def new_model(name: str, file: Path | None = None) -> Path:
    """Write a one-file model called `name`, which passes `robustode check` unchanged.

    Parameters
    ----------
    name
        Name of the model in the registry.
    file
        Where to write it; by default ``NAME.py`` in the working directory, with ``_`` for ``-`` and ``.``.

    Returns
    -------
    Path
        The file that was written.

    Raises
    ------
    InvalidArgument
        When the name is not allowed, or the file exists or does not end in ``.py``.
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
