"""What a network holds, wherever it holds it: a name and a content for every number that it may answer by.

Parameters, buffers (non-persistent ones too), extra state, and what modules keep as plain attributes:
arrays, tensors, numbers and text, in lists, dictionaries and objects, in the variables that a function closes
over and the globals that a function of the model's own code reads. Paths are left out: files may move.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import sys
import sysconfig
import types
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_SIMPLE = (bool, int, float, complex, str, bytes, type(None))
_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))
_LOOKED_INTO = ("types", "collections")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_NOT_OWN = (sysconfig.get_path("stdlib"), str(Path(__file__).resolve().parents[2]))
_MOST_OBJECTS = 200_000
_PATTERN_LENGTH = 2**14
_PROJECTIONS = 8
_STEP = 0.1


@dataclass(frozen=True)
class Content:
    """What stands under one name: its kind, a hash of its bytes, and of floats what rounding does not change.

    `rough` are projections of the values, divided by their Euclidean norm, in whole steps: last bits that
    differ between processors do not change them, other values do. None of anything but floats, and where it
    was not asked for. Two contents are equal when their kinds and bytes are.
    """

    kind: str
    sha256: str
    rough: tuple[int, ...] | None = field(default=None, compare=False)


def network_state(model: nn.Module, factory: Any, *, with_source: bool, rough: bool) -> dict[str, Content]:
    """Return the content of everything that `model` and its `factory` hold, each under a name that stays.

    With its own functions' source too where `with_source`; `rough` may be left out where contents are only
    compared. What cannot be looked into is left out.
    """
    walk = _Walk(_own_code(factory), with_source=with_source, rough=rough)
    walk.visit("model", model)
    walk.visit("factory", inspect.unwrap(factory))
    return walk.found


def content_of(values: NDArray[Any], *, rough: bool = True) -> Content:
    """Return the `Content` of an array."""
    values = np.ascontiguousarray(values)
    projected = rough and values.dtype.kind in "fc" and values.size
    kind = f"{values.dtype.str} {values.shape}"
    sha256 = hashlib.sha256(values.tobytes()).hexdigest()
    return Content(kind, sha256, _rough(values.ravel()) if projected else None)


def _rough(values: NDArray[Any]) -> tuple[int, ...] | None:
    real = np.concatenate([values.real, values.imag]) if values.dtype.kind == "c" else values
    real = real.astype(np.float64)
    norm = float(np.linalg.norm(real))
    if not np.isfinite(norm) or norm == 0:
        return None
    rows = -(-real.size // _PATTERN_LENGTH)
    table = np.zeros((rows, _PATTERN_LENGTH))
    table.reshape(-1)[: real.size] = real / norm
    signs = _signs()
    outer = signs[:, np.arange(rows) * 7 % _PATTERN_LENGTH]
    return tuple(int(v) for v in np.round(((table @ signs.T).T * outer).sum(1) / _STEP))


@functools.cache
def _signs() -> NDArray[np.float64]:
    """Fixed signs, (projections, length): bits of a multiplicative hash of their place."""
    place = np.arange(1, _PROJECTIONS * _PATTERN_LENGTH + 1, dtype=np.uint64)
    mixed = place * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (mixed >> np.uint64(40)) & np.uint64(1)
    return np.where(bits == 1, 1.0, -1.0).reshape(_PROJECTIONS, _PATTERN_LENGTH)


def _own_code(factory: Any) -> str | None:
    """Return where the model's own code lies: the folder of its file, or of its top-level package."""
    code = getattr(inspect.unwrap(factory), "__code__", None)
    if code is None or not Path(code.co_filename).is_file():
        return None
    file = Path(code.co_filename).resolve()
    folder = file.parent
    while (folder.parent / "__init__.py").is_file() and folder != folder.parent:
        folder = folder.parent
    return str(file) if folder.name in ("site-packages", "dist-packages") else f"{folder}{os.sep}"


