"""How much memory a call holds in tensors at once, and how much a device has left."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from . import machine


class _TensorMemory(TorchDispatchMode):
    """Bytes of tensor storage that are alive at once, at most, while the mode is on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):  # it was there before, so a view of it is nothing new
                self._count(leaf.untyped_storage(), 0)
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage(), leaf.untyped_storage().nbytes())
        return result

    def _count(self, storage: torch.UntypedStorage, size: int) -> None:
        identity = storage._cdata
        if identity in self._seen:
            return
        self._seen.add(identity)
        self.now += size
        self.peak = max(self.peak, self.now)

        def release() -> None:
            self.now -= size
            self._seen.discard(identity)

        weakref.finalize(storage, release)


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Most bytes that `run` holds in tensors at once, beyond what existed before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before: int = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        peak: int = torch.cuda.max_memory_allocated(device) - before
        return peak
    with _TensorMemory() as memory:
        run()
    return int(memory.peak)


def free_device_memory(device: torch.device) -> int:
    """Free bytes of memory, of a GPU or else of the system or the container around it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return machine.free_memory()
