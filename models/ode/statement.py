"""Which of a module's methods say what calls of it compute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from .lipschitz import LipschitzParts, NoCertificate
from .tanh_field import MatrixField

if TYPE_CHECKING:
    from .block import ODEBlock

_CHANGED = "a subclass or a hook changes what the flow computes"


def statement_of(layer: nn.Module) -> Literal["matrices", "forward", "both"]:
    """How a layer of an `ODEBlock` states its field.

    Returns
    -------
    str
        ``matrices``: by ``tanh_field`` of a `MatrixField`, from which ``forward`` follows.
        ``forward``: by what a call of it does, where it has no ``tanh_field`` that speaks of its calls.
        ``both``: twice, by a ``forward`` and a ``tanh_field`` that do not follow from each other; a run
        compares them, see `check_field_agreement`.
    """
    if not describes_calls(layer, "tanh_field"):
        return "forward"
    return "matrices" if type(layer).forward is MatrixField.forward else "both"


def stated_lipschitz_parts(model: nn.Module) -> LipschitzParts:
    """Return what the method ``lipschitz_parts`` of `model` states.

    Raises
    ------
    NoCertificate
        When it states nothing, or states it of another ``forward`` than the one that runs.
    """
    state = getattr(model, "lipschitz_parts", None)
    if not callable(state):
        raise NoCertificate("the model states no Lipschitz bounds (a method lipschitz_parts)")
    if not describes_calls(model, "lipschitz_parts", parts=False):
        raise NoCertificate(
            "the model's lipschitz_parts speaks of another forward: a subclass, a hook or an assignment "
            "changes what the model computes"
        )
    parts: LipschitzParts = state()
    return parts


def stated_solver_bound(flow: ODEBlock) -> float:
    """Return what the method ``solver_bound`` of `flow` states.

    Raises
    ------
    NoCertificate
        When it knows no bound, or states it of another ``forward`` than the one that runs.
    """
    if not describes_calls(flow, "solver_bound"):
        raise NoCertificate(_CHANGED)
    return flow.solver_bound()


def stated_lipschitz_bounds(flow: ODEBlock) -> dict[str, float]:
    """Return what the method ``lipschitz_bounds`` of `flow` states.

    Raises
    ------
    NoCertificate
        When it knows no bounds, or states them of another ``forward`` than the one that runs.
    """
    if not describes_calls(flow, "lipschitz_bounds"):
        raise NoCertificate(_CHANGED)
    return flow.lipschitz_bounds()


def stated_constants(flow: ODEBlock) -> dict[str, float]:
    """Return what the method ``bounds`` of `flow` states; empty where it is of another ``forward``."""
    return flow.bounds() if describes_calls(flow, "bounds") else {}


def describes_calls(module: nn.Module, name: str, *, parts: bool = True) -> bool:
    """Whether the method `name` can speak of what a call of `module` computes.

    It cannot where a subclass overrides ``forward`` below the class that defines `name`, and where
    `calls_are_changed`.
    """
    kind = type(module)
    if not callable(getattr(module, name, None)) or calls_are_changed(module, parts=parts):
        return False
    if name in vars(module):
        return True
    first = next((c for c in kind.__mro__ if {"forward", name} & vars(c).keys()), kind)
    derived = name == "tanh_field" and kind.forward is MatrixField.forward
    return derived or name in vars(first)


def calls_are_changed(module: nn.Module, *, parts: bool = True) -> bool:
    """Whether hooks, a ``__call__`` or an instance's own ``forward`` change what calls do.

    Those of `module` and, with `parts`, of all modules inside it.
    """
    everywhere = torch.nn.modules.module._has_any_global_hook()
    return everywhere or any(
        type(part).__call__ is not nn.Module.__call__
        or "forward" in vars(part)
        or part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        or part._backward_pre_hooks
        for part in (module.modules() if parts else [module])
    )
