"""Private names of other libraries: any version may change them, so each such library has an upper bound."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import robustode

PACKAGE = Path(robustode.__file__).parent
CHECKOUT = Path(__file__).parents[2]
LIBRARIES = {"torch", "numba", "numpy", "pandas", "matplotlib", "torchdiffeq", "scipy", "seaborn", "rich"}
OF_NUMBA = {"_cache", "_cache_file", "_source_stamp"}
"""Attributes of compiled functions, which a reading of names alone does not give to a library."""


def private_names(source: str) -> Iterator[tuple[str, str]]:
    """Library and private name of each import and dotted name of a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for name in (f"{node.module}.{alias.name}" for alias in node.names):
                yield from _private(name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield from _private(alias.name)
        elif isinstance(node, ast.Attribute):
            yield from _private(ast.unparse(node))
            if node.attr in OF_NUMBA:
                yield "numba", node.attr
        elif isinstance(node, ast.Constant) and node.value in OF_NUMBA:
            yield "numba", str(node.value)


def _private(name: str) -> Iterator[tuple[str, str]]:
    library, *rest = name.split(".")
    if library in LIBRARIES and any(re.match(r"_[a-zA-Z]", part) for part in rest):
        yield library, name


def used() -> set[str]:
    files = [path for folder in ("models", "attacks", "bench") for path in (PACKAGE / folder).rglob("*.py")]
    assert len(files) > 100
    return {library for path in files for library, _ in private_names(path.read_text(encoding="utf-8"))}


def test_private_names_are_found():
    assert set(private_names("import torch\ntorch._C._f()")) == {
        ("torch", "torch._C._f"),
        ("torch", "torch._C"),
    }
    assert list(private_names("from torchdiffeq._impl.odeint import S")) == [
        ("torchdiffeq", "torchdiffeq._impl.odeint.S")
    ]
    assert list(private_names("kernel._cache")) == [("numba", "_cache")]
    assert list(private_names("import torch\ntorch.nn.Module.__call__\nself._torch")) == []


def test_what_is_private_is_pinned():
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = {re.match(r"[\w-]+", one)[0]: one for one in project["dependencies"]}
    libraries = used()
    assert {"torch", "numba", "torchdiffeq"} <= libraries
    assert [bounds[name] for name in sorted(libraries) if not re.search(r"<\d", bounds[name])] == []


@pytest.mark.parametrize("name", ["torch", "numba", "torchdiffeq"])
def test_the_tested_version_is_within_its_bound(name):
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bound = next(one for one in project["dependencies"] if re.match(rf"{name}\b(?!-)", one))
    below = tuple(map(int, re.search(r"<([\d.]+)", bound)[1].split(".")))
    found = tuple(map(int, re.findall(r"\d+", metadata.version(name))[: len(below)]))
    assert found < below
