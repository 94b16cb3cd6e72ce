"""Bytes, arrays and tensors as JSON: dtype, shape and base64, of a size that a record can hold."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch

MOST_BYTES = 2**16
"""Of an array among the hyperparameters: it is written into every file of records."""
_NUMPY_KINDS = "biufcmM"
TORCH_CONSTANTS = (torch.dtype, torch.layout, torch.memory_format)


class NotRecordable(ValueError):
    """A value that a record cannot hold; the message says which."""


def write_bytes(data: bytes) -> str:
    """Return `data` in base64; raises `NotRecordable` where there is too much of it."""
    if len(data) > MOST_BYTES:
        raise NotRecordable(f"it holds {len(data)} bytes, more than {MOST_BYTES}: let the factory read them")
    return base64.b64encode(data).decode()


def write_array(value: Any) -> list[Any]:
    """Return an array or numpy scalar as dtype, shape and base64."""
    array = np.asarray(value)
    if array.dtype.kind not in _NUMPY_KINDS:
        raise NotRecordable(f"it holds an array of {array.dtype}")
    return [array.dtype.str, list(array.shape), write_bytes(array.tobytes())]


def read_array(body: Any) -> np.ndarray[Any, Any]:
    """Return what `write_array` was given, as an array."""
    dtype, shape, data = body
    return np.frombuffer(base64.b64decode(data), np.dtype(dtype)).reshape(shape).copy()


def write_tensor(value: torch.Tensor) -> list[Any]:
    """Return a plain tensor as dtype, shape and base64."""
    if value.requires_grad or value.is_quantized or value.layout is not torch.strided:
        raise NotRecordable("it holds a tensor that is quantised, sparse or has a gradient")
    plain = value.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8)
    return [str(value.dtype), list(value.shape), write_bytes(plain.numpy().tobytes())]


def read_tensor(body: Any) -> torch.Tensor:
    """Return what `write_tensor` was given, on the CPU."""
    dtype, shape, data = body
    found = torch.empty(shape, dtype=torch_constant(dtype))
    if found.numel():
        plain = np.frombuffer(base64.b64decode(data), np.uint8).copy()
        found.reshape(-1).view(torch.uint8).copy_(torch.from_numpy(plain))
    return found


def torch_constant(name: str, kind: type | tuple[type, ...] = TORCH_CONSTANTS) -> Any:
    """Return what ``torch.float64`` or ``float64`` and the like stand for, which must be of `kind`."""
    found = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(found, kind):
        raise NotRecordable(f"torch has no {name.removeprefix('torch.')}")
    return found


def read_scalar(body: Any) -> Any:
    """Return the numpy scalar that `write_array` was given."""
    return read_array(body)[()]


_TYPES = {np.dtype(code).type for code in np.typecodes["All"]}
SCALARS = tuple(kind for kind in _TYPES if np.dtype(kind).kind in _NUMPY_KINDS)
"""Types of numpy's scalars."""
