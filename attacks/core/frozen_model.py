"""A model as an attack wants it: eval mode, no parameter gradients, and everything put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .modes import eval_mode
from .queried_model import QueriedModel
from .torch_settings import guarded
from .types import Model


def freezable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of `model`, but those that some adjoints of torchdyn and torchode need a gradient of."""
    needed = {
        id(parameter)
        for part in model.modules()
        if getattr(part, "sensalg", "autograd") in ("adjoint", "interpolated_adjoint")
        or type(part).__name__ == "JointBacksolveAdjoint"
        for parameter in part.parameters()
    }
    return [parameter for parameter in model.parameters() if id(parameter) not in needed]


def freeze(model: nn.Module) -> nn.Module:
    """`model` itself, without gradients of its `freezable` parameters from now on."""
    for parameter in freezable(model):
        parameter.requires_grad_(False)
    return model


@contextmanager
def frozen(model: Model) -> Iterator[None]:
    """Eval mode and no gradients of `freezable` parameters for a block; both put back whatever happens.

    The mode is set by the module's own methods (`eval_mode`). What is not a module has neither. The guard
    of the benchmark stands around the whole block, where none stands yet: once, and not around each query.
    """
    while isinstance(model, QueriedModel):
        model = model.model
    if not isinstance(model, nn.Module):
        with guarded(model):
            yield
        return
    with guarded(model), eval_mode(model):
        parameters = [(parameter, parameter.requires_grad) for parameter in freezable(model)]
        try:
            for parameter, _ in parameters:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter, flag in parameters:
                parameter.requires_grad_(flag)
