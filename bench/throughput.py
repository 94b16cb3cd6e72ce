"""How fast a model is: inference and a training step, per device, over batch sizes."""

from __future__ import annotations

import copy
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..models import count_nfe
from .data import Split
from .evaluate import frozen
from .queries import call_model
from .records import Cell, Record
from .train import training_step

WARM_UP = 3
"""Passes before the first one that is timed."""


def time_passes(
    run: Callable[[], object], device: torch.device, *, seconds: float, passes: int
) -> np.ndarray:
    """Time `run` at least `passes` times and for at least `seconds`; seconds per pass, float64 (n,).

    On CUDA each pass lies between two events on the stream and the device is synchronised before and
    after; on a CPU a monotonic clock is read around each pass.
    """
    for _ in range(WARM_UP):
        run()
    durations: list[float] = []
    total = 0.0
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        while len(durations) < passes or total < seconds:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            durations.append(begin.elapsed_time(end) / 1000)
            total += durations[-1]
    else:
        while len(durations) < passes or total < seconds:
            begin_time = time.perf_counter()
            run()
            durations.append(time.perf_counter() - begin_time)
            total += durations[-1]
    return np.array(durations)


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


def inference(model: nn.Module, images: Tensor, num_classes: int) -> Callable[[], object]:
    """A call that classifies `images` once, without a graph."""

    def run() -> None:
        with torch.inference_mode():
            model(images)

    call_model(model, images[:1], num_classes)
    return run


def train_once(model: nn.Module, images: Tensor, labels: Tensor, num_classes: int) -> Callable[[], object]:
    """A call that does one Adam step on `images` on a copy of `model`."""
    twin = copy.deepcopy(model).train().requires_grad_(True)
    optimiser = torch.optim.Adam(twin.parameters(), lr=1e-6)
    return lambda: training_step(twin, images, labels, optimiser, num_classes)


def measure_cell(
    cell: Cell,
    model: nn.Module,
    split: Split,
    *,
    num_classes: int,
    device: torch.device,
    environment: Mapping[str, Any],
) -> Record:
    """Time one throughput cell: ``inference`` or ``training-step`` at ``cell.batch_size``."""
    started = time.perf_counter()
    rows = torch.arange(cell.batch_size) % len(split)
    images, labels = split.images[rows].to(device), split.labels[rows].to(device)
    with frozen(model):
        if cell.threat == "inference":
            run = inference(model, images, num_classes)
        else:
            run = train_once(model, images, labels, num_classes)
        memory = peak_memory(run, device)
        durations = time_passes(
            run, device, seconds=float(cell.parameters["seconds"]), passes=int(cell.parameters["passes"])
        )
    median, p95 = np.quantile(durations, [0.5, 0.95])
    return Record(
        cell=cell,
        outcomes={"seconds": durations},
        measures={
            "samples_per_second": cell.batch_size / float(median),
            "latency_median": float(median),
            "latency_p95": float(p95),
            "peak_memory_bytes": float(memory),
            "parameters": float(sum(p.numel() for p in model.parameters())),
        },
        nfe=count_nfe(model),
        seconds=time.perf_counter() - started,
        environment=environment,
    )
