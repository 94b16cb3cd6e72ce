"""The tensors in a file of weights: safetensors, or what `torch.save` wrote, of which no code is run."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..._errors import CheckpointError, one_line
from ..records.checkpoint import load_bytes, load_tensors
from ..records.weights_file import SUFFIX, SUFFIX_XZ

SAVED_BY_TORCH = (".pt", ".pth", ".bin", ".ckpt", ".tar")
"""Suffixes of files that `torch.save` wrote."""
ENTRIES = ("state_dict", "model_state_dict", "model", "net", "weights", "params")
"""Entries of a larger checkpoint that may hold the weights."""
ADVICE = "save the weights alone, by torch.save(model.state_dict(), FILE.pt)"


def read_weights(path: Path) -> tuple[dict[str, Tensor], bytes | None]:
    """Return the tensors of a file by name, and its bytes where it is a safetensors file, decompressed.

    Raises
    ------
    CheckpointError
        When it cannot be read, is damaged, or holds more than tensors.
    """
    if path.name.endswith(SAVED_BY_TORCH):
        return _saved_by_torch(path), None
    if not path.name.endswith((SUFFIX, SUFFIX_XZ)):
        raise CheckpointError(f"{path} is no file of weights by its name: {ADVICE}")
    try:
        tensors, _ = load_tensors(path)
        return tensors, load_bytes(path)
    except CheckpointError as error:
        line = str(error).replace(": delete it to train again", "")
        advice = ": if torch.save wrote it, call it .pt" if "pickle" in line else ""
        raise CheckpointError(f"{line}{advice}") from None


def plain_file(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the bytes of a safetensors file of `tensors`: of equal tensors equal bytes."""
    return safetensors.torch.save({name: t.contiguous().clone() for name, t in tensors.items()})


def hash_of(plain: bytes) -> str:
    """Return the SHA-256 of a plain safetensors file."""
    return hashlib.sha256(plain).hexdigest()


def _saved_by_torch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or one_line(error)}") from None
    except Exception as error:  # a whole module, an archive of TorchScript, a damaged file
        raise CheckpointError(
            f"{path} cannot be read without running code from it ({type(error).__name__}), or is damaged: "
            f"{ADVICE}"
        ) from None
    found = _state(content)
    if found is None:
        raise CheckpointError(f"{path} holds no weights by name: {ADVICE}")
    for name, value in found.items():
        if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_quantized:
            what = type(value).__name__ if not isinstance(value, Tensor) else "no plain tensor"
            raise CheckpointError(f"{path} holds more than tensors ({name}: {what}): {ADVICE}")
    return {name: value.detach() for name, value in found.items()}


def _state(content: Any) -> Mapping[str, Any] | None:
    """The entries by name, of a larger checkpoint those of its weights; None where there are none."""
    if not isinstance(content, Mapping):
        return None
    for entry in ENTRIES:
        inner = content.get(entry)
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
            return _state(inner)
    named = all(isinstance(name, str) for name in content)
    return content if named and any(isinstance(value, Tensor) for value in content.values()) else None
