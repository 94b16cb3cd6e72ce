"""Attacks of torchattacks, by the names of their classes."""

from __future__ import annotations

import inspect
from typing import Any

import torchattacks
from torch import Tensor, nn

from ..core.types import Norm
from .library_attack import Call, LibraryAttack

_NO_ATTACK = {"VANILA": "clean images: use the threat clean", "MultiAttack": "made of other attacks"} | {
    "LGV": "trained on a data loader"
}
_IN_L2 = {"PGDL2", "PGDRSL2"}
_WITHOUT_GRADIENT = {"OnePixel", "Pixle", "Square", "SPSA"}
_STRENGTH = ("eps", "max_epsilon", "std")
_FILLED = {"norm", "seed", "n_classes", "verbose"}
"""Parameters that follow from the threat, the run and the model."""


def names() -> list[str]:
    """The attacks that can be threats."""
    return [name for name in torchattacks.__all__ if name not in _NO_ATTACK]


def reason(name: str) -> str | None:
    """Why a class of the library is not a threat; None for any other name."""
    return _NO_ATTACK.get(name)


def find(name: str) -> LibraryAttack:
    """The attack that the class `name` is."""
    make = getattr(torchattacks, name)
    defaults = {p.name: p.default for p in inspect.signature(make).parameters.values()}
    del defaults["model"]
    strength = next((s for s in _STRENGTH if s in defaults), None)
    noise = name == "GN"
    norms: tuple[Norm, ...] = () if noise else ("l2",) if name in _IN_L2 else ("linf",)
    if "norm" in defaults:
        norms = ("linf", "l2")
    elif strength is None:
        norms = ("l2", "linf")

    def run(model: nn.Module, images: Tensor, labels: Tensor, call: Call) -> Tensor:
        filled: dict[str, Any] = {
            "norm": {"linf": "Linf", "l2": "L2"}.get(call.norm or ""),
            "seed": call.seed,
            "n_classes": call.num_classes,
            "verbose": False,
            strength or "": call.strength,
        }
        filled = {key: value for key, value in filled.items() if key in defaults}
        found: Tensor = make(model, **call.parameters, **filled)(images, labels)
        return found

    return LibraryAttack(
        run=run,
        norms=norms,
        bounded=strength is not None,
        family="noise" if noise else "search" if name in _WITHOUT_GRADIENT else "gradient",
        parameters={key: value for key, value in defaults.items() if key not in {*_FILLED, strength}},
    )
