"""Where compiled kernels are kept: beside the package, in the user's cache folder, or where one can write."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from numba import config as numba_config
from numba import njit

config: Any = numba_config  # its values have no Python types


def njit_cached(function: Any, **options: Any) -> Any:
    """`function` compiled by numba, kept on disk where one can write, else compiled in each process.

    numba raises RuntimeError where neither the package's folder nor the user's can be written, as in
    containers and on clusters; without a home folder it would make one called ``~`` where the user works.
    """
    folders = [config.CACHE_DIR] if config.CACHE_DIR or _has_home() else []
    for folder in (*folders, _temporary_folder()):
        if folder is not None:
            before, config.CACHE_DIR = config.CACHE_DIR, folder
            try:
                return njit(cache=True, **options)(function)
            except RuntimeError:
                continue
            finally:
                config.CACHE_DIR = before
    return njit(**options)(function)


def _has_home() -> bool:
    return os.path.isabs(os.path.expanduser("~"))


def _temporary_folder() -> str | None:
    """A folder of this user alone: what lies in it is run, so nobody else may write to it."""
    user = os.getuid() if hasattr(os, "getuid") else None  # on Windows the folder above is the user's own
    try:
        path = Path(tempfile.gettempdir()) / f"robustode-numba-{'' if user is None else user}"
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError:
        return None
    if user is not None and (
        found.st_uid != user or found.st_mode & 0o022 or not stat.S_ISDIR(found.st_mode)
    ):
        return None
    return str(path)
