"""A hash of the source of a model file and of what it imports from its own folder."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path


def source_sha256(path: Path) -> str:
    """Return a hash of the file and of every module beside it that it imports or names, directly or not."""
    total, seen, left = hashlib.sha256(), set[Path](), [path]
    while left:
        file = left.pop()
        if file in seen:
            continue
        seen.add(file)
        try:
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                names = [node.value.removesuffix(".py")]  # of importlib, or of a file that is run
            for name in names:
                left += _modules_called(name.partition(".")[0], path.parent)
    for file in sorted(seen):
        total.update(str(file.relative_to(path.parent)).encode() + b"\0" + file.read_bytes() + b"\0")
    return total.hexdigest()


def _modules_called(name: str, folder: Path) -> list[Path]:
    """The files of the module or package `name` in `folder`; none where there is none."""
    if not name.isidentifier():
        return []
    file = folder / f"{name}.py"
    return [file] if file.is_file() else list((folder / name).rglob("*.py"))
