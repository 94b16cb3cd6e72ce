"""Where code lies: what is installed, or is this package, has a version; what else runs is someone's own."""

from __future__ import annotations

import os
import sysconfig
from functools import cache

_PATHS = sysconfig.get_paths()
_STANDARD = tuple({os.path.join(os.path.realpath(_PATHS[name]), "") for name in ("stdlib", "platstdlib")})
_PACKAGE = __name__.partition(".")[0]


@cache
def is_installed(file: str) -> bool:
    """Whether a file belongs to the standard library or to an installed package."""
    parts = file.split(os.sep)
    if "site-packages" in parts or "dist-packages" in parts:
        return True
    return os.path.realpath(file).startswith(_STANDARD)


def is_ours(module: str) -> bool:
    """Whether a module of this name is of this package."""
    return module.partition(".")[0] == _PACKAGE
