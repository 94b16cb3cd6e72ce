"""Whether a model of which no solve is seen is known to solve no ODE, or cannot be looked into."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

KNOWN = ("torch.nn", "torchvision", "timm", "deel", "torchlip")
"""Libraries whose layers are known to solve no ODE."""
_PLAIN = ("torch", "builtins", "abc", "typing")
"""Where functions and base classes that solve none come from besides."""


def known_without_solver(model: nn.Module) -> bool:
    """Whether every part of `model` is a layer or a network of a library of `KNOWN`, as it stands there.

    Any other code may step an ODE itself, or by a copy of a library: a class, its bases, a hook, or a
    function that a layer was given.
    """
    return all(_known_part(part) for part in model.modules())


def _known_part(part: nn.Module) -> bool:
    kind = type(part)
    if not _from(kind.__module__, KNOWN):
        return False
    hooks = (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
    given = (value for value in vars(part).values() if callable(value) and not isinstance(value, nn.Module))
    return all(_from(_home(value), (*KNOWN, *_PLAIN)) for value in (*kind.__mro__, *hooks, *given))


def _home(value: Any) -> str:
    """The module in which a class, a function or the class of an object is written."""
    while isinstance(value, functools.partial):
        value = value.func
    return getattr(value, "__module__", None) or type(value).__module__


def _from(module: str, names: tuple[str, ...]) -> bool:
    return any(f"{module}.".startswith(f"{name}.") for name in names)
