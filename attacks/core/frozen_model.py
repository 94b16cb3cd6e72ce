"""A model as an attack wants it: in eval mode, and everything put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .modes import eval_mode
from .queried_model import QueriedModel
from .torch_settings import guarded
from .types import Model


@contextmanager
def frozen(model: Model) -> Iterator[None]:
    """Eval mode for a block, in which no gradient is added to a parameter; all put back whatever happens.

    The mode is set by the module's own methods (`eval_mode`). Whether a parameter requires gradients is left
    as it is, since some backward passes need it: whoever differentiates asks for the images' gradient alone
    (``torch.autograd.grad``). What is not a module has neither. The guard of the benchmark stands around the
    whole block, where none stands yet: once, and not around each query.
    """
    while isinstance(model, QueriedModel):
        model = model.model
    if not isinstance(model, nn.Module):
        with guarded(model):
            yield
        return
    with guarded(model), eval_mode(model):
        gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
        try:
            for parameter, _ in gradients:
                parameter.grad = None  # an attack that calls `backward` adds to it
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
