"""Random generators that a model keeps for itself: found, put back, seeded.

A file may draw its weights from ``rng = np.random.default_rng(0)`` at its top, a module its noise from an
attribute. What such a generator gives depends on who drew from it before: on the number of processes, and on
whether a run was resumed. So it is put in a known place whenever the model is built, trained or evaluated.
"""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from ...attacks.core.seeds import derive

Generator = np.random.Generator | np.random.RandomState | random.Random | torch.Generator
_GLOBAL = (np.random.mtrand._rand, getattr(random, "_inst", None), torch.default_generator)
_first_seen: dict[int, tuple[Generator, Any]] = {}  # by id; held, so that no id is used again


def generators_of(code: Callable[..., Any] | nn.Module) -> list[Generator]:
    """Generators that a factory's file or a module holds, each once, always in the same order.

    Searched are the attributes of a module and its submodules, their classes, and the files in which these or
    the factory stand, with the files beside those that they import.
    """
    if isinstance(code, nn.Module):
        values = [value for part in code.modules() for value in vars(part).values()]
        kinds = list(dict.fromkeys(type(part) for part in code.modules()))
        values += [value for kind in kinds for base in kind.__mro__ for value in vars(base).values()]
        functions = [vars(base).get("forward") for kind in kinds for base in kind.__mro__]
    else:
        function = inspect.unwrap(code.func if isinstance(code, functools.partial) else code)
        values = [
            cell.cell_contents for cell in getattr(function, "__closure__", None) or () if _filled(cell)
        ]
        functions = [function if inspect.isroutine(function) else getattr(function, "__init__", None)]
    files: dict[int, dict[str, Any]] = {}
    for function in functions:
        _collect_files(getattr(inspect.unwrap(function), "__globals__", None) if function else None, files)
    for names in files.values():
        values += names.values()
        own = [v for v in names.values() if isinstance(v, type) and v.__module__ == names.get("__name__")]
        values += [value for kind in own for value in vars(kind).values()]
    return list({id(value): value for value in values if _is_own(value)}.values())


@contextmanager
def as_first_seen(generators: Iterable[Generator]) -> Iterator[None]:
    """For a block, put each of `generators` where it stood when it was first seen in this process."""
    with _kept(generators) as found:
        for generator in found:
            _, state = _first_seen.setdefault(id(generator), (generator, _state(generator)))
            _set_state(generator, state)
        yield


@contextmanager
def seeded_generators(generators: Iterable[Generator], seed: int) -> Iterator[None]:
    """For a block, seed each of `generators` in a way of its own; put all back where they stood."""
    with _kept(generators) as found:
        for number, generator in enumerate(found):
            (own,) = derive([seed], "generator", number)
            if isinstance(generator, np.random.Generator):
                generator.bit_generator.state = type(generator.bit_generator)(own).state
            elif isinstance(generator, np.random.RandomState):
                generator.seed(own % 2**32)
            elif isinstance(generator, random.Random):
                generator.seed(own)
            else:
                generator.manual_seed(own % 2**63)
        yield


@contextmanager
def _kept(generators: Iterable[Generator]) -> Iterator[list[Generator]]:
    found = [(generator, _state(generator)) for generator in generators]
    try:
        yield [generator for generator, _ in found]
    finally:
        for generator, state in found:
            _set_state(generator, state)


def _state(generator: Generator) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.get_state()


def _set_state(generator: Generator, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


def _is_own(value: Any) -> bool:
    return isinstance(value, Generator) and not any(value is shared for shared in _GLOBAL)


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _collect_files(names: dict[str, Any] | None, files: dict[int, dict[str, Any]]) -> None:
    """Add a file's global names, and those of the files in its folder that it imports, to `files`."""
    path = (names or {}).get("__file__")
    if names is None or id(names) in files or not _is_foreign(names):
        return
    files[id(names)] = names
    for value in list(names.values()):
        beside = getattr(value, "__file__", None) if isinstance(value, ModuleType) else None
        if path and beside and Path(path).parent in Path(beside).parents:
            _collect_files(vars(value), files)


def _is_foreign(names: dict[str, Any]) -> bool:
    """Whether a file is neither of this package nor of those that every model uses."""
    package = str(names.get("__name__", "")).partition(".")[0]
    return package not in (__name__.partition(".")[0], "torch", "numpy", "builtins")
