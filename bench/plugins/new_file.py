"""Writes a model, threat, dataset or preset of one file to start from; it works unchanged."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from ..._errors import InvalidArgument
from ..._registry import check_name
from ..records.atomic import write_atomically


def new_file(kind: str, name: str, file: Path | None = None, *, images: Path | None = None) -> Path:
    """Write a file of one `kind` called `name`, which works unchanged.

    Parameters
    ----------
    kind
        ``model``, ``threat``, ``dataset`` or ``preset``.
    name
        Name in the registry.
    file
        Where to write it; by default ``NAME.py`` in the working directory, ``NAME.toml`` of a preset, with
        ``_`` for ``-`` and ``.``.
    images
        A folder of images that a dataset is to read, one folder per class.

    Returns
    -------
    Path
        The file that was written.

    Raises
    ------
    InvalidArgument
        When the name is not allowed, or the file exists or has another ending.
    """
    check_name(name, kind)
    ending = ".toml" if kind == "preset" else ".py"
    path = file or Path(f"{name.replace('-', '_').replace('.', '_')}{ending}")
    if path.suffix != ending:
        raise InvalidArgument(f"{path}: the file of a {kind} ends in {ending}")
    if path.exists():
        raise InvalidArgument(f"{path} exists already: choose another name or delete it")
    source = f"{kind}{ending}.txt" if images is None else "images.py.txt"
    text = (files("robustode.bench") / "templates" / source).read_text(encoding="utf-8")
    folder = "" if images is None else json.dumps(images.resolve().as_posix(), ensure_ascii=False)
    for mark, value in (("@NAME@", name), ("@FILE@", path.name), ("@IMAGES@", folder)):
        text = text.replace(mark, value)
    write_atomically(path, text.encode())
    return path
