"""The registry of threats, and the decorators that register them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from .._errors import InvalidArgument, one_line
from .._registry import Registry
from .core.curve_search import CurveSearch
from .core.minimum_norm_search import Run, search
from .core.threat import Craft, CraftCurve, Threat, defined_at, module_of
from .core.types import Model, Norm, Seed
from .libraries.lookup import library_threat


class Threats(Registry[Threat]):
    """The registered threats; those of other libraries are found by name, and are no members."""

    def get(self, name: str) -> Threat:
        """The threat `name`, or ``LIBRARY:ATTACK``; raises as `Registry.get` and `library_threat`."""
        return library_threat(name) if isinstance(name, str) and ":" in name else super().get(name)


THREATS = Threats("threat", hint="--load FILE.py registers others")
_GRADIENT_ATTACK = {"family": "gradient", "strength_name": "eps", "needs_gradient": True, "pooled": True}


def register_threat(name: str, **attributes: Any) -> Callable[[Craft], Craft]:
    """Register the decorated function as the threat `name`; `attributes` are those of `Threat`.

    The keyword parameters of the function, with their defaults, become ``Threat.parameters`` unless
    `attributes` names others. One of the family ``gradient`` needs gradients unless it says otherwise.
    """
    attributes.setdefault("needs_gradient", attributes.get("family") == "gradient")

    def decorate(craft: Craft) -> Craft:
        _check_signature(name, craft)
        parameters = {**_defaults(craft), **attributes.pop("parameters", {})}
        THREATS.register(Threat(name=name, craft=craft, parameters=parameters, **attributes))
        return craft

    return decorate


def register_linf_and_l2(
    name: str, *, linf: int = 1, l2: int = 1, **attributes: Any
) -> Callable[[Craft], Craft]:
    """Register the decorated ``craft(norm, model, ...)`` as the threats NAME-linf and NAME-l2, pooled.

    `linf` and `l2` are the versions of the two.
    """

    def decorate(craft: Craft) -> Craft:
        versions: dict[Norm, int] = {"linf": linf, "l2": l2}
        for norm, version in versions.items():
            own = {"norm": norm, "version": version, "strength_name": "eps", "pooled": True}
            register_threat(f"{name}-{norm}", **own, **attributes)(partial(craft, norm))
        return craft

    return decorate


def register_minimum_norm(
    name: str, *, norm: Norm, **attributes: Any
) -> Callable[[Callable[..., Run]], Callable[..., Run]]:
    """Register the minimal-norm threat `name`: what is decorated makes a `Run` of the threat's parameters.

    Besides these it has `restarts`, the number of runs, and `refine`, the bisections at the end: `search`.
    What it crafts at a strength is the best image within it of all that the search has asked about, as
    `CurveSearch` keeps it, and the unperturbed one where none is adversarial.
    """

    def decorate(make: Callable[..., Run]) -> Callable[..., Run]:
        def closest(
            model: Model,
            images: Tensor,
            labels: Tensor,
            seed: Seed,
            *,
            restarts: int,
            refine: int,
            **parameters: Any,
        ) -> tuple[Tensor, Tensor]:
            return search(make(**parameters), model, images, labels, seed, norm, restarts, refine)

        def curve(
            model: Model,
            images: Tensor,
            labels: Tensor,
            strengths: Sequence[float],
            reported: Sequence[float],
            seed: Seed,
            *,
            restarts: int,
            refine: int,
            **parameters: Any,
        ) -> Tensor:
            found = CurveSearch(model, images, labels, seed, strengths, norm)
            observe = found.observer(found.all_samples)
            run = make(**parameters)
            search(run, model, images, labels, seed, norm, restarts, refine, observe=observe)
            return found.best

        settings = {**_GRADIENT_ATTACK, **attributes}
        settings["parameters"] = {**_defaults(make), "restarts": 2, "refine": 10} | attributes.get(
            "parameters", {}
        )
        craft = _at_one_strength(curve, make)
        register_threat(name, norm=norm, closest=closest, curve=curve, **settings)(craft)
        return make

    return decorate


def register_curve(name: str, *, norm: Norm, **attributes: Any) -> Callable[[CraftCurve], CraftCurve]:
    """Register the decorated `CraftCurve` as the threat `name`, a gradient attack whose grid matters.

    What it crafts at a strength alone: the curve over that strength, which is reported.
    """

    def decorate(curve: CraftCurve) -> CraftCurve:
        settings = {**_GRADIENT_ATTACK, **attributes}
        settings["parameters"] = {**_defaults(curve), **attributes.get("parameters", {})}
        craft = _at_one_strength(curve, curve)
        register_threat(name, norm=norm, curve=curve, grid_matters=True, **settings)(craft)
        return curve

    return decorate


def _at_one_strength(curve: CraftCurve, written: Callable[..., Any]) -> Craft:
    """What `curve` hands out at one strength alone, which is reported; of the module of `written`."""

    def craft(
        model: Model, images: Tensor, labels: Tensor, strength: float, seed: Seed, **parameters: Any
    ) -> Tensor:
        return curve(model, images, labels, [strength], [strength], seed, **parameters)[0]

    craft.__module__ = module_of(written)
    return craft


def _check_signature(name: str, craft: Craft) -> None:
    try:
        inspect.signature(craft).bind(*[None] * 5)
    except TypeError as error:
        raise InvalidArgument(
            f"threat {name}: write craft(model, images, labels, strength, seed), parameters after * with a "
            f"default: {one_line(error)}{defined_at(craft)}"
        ) from None


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only parameters of `function` that have a default."""
    own = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return {p.name: p.default for p in own if p.default is not p.empty}
