"""A module that is moved, trained or changed otherwise for a while, and then is as it was. It is not copied.

A module may hold what cannot be copied: the graph of its last pass, a hook, a lock, a random generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_TABLES = ("_parameters", "_buffers", "_modules")


@contextmanager
def put_back(module: nn.Module) -> Iterator[None]:
    """Put tensors, gradients, attributes and submodules of `module` back after a block, whatever happens.

    The values of a parameter are put back only where they were replaced (``parameter.data = ...``), not where
    they were written to: see `change_tensors`. The content of lists and other objects is left as it is.
    """
    parts = [part for part in module.modules() if not isinstance(part, torch.jit.ScriptModule)]
    parameters = [(p, p.data, p.requires_grad, p.grad) for p in module.parameters()]
    buffers = [(part, name, b) for part in module.modules() for name, b in part._buffers.items()]
    tables = [
        (table, dict(table)) for part in parts for table in map(vars(part).get, _TABLES) if table is not None
    ]
    attributes = [(vars(part), dict(vars(part))) for part in parts]
    try:
        for parameter, *_ in parameters:
            parameter.grad = None
        yield
    finally:
        for found, before in (*attributes, *tables):
            found.clear()
            found.update(before)
        for part, name, buffer in buffers:
            part._buffers[name] = buffer
        for parameter, values, flag, gradient in parameters:
            if parameter.is_inference():
                continue  # it was replaced, if anything
            parameter.data = values
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)
            parameter.grad = gradient


def change_tensors(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Give the parameters and buffers of `module` the values that `change` returns for theirs.

    A parameter that was made in inference mode, and takes part in no gradient, is replaced by another one.
    """
    changed: dict[int, Any] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in changed:
                values = change(parameter.data)
                if parameter.is_inference():
                    changed[id(parameter)] = nn.Parameter(values, parameter.requires_grad)
                else:
                    parameter.data, changed[id(parameter)] = values, parameter
            part._parameters[name] = changed[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = changed.setdefault(id(buffer), change(buffer))


def train_all(module: nn.Module) -> None:
    """Have every parameter of `module` require gradients, but for those that hold no real numbers."""
    for parameter in module.parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.requires_grad_(True)
