"""A model as an attack wants it: eval mode, no parameter gradients, and everything put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .modes import eval_mode
from .queried_model import QueriedModel
from .types import Model


@contextmanager
def frozen(model: Model) -> Iterator[None]:
    """Eval mode and no parameter gradients for a block; both put back whatever happens.

    The mode is set by the module's own methods (`eval_mode`). What is not a module has neither.
    """
    while isinstance(model, QueriedModel):
        model = model.model
    if not isinstance(model, nn.Module):
        yield
        return
    with eval_mode(model):
        parameters = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        try:
            for parameter, _ in parameters:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter, flag in parameters:
                parameter.requires_grad_(flag)
