"""A model as an attack wants it: eval mode, no parameter gradients, and everything put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .types import Model


@contextmanager
def frozen(model: Model) -> Iterator[None]:
    """Eval mode and no parameter gradients for a block; put back module by module whatever happens.

    torchattacks 3.5.1 restores the mode of the outermost module alone, and none after an exception. What
    is not a module has neither.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    flags = [parameter.requires_grad for parameter in parameters]
    try:
        for module in modules:
            module.training = False
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)