class _Walk:
    """One walk through everything that is reached from an object, each object once."""

    def __init__(self, own_code: str | None, *, with_source: bool, rough: bool) -> None:
        self.own_code, self.with_source, self.rough = own_code, with_source, rough
        self.found: dict[str, Content] = {}
        self._seen: dict[int, Any] = {}  # holds what was seen, so that no id is used again

    def visit(self, name: str, value: Any) -> None:
        with suppress(Exception):
            self._visit(name, value)

    def _visit(self, name: str, value: Any) -> None:
        if isinstance(value, _SIMPLE):
            if not (isinstance(value, str) and os.path.isabs(value)):
                text = f"{type(value).__name__} {value!r}"
                self.found[name] = Content(type(value).__name__, hashlib.sha256(text.encode()).hexdigest())
            return
        if id(value) in self._seen or isinstance(value, PurePath | types.ModuleType | torch.device):
            return
        if len(self._seen) == _MOST_OBJECTS:
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            self.found[name] = content_of(_array(value), rough=self.rough)
        elif hasattr(value, "__array__") and (array := np.asarray(value)).dtype != object:
            self.found[name] = content_of(array, rough=self.rough)
        else:
            for part, inside in self._parts(name, value):
                self.visit(f"{name}.{part}", inside)

    def _parts(self, name: str, value: Any) -> Iterator[tuple[str, Any]]:
        """What an object is made of."""
        kind = f"{type(value).__qualname__}"
        if isinstance(value, nn.Module):
            yield from _of_module(value)
        elif isinstance(value, Mapping):
            kind += f" {len(value)}"
            for place, (key, inside) in enumerate(list(value.items())):
                yield (repr(key) if isinstance(key, _SIMPLE) else str(place)), inside
        elif isinstance(value, set | frozenset):
            yield from (("item", part) for part in [sorted(map(repr, value))] if _all_simple(value))
        elif isinstance(value, list | tuple | deque | np.ndarray):
            kind += f" {len(value)}"
            yield from ((str(place), part) for place, part in enumerate(list(value)))
        elif isinstance(value, functools.partial):
            yield from (("function", value.func), ("arguments", value.args), ("keywords", value.keywords))
        elif isinstance(value, types.MethodType):
            yield from (("function", value.__func__), ("of", value.__self__))
        elif isinstance(value, types.FunctionType):
            yield from self._of_function(value)
            return
        elif isinstance(value, type):
            if self._is_own(value):
                yield from ((k, v) for k, v in vars(value).items() if not k.startswith("__") or callable(v))
                yield "bases", value.__bases__
            return
        elif isinstance(value, property | staticmethod | classmethod):
            yield "function", getattr(value, "fget", None) or getattr(value, "__func__", None)
        elif type(value).__module__.partition(".")[0] in _LOOKED_INTO or not _of_library(type(value)):
            yield from _attributes(value)
        if type(value).__module__ != "builtins":
            yield "class", type(value)
        self.found[name] = Content(kind, "")

    def _is_own(self, kind: type) -> bool:
        functions = (v for v in vars(kind).values() if isinstance(v, types.FunctionType))
        files = [getattr(sys.modules.get(kind.__module__), "__file__", None)]
        files += [function.__code__.co_filename for function in functions]
        return any(file is not None and self._own(file) for file in files)

    def _own(self, file: str) -> bool:
        """Whether code in `file` is the model's own, rather than a library's; code without a file is."""
        path = Path(file)
        if not path.is_file():
            return True
        where = str(path.resolve())
        inside = self.own_code is not None and where.startswith(self.own_code)
        return (
            inside
            and "site-packages" not in where[len(self.own_code or "") :].split(os.sep)
            and not (where.startswith(_NOT_OWN))
        )

    def _of_function(self, function: types.FunctionType) -> Iterator[tuple[str, Any]]:
        """Defaults, the variables that it closes over, and the globals that it reads."""
        yield "defaults", function.__defaults__
        yield "keywords", function.__kwdefaults__
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            with suppress(ValueError):  # not set yet
                yield f"closure {name}", cell.cell_contents
        yield "wrapped", getattr(function, "__wrapped__", None)
        if self._own(function.__code__.co_filename):
            if self.with_source:
                with suppress(OSError, TypeError):
                    yield "source", inspect.getsource(function)
            for name in sorted(_names(function.__code__)):
                if not name.startswith("__") and name in function.__globals__:
                    yield f"global {name}", function.__globals__[name]


def _names(code: types.CodeType) -> set[str]:
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _of_library(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in sys.stdlib_module_names


def _all_simple(values: Any) -> bool:
    return all(isinstance(value, _SIMPLE) for value in values)


def _array(value: Tensor) -> NDArray[Any]:
    plain = value.detach().cpu()
    plain = plain.to_dense() if plain.layout is not torch.strided else plain
    plain = plain.resolve_conj().resolve_neg().contiguous()
    return (plain.float() if plain.dtype is torch.bfloat16 else plain).numpy()


def _of_module(module: nn.Module) -> Iterator[tuple[str, Any]]:
    own = vars(module)
    for kind in ("_parameters", "_buffers", "_modules"):
        yield from ((name, part) for name, part in own[kind].items() if part is not None)
    yield from ((name, part) for name, part in own.items() if name not in _MODULE_ATTRIBUTES)
    for hooks in _HOOKS:
        yield hooks, list(own.get(hooks, {}).values())
    if type(module).get_extra_state is not nn.Module.get_extra_state:
        yield "extra state", module.get_extra_state()


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    yield from list(getattr(value, "__dict__", {}).items())
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)
