"""Values as records hold them: JSON from which the same values come back, type by type.

What JSON gives back as it was is written as it is: None, booleans, whole numbers, finite floats, text, lists,
and dictionaries whose keys are sorted text. Anything else is an object with one member, whose name begins
with ``$``: ``(16, 24)`` is ``{"$tuple": [16, 24]}``. A function or class is written as its name, and comes
back as what that name stands for among today's hyperparameters of the model: a record imports nothing.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import math
from collections import OrderedDict
from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from .recorded_arrays import (
    SCALARS,
    TORCH_CONSTANTS,
    NotRecordable,
    read_array,
    read_scalar,
    read_tensor,
    torch_constant,
    write_array,
    write_bytes,
    write_tensor,
)

_NAMESPACES = (torch, torch.nn.functional, torch.special, np, math)


class Codec:
    """Writes values as JSON, and reads them again.

    Parameters
    ----------
    module
        Name of the module of the model's factory, which is written as ``.``: a file may move.
    folder
        Folder of the factory's file: paths below it are written relative to it. None where there is none.

    Attributes
    ----------
    references
        Functions and classes that were written, by name: what a name is read as.
    """

    def __init__(self, module: str = "", folder: Path | None = None) -> None:
        self.module, self.folder = module, folder
        self.references: dict[str, Any] = {}

    def encode(self, value: Any) -> Any:
        """Return `value` as JSON.

        Raises
        ------
        NotRecordable
            Where it would not come back as it was.
        """
        try:
            found = self._encode(value)
            json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
        except NotRecordable:
            raise
        except RecursionError:
            raise NotRecordable("it is nested too deeply, or holds itself") from None
        except Exception as error:
            raise NotRecordable(f"{type(error).__name__}: {error}") from None
        return found

    def _encode(self, value: Any) -> Any:
        kind = type(value)
        if kind in (type(None), bool, int, str) or (kind is float and math.isfinite(value)):
            return value
        if kind is list:
            return [self._encode(v) for v in value]
        if kind is dict:
            keys = list(value)
            plain = all(type(k) is str and not k.startswith("$") for k in keys) and keys == sorted(keys)
            if plain:
                return {k: self._encode(v) for k, v in value.items()}
        if kind in (set, frozenset):
            return {f"${kind.__name__}": sorted(map(self._encode, value), key=_text)}
        for name, (types, write, _) in _LEAVES.items():
            if kind in types:
                return {name: write(value)}
        for name, (is_one, parts, _) in _COMPOUNDS.items():
            if is_one(value):
                return {name: [self._encode(part) for part in parts(value)]}
        if isinstance(value, Path | PurePosixPath):
            return self._path(value)
        return {"$name": self._reference(value)}

    def _path(self, value: PurePosixPath | Path) -> Any:
        if isinstance(value, Path):
            if self.folder is not None and value.is_absolute() and value.is_relative_to(self.folder):
                return {"$path-beside": value.relative_to(self.folder).as_posix()}
            return {"$path": str(value)}
        return {"$pure-path": value.as_posix()}

    def _reference(self, value: Any) -> str:
        """Return the name of a function or class, and remember what it stands for."""
        name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
        if not callable(value) or not isinstance(name, str):
            raise NotRecordable(f"it holds an object of {type(value).__name__}")
        if "<" in name:
            raise NotRecordable(f"it holds {name}, a function or class without a name of its own")
        module = getattr(value, "__module__", None)
        if not isinstance(module, str):  # built into torch, such as torch.tanh
            name = str(getattr(value, "__name__", name))
            homes = [home for home in _NAMESPACES if getattr(home, name, None) is value]
            if not homes:
                raise NotRecordable(f"it holds {value!r}, which has no module")
            module = homes[0].__name__
        reference = f"{'.' if module == self.module else module}:{name}"
        if self.references.setdefault(reference, value) is not value:
            raise NotRecordable(f"it holds two different things called {reference}")
        return reference

    def decode(self, value: Any) -> Any:
        """Return what `encode` was given.

        Raises
        ------
        NotRecordable
            For a name that `references` does not hold, and for what `encode` never writes.
        """
        if isinstance(value, list):
            return [self.decode(v) for v in value]
        if not isinstance(value, dict):
            return value
        if len(value) != 1 or not (tag := next(iter(value))).startswith("$"):
            return {k: self.decode(v) for k, v in value.items()}
        body = value[tag]
        try:
            if tag == "$name":
                return self.references[body]
            if tag == "$path-beside":
                return Path(self.folder or "", body)
            if tag in _LEAVES:
                return _LEAVES[tag][2](body)
            if tag in _COMPOUNDS:
                return _COMPOUNDS[tag][2]([self.decode(part) for part in body])
            return _COLLECTIONS[tag](self.decode(part) for part in body)
        except NotRecordable:
            raise
        except Exception as error:
            raise NotRecordable(f"{tag} {_text(body)} cannot be read: {type(error).__name__}") from None


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


_LEAVES: dict[str, tuple[tuple[type, ...], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "$float": ((float,), str, float),
    "$complex": ((complex,), lambda v: [str(v.real), str(v.imag)], lambda b: complex(*map(float, b))),
    "$bytes": ((bytes,), write_bytes, base64.b64decode),
    "$bytearray": ((bytearray,), lambda v: write_bytes(bytes(v)), lambda b: bytearray(base64.b64decode(b))),
    "$ellipsis": ((type(...),), lambda v: None, lambda b: ...),
    "$decimal": ((Decimal,), str, Decimal),
    "$fraction": ((Fraction,), str, Fraction),
    "$numpy": (SCALARS, write_array, read_scalar),
    "$array": ((np.ndarray,), write_array, read_array),
    "$tensor": ((torch.Tensor,), write_tensor, read_tensor),
    "$torch": (TORCH_CONSTANTS, str, torch_constant),
    "$device": ((torch.device,), str, torch.device),
    "$path": ((), str, Path),
    "$pure-path": ((), str, PurePosixPath),
}
"""By tag: types, what is written of a value, and how that is read."""


def _attributes(value: Any) -> list[Any]:
    """The class of a dataclass and all that its object holds, whatever its constructor would compute anew."""
    held = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if hasattr(value, f.name)}
    return [type(value), dict(sorted({**held, **getattr(value, "__dict__", {})}.items()))]


def _with_attributes(body: list[Any]) -> Any:
    kind, held = body
    found = object.__new__(kind)
    for name, value in held.items():
        object.__setattr__(found, name, value)
    return found


def _is_named_tuple(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(type(value), "_fields") and not getattr(value, "__dict__", {})


def _member(value: Enum) -> Any:
    return value.name if value.name in type(value).__members__ else value.value


_COMPOUNDS: dict[str, tuple[Callable[[Any], bool], Callable[[Any], Any], Callable[[list[Any]], Any]]] = {
    "$tuple": (lambda v: type(v) is tuple, list, tuple),
    "$dict": (lambda v: type(v) is dict, lambda v: map(list, v.items()), dict),
    "$ordered-dict": (lambda v: type(v) is OrderedDict, lambda v: map(list, v.items()), OrderedDict),
    "$range": (lambda v: type(v) is range, lambda v: (v.start, v.stop, v.step), lambda b: range(*b)),
    "$slice": (lambda v: type(v) is slice, lambda v: (v.start, v.stop, v.step), lambda b: slice(*b)),
    "$size": (lambda v: type(v) is torch.Size, list, torch.Size),
    "$enum": (
        lambda v: isinstance(v, Enum),
        lambda v: (type(v), _member(v)),
        lambda b: b[0][b[1]] if isinstance(b[1], str) and b[1] in b[0].__members__ else b[0](b[1]),
    ),
    "$named-tuple": (_is_named_tuple, lambda v: (type(v), *v), lambda b: tuple.__new__(b[0], b[1:])),
    "$dataclass": (
        lambda v: dataclasses.is_dataclass(v) and not isinstance(v, type),
        _attributes,
        _with_attributes,
    ),
    "$partial": (
        lambda v: type(v) is functools.partial,
        lambda v: (v.func, list(v.args), dict(sorted(v.keywords.items()))),
        lambda b: functools.partial(b[0], *b[1], **b[2]),
    ),
}
"""By tag: whether a value is one, its parts, and what is made of them."""
_COLLECTIONS: dict[str, Callable[[Any], Any]] = {"$set": set, "$frozenset": frozenset}
