"""How an exception says that memory ran out."""

from __future__ import annotations

import torch

_SIGNS = ("can't allocate memory", "cuda error: out of memory", "alloc_failed")
"""How a RuntimeError says it: torch on a CPU, the CUDA runtime, cuBLAS and cuDNN."""


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on a GPU or on a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)
