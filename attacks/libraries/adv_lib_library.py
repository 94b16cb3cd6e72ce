"""Attacks of adv-lib, by the names of their functions."""

from __future__ import annotations

import inspect
import math
import sys
import types
from typing import Any, cast

from torch import Tensor, nn

from ..core.types import Norm
from .library_attack import Call, LibraryAttack

try:
    import visdom  # noqa: F401
except ModuleNotFoundError:  # its plots alone use it
    sys.modules["visdom"] = types.ModuleType("visdom")
    try:
        from adv_lib import attacks
    finally:
        del sys.modules["visdom"]
else:
    from adv_lib import attacks

_STRENGTHS: dict[str, str] = {"apgd": "eps", "apgd_targeted": "eps", "pgd_linf": "ε"}
_ONE_NORM: dict[str, Norm] = {"pgd_linf": "linf", "carlini_wagner_linf": "linf"}
_FILLED = {"norm", "p", "targeted", "num_classes"}
_ORDER = {"linf": math.inf, "l2": 2.0}


def names() -> list[str]:
    """The attacks that can be threats."""
    return sorted(name for name, value in vars(attacks).items() if inspect.isfunction(value))


def reason(name: str) -> str | None:
    """Why a function of the library is not a threat."""
    return None


def find(name: str) -> LibraryAttack:
    """The attack that the function `name` is."""
    function = getattr(attacks, name)
    parameters = list(inspect.signature(function).parameters.values())[3:]
    taken = {p.name for p in parameters}
    norms: tuple[Norm, ...] = ("l2", "linf")
    if name in _ONE_NORM:
        norms = (_ONE_NORM[name],)
    elif taken & {"norm", "p"}:
        norms = ("linf", "l2")

    def run(model: nn.Module, images: Tensor, labels: Tensor, call: Call) -> Tensor:
        order = _ORDER[cast(str, call.norm)]
        filled: dict[str, Any] = {"norm": order, "p": order, "targeted": False} | {
            "num_classes": call.num_classes
        }
        filled = {key: value for key, value in filled.items() if key in taken}
        if name in _STRENGTHS:
            filled[_STRENGTHS[name]] = call.strength
        found: Tensor = function(model, images, labels, **call.parameters, **filled)
        return found

    return LibraryAttack(
        run=run,
        norms=norms,
        bounded=name in _STRENGTHS,
        parameters={
            p.name: p.default
            for p in parameters
            if p.name not in {*_FILLED, _STRENGTHS.get(name)}
            and p.kind is p.POSITIONAL_OR_KEYWORD
            and not callable(p.default)
            and p.name not in ("callback", "starting_points")
        },
    )
