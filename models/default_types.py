"""Gives a value the type of the default that it replaces: TOML has arrays and text, Python has more."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

from .recorded_arrays import TORCH_CONSTANTS, torch_constant


def like_default(value: Any, default: Any) -> Any:
    """Return a list or text as what `default` is; anything else, and what fits as it is, unchanged.

    A list becomes the default's tuple, set, array, tensor or range, and its elements become like those of the
    default; one beyond them becomes like the last. Text becomes a member of the default's enumeration (by
    name, else by value), a path, a constant of torch such as a dtype, a device or bytes.

    Raises
    ------
    ValueError, TypeError, AttributeError
        When it cannot be.
    """
    kind = type(default)
    if type(value) is list:
        if isinstance(default, np.ndarray):
            return _whole(np.asarray(value, default.dtype), value, default.dtype.kind in "biu")
        if isinstance(default, torch.Tensor):
            fractions = default.is_floating_point() or default.is_complex()
            return _whole(torch.tensor(value, dtype=default.dtype), value, not fractions)
        if kind is range:
            return range(*value)
        if isinstance(default, list | tuple | set | frozenset):
            return _collection(value, default)
    if type(value) is dict and type(default) is dict:
        names = {str(key): key for key in default}
        return {names.get(k, k): like_default(v, default.get(names.get(k, k))) for k, v in value.items()}
    if type(value) is str:
        if isinstance(default, Enum):
            return kind[value] if value in kind.__members__ else kind(value)
        if isinstance(default, TORCH_CONSTANTS):
            return torch_constant(value, kind)
        if isinstance(default, PurePath | torch.device):
            return kind(value)
        if kind is bytes:
            return value.encode()
    return value


def _whole(found: Any, value: list[Any], whole: bool) -> Any:
    """`found`, which is made of `value`; raises `ValueError` where its whole numbers are others."""
    if whole and found.tolist() != value:
        raise ValueError(f"the default holds {found.dtype}, and {value} does not fit")
    return found


def _collection(value: list[Any], default: Any) -> Any:
    models = list(default)
    ordered = isinstance(default, list | tuple)
    if not ordered and len({type(one) for one in models}) != 1:
        models = []
    last = models[-1] if models else None
    parts = [like_default(v, models[i] if ordered and i < len(models) else last) for i, v in enumerate(value)]
    make: Callable[..., Any] = type(default)
    return make(*parts) if hasattr(default, "_fields") else make(parts)
