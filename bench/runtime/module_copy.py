"""A copy of a module that may hold tensors with a graph, such as the features of its last pass."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn


def copy_module(module: nn.Module) -> nn.Module:
    """A deep copy of `module`. Of a tensor with a graph torch makes none: its values are copied."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(module, memo)
