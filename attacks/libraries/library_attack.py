"""How an attack of another library becomes a threat, and what is not trusted in it.

It is handed the model behind a module that has no mode to switch, and runs with torch's generators seeded and
forked. Of all images that it asks about or returns, the best one within the budget counts, and what is
returned is checked by the harness as that of any attack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..._errors import AttackFailure, BudgetViolation
from ..algorithms.repeated_runs import run_repeatedly
from ..core.norms import BUDGET_TOLERANCE, violation
from ..core.seeds import derive, per_sample, seeded
from ..core.threat import Threat
from ..core.types import Family, Model, Norm, Seed

_STEPS = ("steps", "num_steps", "n_iter", "nb_iter", "iter", "max_iterations", "num_iter_set", "n_queries")
"""What libraries call the parameter that an attack's cost grows with."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """What an attack of a library is run with, besides model, images and labels.

    Attributes
    ----------
    seed
        For an attack that seeds a generator by itself.
    num_classes
        K.
    parameters
        Those of the threat.
    """

    strength: float
    norm: Norm | None
    seed: int
    num_classes: int
    parameters: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class LibraryAttack:
    """An attack of another library.

    Attributes
    ----------
    run
        ``run(model, images, labels, call)`` returns perturbed images.
    norms
        In which its strength may be measured, the usual one first; empty for unbounded noise.
    bounded
        Whether it takes the strength and must keep to it. Else it looks for a closest image, and what lies
        beyond the strength does not count.
    family
        ``gradient``, ``search`` or ``noise``.
    parameters
        What it may be called with besides the strength, with their defaults.
    """

    run: Callable[[nn.Module, Tensor, Tensor, Call], Tensor]
    norms: tuple[Norm, ...]
    bounded: bool
    family: Family = "gradient"
    parameters: Mapping[str, Any] = field(default_factory=dict)


def make_threat(name: str, attack: LibraryAttack, norm: Norm | None, *, version: str) -> Threat:
    """`attack` as a threat in `norm`; `version` of its library, such as ``3.5.1``, becomes the threat's."""

    def craft(
        model: Model, images: Tensor, labels: Tensor, strength: float, seed: Seed, **parameters: Any
    ) -> Tensor:
        number = derive([derive(per_sample(seed, len(images)), name)[0]], "library")[0] % 2**31

        def run(tracked: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            with torch.no_grad():
                classes = tracked(images[:1]).shape[1]
            call = Call(strength=strength, norm=norm, seed=number, num_classes=classes, parameters=parameters)
            found = attack.run(tracked, images.clone(), labels.clone(), call)
            if not isinstance(found, Tensor) or found.shape != images.shape:
                what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise AttackFailure(f"{name} returned {what}, not images of shape {tuple(images.shape)}")
            found = found.detach().to(images)
            finite = found.isfinite().flatten(1).all(1).view(-1, 1, 1, 1)
            found = torch.where(finite, found, images)  # it divided by a gradient that is zero
            if attack.bounded:
                _require_budget(name, found, images, strength, norm)
            return found

        if norm is None:
            with seeded(seed, restart=0, device=images.device), torch.enable_grad():
                return run(_Bare(model, images), images, labels)
        return run_repeatedly(run, model, images, labels, seed, early_stopping=False, budget=(strength, norm))

    return Threat(
        name=name,
        family=attack.family,
        craft=craft,
        norm=norm,
        parameters=dict(attack.parameters),
        any_parameter_values=True,
        strength_name="sigma" if norm is None else "eps",
        stochastic=norm is None,
        needs_gradient=True,
        queries=_queries(attack.family),
        reference=f"{name.partition(':')[0]} {version}",
        version=_as_number(version),
    )


class _Bare(nn.Module):
    """A model for noise, which does not ask it; of a library that wants a module with a parameter."""

    def __init__(self, model: Model, images: Tensor) -> None:
        super().__init__()
        self._model = (model,)
        self._anchor = nn.Parameter(images.new_empty(0), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return self._model[0](images)


def _require_budget(name: str, found: Tensor, images: Tensor, strength: float, norm: Norm | None) -> None:
    excess = float(violation(found, images, strength, norm).max())
    if excess > BUDGET_TOLERANCE * max(1.0, strength):
        raise BudgetViolation(f"{name} left its budget of {strength:g} or the box [0, 1] by {excess:.3g}")


def _queries(family: Family) -> Callable[[Mapping[str, Any]], tuple[int, int]]:
    def count(parameters: Mapping[str, Any]) -> tuple[int, int]:
        """An estimate: what an attack asks is not known before it runs."""
        known = (parameters[name] for name in _STEPS if isinstance(parameters.get(name), int))
        steps = next(known, 1)
        return steps + 2, steps if family == "gradient" else 0

    return count


def _as_number(version: str) -> int:
    """``3.5.1`` as 30501: another version of a library may be another attack."""
    parts = [int(part) if part.isdecimal() else 0 for part in version.split(".")[:3]]
    major, minor, patch = (*parts, 0, 0, 0)[:3]
    return (major * 100 + minor) * 100 + patch
