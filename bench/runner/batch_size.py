"""The batch size of each model: the smallest within 5% of the fastest, measured.

On a CPU the best batch still fits into a cache, on a GPU it fills the chip. Choices are stored in
``<out>/batch_sizes.json``: the batch size is part of a cell's key, so a run that goes on takes the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ...attacks.core.memory import out_of_memory
from ...attacks.core.model_call import ask_model
from ...models import ModelSpec
from ..config.cells import training_cell
from ..config.plan import Plan
from ..data import Data
from ..evaluation.accuracy import frozen
from ..records.atomic import write_atomically
from ..records.store import Store
from ..runtime.device import device_name
from ..runtime.foreign_code import running
from ..runtime.memory import free_device_memory, peak_memory
from ..runtime.time_limit import time_limit
from ..throughput.clock import time_passes
from .build_planned import build_planned
from .cost_estimate import torch_threads

SMALLEST = 16
LARGEST = {"cpu": 1024, "cuda": 8192}
TOLERANCE = 0.05
"""How much slower than the fastest a smaller batch may be."""
PATIENCE = 2
"""Sizes in a row that are no faster, after which no larger one is tried."""
PASSES, LONGEST = 3, 5.0
"""Timed passes of each size, and the seconds after which one pass is too long to be tried."""
MEASURING = 120.0
"""Seconds after which a model is not waited for."""
CPU_MEMORY = 2**30
"""Bytes that a batch may hold on a CPU, where several processes share the memory."""


@dataclass(frozen=True, kw_only=True)
class BatchTiming:
    """Seconds per sample of a batch of `size` samples, and the most bytes it holds at once."""

    size: int
    seconds: float
    memory: int


MeasureBatch = Callable[[int], BatchTiming]
"""Times one batch size; raises an error that `out_of_memory` recognises where it does not fit."""


def candidate_sizes(largest: int, samples: int) -> list[int]:
    """`SMALLEST`, doubled up to `largest`; no batch is larger than the number of samples."""
    most = max(1, min(largest, samples))
    sizes = [SMALLEST * 2**power for power in range(largest.bit_length()) if SMALLEST * 2**power < most]
    return [*sizes, most]


def time_sizes(
    measure: MeasureBatch, sizes: Iterable[int], *, memory: float, seconds: float = LONGEST
) -> list[BatchTiming]:
    """Time `sizes`, ascending, until larger batches are no faster per sample.

    It also ends before a size that would hold more than `memory` bytes or take more than `seconds` for a
    pass, were both to grow with the size, and at one for which memory runs out.
    """
    timings: list[BatchTiming] = []
    for size in sizes:
        if timings and (
            timings[-1].memory * size / timings[-1].size > memory or timings[-1].seconds * size > seconds
        ):
            break
        timing = _try(measure, size)
        if timing is None:
            break
        timings.append(timing)
        fastest = min(range(len(timings)), key=lambda i: timings[i].seconds)
        if len(timings) - 1 - fastest >= PATIENCE:
            break
    return timings


def smallest_near_fastest(timings: Sequence[BatchTiming]) -> int:
    """The smallest size within `TOLERANCE` of the fastest."""
    fastest = min(timing.seconds for timing in timings)
    return min(timing.size for timing in timings if timing.seconds <= (1 + TOLERANCE) * fastest)


def choose_batch_size(
    measure: MeasureBatch, sizes: Sequence[int], *, memory: float
) -> tuple[int, list[BatchTiming]]:
    """The size to use, and its timings; the first of `sizes` is halved where it is too large."""
    timings = time_sizes(measure, sizes, memory=memory)
    size = sizes[0]
    while not timings and size > 1:
        size //= 2
        timing = _try(measure, size)
        timings = [timing] if timing else []
    return (smallest_near_fastest(timings) if timings else 1), timings


def _try(measure: MeasureBatch, size: int) -> BatchTiming | None:
    """The timing, or None where memory ran out."""
    try:
        return measure(size)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
    if torch.cuda.is_available():  # outside the handler: the exception holds on to the tensors
        torch.cuda.empty_cache()
    return None


def measure_batches(model: nn.Module, data: Data, device: torch.device) -> MeasureBatch:
    """How to measure a forward pass of `model` and the gradient of the loss for its input."""

    def measure(size: int) -> BatchTiming:
        rows = (torch.arange(size) % len(data.train)).to(data.train.images.device)
        images = data.train.images[rows].to(device).requires_grad_(True)
        labels = data.train.labels[rows].to(device)

        def run() -> None:
            loss = F.cross_entropy(ask_model(model, images, data.num_classes), labels, reduction="sum")
            torch.autograd.grad(loss, images)

        memory = peak_memory(run, device)
        durations = time_passes(run, device, seconds=0.0, passes=PASSES)
        return BatchTiming(size=size, seconds=float(durations.min()) / size, memory=memory)

    return measure


class BatchSizeFile:
    """The file ``<out>/batch_sizes.json``: the size chosen for each key, and the measured times."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "batch_sizes.json"

    def get(self, key: str) -> int | None:
        """The size chosen for `key`; None where there is none or the file cannot be read."""
        size = self._read().get(key, {}).get("batch_size")
        return size if isinstance(size, int) and size > 0 else None

    def put(self, key: str, size: int, timings: Sequence[BatchTiming]) -> None:
        """Add or replace a choice; the file is written whole or not at all."""
        measured = {str(timing.size): timing.seconds for timing in timings}
        body = {**self._read(), key: {"batch_size": size, "seconds_per_sample": measured}}
        write_atomically(self._path, (json.dumps(body, indent=1, sort_keys=True) + "\n").encode())

    def _read(self) -> dict[str, Any]:
        try:
            body = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {k: v for k, v in body.items() if isinstance(v, dict)} if isinstance(body, dict) else {}


