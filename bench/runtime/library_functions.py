"""Functions of torch, numpy and torchdiffeq that other people's code has replaced by its own."""

from __future__ import annotations

from collections.abc import Mapping
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
_ORIGINAL: list[tuple[Any, Mapping[str, Any], str, Any]] = [
    (owner, vars(owner), name, vars(owner).get(name, _INHERITED))
    for owner in _OWNERS
    for name in (dir(owner) if owner is torch.Tensor else list(vars(owner)))  # it inherits most
    if callable(getattr(owner, name, None))
]
"""Owner, its attributes as they are at any time, and the name and value of one of them."""
_LIBRARIES = ("torch", "numpy", "torchdiffeq")


def replaced_functions() -> dict[tuple[Any, str], Any]:
    """By owner and name, what stands in the place of a function; a library's own exchanges left out."""
    now = [one for one in _ORIGINAL if one[1].get(one[2], _INHERITED) is not one[3]]
    found = {(owner, name): values.get(name, _INHERITED) for owner, values, name, _ in now}
    return {key: value for key, value in found.items() if not _of_a_library(value)}


def put_functions_back(before: Mapping[tuple[Any, str], Any]) -> None:
    """Have `replaced_functions` return `before` again."""
    changed = replaced_functions().keys() | before.keys()
    for owner, _, name, original in _ORIGINAL:
        if (owner, name) in changed:
            value = before.get((owner, name), original)
            delattr(owner, name) if value is _INHERITED else setattr(owner, name, value)


def _of_a_library(value: Any) -> bool:
    home = getattr(value, "__module__", None) or type(value).__module__
    return str(home).partition(".")[0] in _LIBRARIES
