"""Functions of torch, numpy and torchdiffeq that other people's code has replaced by its own."""

from __future__ import annotations

from collections.abc import Mapping
from operator import is_, itemgetter
from typing import Any

import numpy as np
import torch
import torchdiffeq
from torch import nn

_OWNERS: tuple[Any, ...] = (
    *(torch, torch.Tensor, torch.autograd, torch.linalg, torch.optim, torch.special),
    *(nn, nn.functional, nn.init, np, np.linalg, np.random, torchdiffeq),
    *(kind for kind in vars(nn).values() if isinstance(kind, type) and issubclass(kind, nn.Module)),
)
_INHERITED = object()
_LIBRARIES = ("torch", "numpy", "torchdiffeq")


class _Functions:
    """The functions of one module or class, compared all at once: a question asks for them several times."""

    def __init__(self, owner: Any) -> None:
        self.owner, self._values = owner, vars(owner)
        names = dir(owner) if owner is torch.Tensor else list(self._values)  # it inherits most
        callables = [name for name in names if callable(getattr(owner, name, None))]
        self.originals = {name: self._values.get(name, _INHERITED) for name in callables}
        self._inherited = {name for name, value in self.originals.items() if value is _INHERITED}
        self._own = [name for name in callables if name not in self._inherited]
        self._read = itemgetter(*self._own, *self._own[:1]) if self._own else None  # a tuple, if of one alone
        self._expected = [self.originals[name] for name in self._own]

    def replaced(self) -> dict[str, Any]:
        """By name, what stands in the place of a function; the library's own newer version of it is kept."""
        if self._are_original():
            return {}
        now = {name: self._values.get(name, _INHERITED) for name in self.originals}
        changed = {name: value for name, value in now.items() if value is not self.originals[name]}
        newer = {name: value for name, value in changed.items() if _is_newer_version(name, value)}
        self.originals.update(newer)
        self._expected = [self.originals[name] for name in self._own]
        return {name: value for name, value in changed.items() if name not in newer}

    def _are_original(self) -> bool:
        if not self._inherited.isdisjoint(self._values):
            return False
        try:
            now = () if self._read is None else self._read(self._values)
        except KeyError:
            return False
        return all(map(is_, now, self._expected))


_BY_OWNER = [_Functions(owner) for owner in dict.fromkeys(_OWNERS)]


def replaced_functions() -> dict[tuple[Any, str], Any]:
    """By owner and name, what stands in the place of a function; a library's own exchanges left out."""
    return {
        (functions.owner, name): value
        for functions in _BY_OWNER
        for name, value in functions.replaced().items()
    }


def put_functions_back(before: Mapping[tuple[Any, str], Any]) -> None:
    """Have `replaced_functions` return `before` again."""
    changed = replaced_functions().keys() | before.keys()
    for functions in _BY_OWNER:
        for name, original in functions.originals.items():
            if (functions.owner, name) in changed:
                value = before.get((functions.owner, name), original)
                delattr(functions.owner, name) if value is _INHERITED else setattr(
                    functions.owner, name, value
                )


def _is_newer_version(name: str, value: Any) -> bool:
    """Whether a library has put `value` in the place of its own function or class `name`, as torch does."""
    home = getattr(value, "__module__", None) or type(value).__module__
    own = isinstance(value, type) or getattr(value, "__name__", None) == name
    return own and str(home).partition(".")[0] in _LIBRARIES
