"""A copy of a module that may hold tensors with a graph, such as the features of its last pass."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def copy_module(module: Module) -> Module:
    """A deep copy of `module`. Of a tensor with a graph torch makes none: its values are copied."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(module, memo)
