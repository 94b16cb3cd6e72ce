"""The imports of a model file: it finds what it finds as a script, and no other file's modules instead.

What lies in its folder, or in a folder that it adds to ``sys.path``, is imported for the model files of this
folder alone, so two of them may each have a package called ``models``. What they share, such as a library of
one's own on PYTHONPATH, is imported once, and anew when a file is loaded after an edit.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from ..runtime.code_places import is_installed, is_ours
from ..runtime.opened_files import file_sha256

PREFIX = "_robustode_external_"
"""What the modules of model files themselves are called, before a hash."""


@dataclass
class Own:
    """Modules by name, ``sys.path`` as the files of a folder left it, and the folders that they added."""

    modules: dict[str, ModuleType] = field(default_factory=dict)
    path: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


_own: dict[Path, Own] = {}
_added: list[str] = []  # to sys.path by all files: at its end, for what a forward pass imports
_ambiguous: set[str] = set()  # of these, which are not
_shared: dict[str, tuple[Path, str]] = {}  # files of modules of no folder, and their hashes when imported


@contextmanager
def imports_from(folder: Path) -> Iterator[Own]:
    """Import as a script in `folder` would, for a block, and take its own modules along afterwards.

    It stands within `foreign_code`, where no bytecode is written.
    """
    own = _own.setdefault(folder, Own(path=[str(folder)], folders=[str(folder)]))
    base = [p for p in sys.path if p not in _added]
    elsewhere = [name for name in _shared if name in sys.modules and _lies_in(sys.modules[name], _added)]
    hidden = {name: sys.modules.pop(name) for name in elsewhere}
    before = set(sys.modules)
    sys.path[:] = [*own.path, *(p for p in base if p not in own.path)]
    sys.modules.update(own.modules)
    try:
        yield own
    finally:
        own.path = list(sys.path)
        new = [os.path.abspath(p) for p in sys.path if p not in base and p != str(folder)]
        own.folders += [p for p in new if p not in own.folders]
        _added.extend(p for p in new if p not in _added and p not in _ambiguous)
        sys.path[:] = [*base, *_added]
        for name in [name for name in sys.modules if name not in before and not is_ours(name)]:
            module = sys.modules[name]
            if _lies_in(module, own.folders):
                own.modules[name] = sys.modules.pop(name)
            elif (file := getattr(module, "__file__", None) or "").endswith(".py") and not is_installed(file):
                _shared[name] = Path(file), file_sha256(Path(file))
        sys.modules.update(hidden)


def share_later(name: str, file: Path) -> None:
    """Note a module that is imported when a model is asked, where nobody knows whose import it is.

    Where two files mean different modules by one name, neither is found then.
    """
    known, _ = _shared.setdefault(name, (file, file_sha256(file)))
    if known != file:
        sys.modules.pop(name, None)
        for folder in [p for p in _added if known.is_relative_to(p) or file.is_relative_to(p)]:
            _ambiguous.add(folder)
            _added.remove(folder)
            sys.path[:] = [p for p in sys.path if p != folder]


def forget(folder: Path | None = None) -> None:
    """Forget what was imported from `folder`, or everything, and what is shared where a part was edited."""
    if folder is not None:
        _own.pop(folder, None)
    else:
        sys.path[:] = [p for p in sys.path if p not in _added]
        _own.clear()
        _added.clear()
        _ambiguous.clear()
    if folder is None or any(file_sha256(file) != sha256 for file, sha256 in _shared.values()):
        for name in _shared:
            sys.modules.pop(name, None)
        _shared.clear()


def still_imported() -> set[Path]:
    """The files of shared modules that are imported."""
    return {file for name, (file, _) in _shared.items() if name in sys.modules}


def _lies_in(module: ModuleType, folders: Sequence[str]) -> bool:
    """Whether a module comes from one of `folders` rather than from an environment inside it."""
    places = [getattr(module, "__file__", None), *list(getattr(module, "__path__", []))]
    inside = any(
        place and place.startswith(folder + os.sep) and not is_installed(place)
        for place in places
        for folder in folders
    )
    return inside and not module.__name__.startswith(PREFIX)
