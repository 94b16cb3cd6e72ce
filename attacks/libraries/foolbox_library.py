"""Attacks of foolbox 3, by the names of their classes."""

from __future__ import annotations

import inspect
import math
from typing import Any

import foolbox
from torch import Tensor, nn

from ..core.types import Norm
from .library_attack import Call, LibraryAttack

_NORMS: dict[float, Norm] = {math.inf: "linf", 2: "l2"}


def names() -> list[str]:
    """The attacks that can be threats."""
    return sorted(name for name, kind in vars(foolbox.attacks).items() if _is_attack(kind))


def reason(name: str) -> str | None:
    """Why a class of the library is not a threat; None for any other name."""
    kind = getattr(foolbox.attacks, name, None)
    if _is_class(kind) and _fixed(kind) and _norm_of(kind) is None:
        return "its budget is neither in L-infinity nor in L2"
    return None


def find(name: str) -> LibraryAttack:
    """The attack that the class `name` is."""
    kind = getattr(foolbox.attacks, name)
    own = [p for p in inspect.signature(kind).parameters.values() if p.name not in ("args", "kwargs")]
    norm, flexible = _norm_of(kind), any(p.name == "distance" for p in own)
    norms: tuple[Norm, ...] = ("l2", "linf") if norm is None or flexible else (norm,)

    def run(model: nn.Module, images: Tensor, labels: Tensor, call: Call) -> Tensor:
        parameters: dict[str, Any] = dict(call.parameters)
        if flexible:
            parameters["distance"] = getattr(foolbox.distances, str(call.norm))
        wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device=images.device)
        raw, clipped, _ = kind(**parameters)(wrapped, images, labels, epsilons=call.strength)
        found: Tensor = clipped if _fixed(kind) else raw
        return found

    return LibraryAttack(
        run=run,
        norms=norms,
        bounded=_fixed(kind),
        parameters={p.name: p.default for p in own if p.default is not p.empty and p.name != "distance"},
    )


def _is_class(kind: object) -> bool:
    return (
        inspect.isclass(kind)
        and issubclass(kind, foolbox.attacks.base.Attack)
        and not inspect.isabstract(kind)
        and not kind.__module__.endswith("attacks.base")
    )


def _is_attack(kind: Any) -> bool:
    """Whether a class can be built without arguments, as a threat is, and has a norm of ours."""
    if not _is_class(kind) or (_fixed(kind) and _norm_of(kind) is None):
        return False
    needed = [p for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
    return all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in needed)


def _fixed(kind: Any) -> bool:
    return issubclass(kind, foolbox.attacks.base.FixedEpsilonAttack)


def _norm_of(kind: Any) -> Norm | None:
    """The norm that an attack bounds or minimises; None for another one, or where it may be chosen."""
    try:
        return _NORMS.get(float(kind().distance.p))
    except (AttributeError, TypeError, ValueError):
        return None