def batch_size_key(spec: ModelSpec, plan: Plan, data: Data, device: torch.device) -> str:
    """Key of a choice: dataset, model with its version and hyperparameters, device."""
    exact = json.dumps([spec.full_version, plan.hyperparameters(spec)], sort_keys=True)
    digest = hashlib.sha256(exact.encode()).hexdigest()[:12]
    return f"{data.name}/{spec.name}/{digest}/{device_name(device)}"


def known_batch_sizes(plan: Plan, data: Data, store: Store, device: torch.device) -> Plan:
    """Return `plan` with the sizes that its folder knows, where it asks for "auto"; nothing is measured.

    A size is known from an earlier choice for the model on this device, or else from the records that the
    folder has of the model: a run goes on as it began, on whatever device.
    """
    if plan.preset.batch_size != "auto":
        return plan
    choices, sizes = BatchSizeFile(store.folder), dict[str, int]()
    free = {attack.threat.name for attack in plan.attacks if attack.plan.batch_size is None}
    cells = [r.cell for r in store.load()[0] if r.cell.kind == "accuracy" and r.status == "ok"]
    for spec in plan.specs:
        like = training_cell(plan, spec, 0, data)
        used = Counter(
            cell.batch_size
            for cell in cells
            if cell.threat in free
            and (cell.dataset, cell.model, cell.model_version, cell.hyperparameters)
            == (like.dataset, like.model, like.model_version, like.hyperparameters)
        )
        size = choices.get(batch_size_key(spec, plan, data, device))
        if size is None and used:
            size = max(used, key=lambda size: (used[size], -size))
        if size is not None:
            sizes[spec.name] = size
    return dataclasses.replace(plan, batch_sizes=sizes)


def choose_batch_sizes(
    plan: Plan,
    data: Data,
    store: Store,
    device: torch.device,
    *,
    fresh: bool = False,
    threads: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Return `plan` with a size for each model, where it asks for "auto": known, or measured and stored.

    A model is measured untrained, once for all its seeds. One that fails has no size here: its failure is
    reported where it is trained.

    Parameters
    ----------
    fresh
        Measure known sizes again.
    threads
        That a model will have, of torch's.
    """
    if plan.preset.batch_size != "auto":
        return plan
    sizes = {} if fresh else dict(known_batch_sizes(plan, data, store, device).batch_sizes)
    samples = max(min(a.plan.samples or len(data.test), len(data.test)) for a in plan.attacks)
    for spec in plan.specs:
        if spec.name in sizes:
            continue
        try:
            with time_limit(MEASURING, f"measuring batches of {spec.name}"), torch_threads(threads):
                model = build_planned(plan, spec, data, 0).to(device)
                memory = free_device_memory(device) / 2
                with running(model, 0), frozen(model):
                    size, timings = choose_batch_size(
                        measure_batches(model, data, device),
                        candidate_sizes(LARGEST[device.type], samples),
                        memory=min(memory, CPU_MEMORY) if device.type == "cpu" else memory,
                    )
        except Exception:
            continue
        BatchSizeFile(store.folder).put(batch_size_key(spec, plan, data, device), size, timings)
        sizes[spec.name] = size
        say(f"{spec.name} · {size} samples at once, measured up to {timings[-1].size if timings else size}")
    return dataclasses.replace(plan, batch_sizes=sizes)
