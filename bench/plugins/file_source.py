"""The source of a model file: itself, and every module that it imports and that is not installed."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from ..runtime.code_places import is_installed, is_ours

IMPORTERS = frozenset({"import_module", "__import__"})


def source_files(
    path: Path, modules: Mapping[str, ModuleType] | None = None, places: Sequence[str] | None = None
) -> dict[Path, str]:
    """Return the files of what `path` imports, directly or not, at once or later, by module name.

    The name of what lies in the folder of `path` is empty.

    Parameters
    ----------
    modules
        What the file has imported, by name; these need not be in ``sys.modules``.
    places
        ``sys.path`` as the file has left it.
    """
    found, search = dict[Path, str](), _Search(modules or {}, places)
    left = [(path, ""), *_imported_files(modules or {})]
    while left:
        file, module = left.pop()
        inside = file.is_relative_to(path.parent)
        if file in found:
            continue
        found[file] = "" if inside else module
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):  # such as an extension module
            continue
        for node in ast.walk(tree):
            left += [(beside, "") for name in _beside(node) for beside in _files(name, path.parent)]
            for name in _imported(node, module, package=file.stem == "__init__"):
                left += search.files(name)
    return found


def source_sha256(path: Path, files: Mapping[Path, str] | None = None) -> str:
    """Return a hash of `files`, the `source_files` of `path`, which is the same wherever they lie."""
    total, files = hashlib.sha256(), source_files(path) if files is None else files
    inside = [(str(file.relative_to(path.parent)), file) for file in sorted(files) if not files[file]]
    for name, file in [*inside, *sorted((f"import {name}", file) for file, name in files.items() if name)]:
        total.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return total.hexdigest()


def _imported_files(modules: Mapping[str, ModuleType]) -> Iterator[tuple[Path, str]]:
    for name, module in modules.items():
        file = getattr(module, "__file__", None)
        if file and Path(file).is_file() and not is_installed(file):
            yield Path(file), name


def _beside(node: ast.AST) -> list[str]:
    """The modules that a node may mean if they lie beside the file, be it as text."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value.removesuffix(".py")]  # of importlib, or of a file that is run
    return []


def _files(name: str, folder: Path) -> list[Path]:
    """The files of the module or package of `name` in `folder`; none where there is none."""
    name = name.partition(".")[0]
    if not name.isidentifier():
        return []
    file = folder / f"{name}.py"
    return [file] if file.is_file() else list((folder / name).rglob("*.py"))


def _imported(node: ast.AST, module: str, *, package: bool) -> Iterator[str]:
    """The names of modules that a node of `module` imports, and of what may be one."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            own = module if package else module.rpartition(".")[0]
            try:
                base = importlib.util.resolve_name("." * node.level + base, own)
            except ImportError:  # a package beside the file, all of which counts
                return
        yield from (base if alias.name == "*" else f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = getattr(node.func, "attr", getattr(node.func, "id", None))
        if called in IMPORTERS and isinstance(node.args[0].value, str):
            yield node.args[0].value


class _Search:
    """Finds the files of modules by name, without importing any."""

    def __init__(self, modules: Mapping[str, ModuleType], places: Sequence[str] | None) -> None:
        self._modules, self._places = modules, places
        self._known: dict[str, tuple[str | None, list[str]]] = {}

    def files(self, name: str) -> list[tuple[Path, str]]:
        """The files of `name` and of the packages around it; none of what is installed or is this package."""
        found, parts = [], name.split(".")
        if not all(part.isidentifier() for part in parts) or is_ours(name) or name == "__main__":
            return []
        for count in range(1, len(parts) + 1):
            module = ".".join(parts[:count])
            file, places = self._known.get(module) or self._known.setdefault(module, self._find(module))
            if file is not None and (is_installed(file) or not Path(file).is_file()):
                break
            if file is not None:
                found.append((Path(file), module))
            if not places:
                break
        return found

    def _find(self, name: str) -> tuple[str | None, list[str]]:
        """The file of a module, and where its submodules lie."""
        if (module := self._modules.get(name)) is not None:
            return getattr(module, "__file__", None), list(getattr(module, "__path__", ()))
        parent = name.rpartition(".")[0]
        places = self._known[parent][1] if parent else self._places
        for finder in sys.meta_path:
            with suppress(Exception):
                spec = finder.find_spec(name, places)
                if spec is not None:
                    places = list(spec.submodule_search_locations or ())
                    return spec.origin if spec.has_location else None, places
        return None, []
