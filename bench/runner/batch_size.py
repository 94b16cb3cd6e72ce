"""How many samples a model is given at once: the smallest batch within 5% of the fastest, measured.

On a CPU the best batch still fits into a cache, on a GPU it fills the chip. What was chosen is kept in
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
from ..records.store import Store, write_atomically
from ..runtime.device import device_name
from ..runtime.memory import free_memory, peak_memory
from ..runtime.time_limit import time_limit
from ..throughput.clock import time_passes
from ..training.train import build_model
from .cost_estimate import on_threads

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
class Rung:
    """What a batch of `size` costs: seconds per sample, and the most bytes held at once."""

    size: int
    seconds: float
    memory: int


Measure = Callable[[int], Rung]
"""Measures one size; raises what `out_of_memory` knows where it does not fit."""


def ladder(largest: int, samples: int) -> list[int]:
    """`SMALLEST`, doubled up to `largest`; no batch is larger than the number of samples."""
    most = max(1, min(largest, samples))
    sizes = [SMALLEST * 2**power for power in range(largest.bit_length()) if SMALLEST * 2**power < most]
    return [*sizes, most]


def climb(measure: Measure, sizes: Iterable[int], *, memory: float, seconds: float = LONGEST) -> list[Rung]:
    """Measure `sizes`, ascending, until larger batches are no faster per sample.

    It also ends before a size that would hold more than `memory` bytes or take more than `seconds` for a
    pass, were both to grow with the size, and at one for which memory runs out.
    """
    rungs: list[Rung] = []
    for size in sizes:
        if rungs and (
            rungs[-1].memory * size / rungs[-1].size > memory or rungs[-1].seconds * size > seconds
        ):
            break
        rung = _try(measure, size)
        if rung is None:
            break
        rungs.append(rung)
        fastest = min(range(len(rungs)), key=lambda i: rungs[i].seconds)
        if len(rungs) - 1 - fastest >= PATIENCE:
            break
    return rungs


def pick(rungs: Sequence[Rung]) -> int:
    """The smallest size within `TOLERANCE` of the fastest."""
    fastest = min(rung.seconds for rung in rungs)
    return min(rung.size for rung in rungs if rung.seconds <= (1 + TOLERANCE) * fastest)


def choose(measure: Measure, sizes: Sequence[int], *, memory: float) -> tuple[int, list[Rung]]:
    """What to take of `sizes`, and what was measured; the first is halved where it is too large."""
    rungs = climb(measure, sizes, memory=memory)
    size = sizes[0]
    while not rungs and size > 1:
        size //= 2
        rung = _try(measure, size)
        rungs = [rung] if rung else []
    return (pick(rungs) if rungs else 1), rungs


def _try(measure: Measure, size: int) -> Rung | None:
    """The rung, or None where memory ran out."""
    try:
        return measure(size)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
    if torch.cuda.is_available():  # outside the handler: the exception holds on to the tensors
        torch.cuda.empty_cache()
    return None


def measure_batches(model: nn.Module, data: Data, device: torch.device) -> Measure:
    """How to measure a forward pass of `model` and the gradient of the loss for its input."""

    def measure(size: int) -> Rung:
        rows = (torch.arange(size) % len(data.train)).to(data.train.images.device)
        images = data.train.images[rows].to(device).requires_grad_(True)
        labels = data.train.labels[rows].to(device)

        def run() -> None:
            loss = F.cross_entropy(ask_model(model, images, data.num_classes), labels, reduction="sum")
            torch.autograd.grad(loss, images)

        memory = peak_memory(run, device)
        durations = time_passes(run, device, seconds=0.0, passes=PASSES)
        return Rung(size=size, seconds=float(durations.min()) / size, memory=memory)

    return measure


class Choices:
    """``<out>/batch_sizes.json``: what was chosen, and the seconds per sample that it was chosen by."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "batch_sizes.json"

    def get(self, key: str) -> int | None:
        """What was chosen under `key`; None where nothing was or the file is of no use."""
        size = self._read().get(key, {}).get("batch_size")
        return size if isinstance(size, int) and size > 0 else None

    def put(self, key: str, size: int, rungs: Sequence[Rung]) -> None:
        """Add or replace a choice; the file is written whole or not at all."""
        measured = {str(rung.size): rung.seconds for rung in rungs}
        body = {**self._read(), key: {"batch_size": size, "seconds_per_sample": measured}}
        write_atomically(self._path, (json.dumps(body, indent=1, sort_keys=True) + "\n").encode())

    def _read(self) -> dict[str, Any]:
        try:
            body = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {k: v for k, v in body.items() if isinstance(v, dict)} if isinstance(body, dict) else {}


def choice_key(spec: ModelSpec, plan: Plan, data: Data, device: torch.device) -> str:
    """Under which a choice is kept: dataset, model with its version and hyperparameters, and device."""
    exact = json.dumps([spec.full_version, plan.hyperparameters(spec)], sort_keys=True)
    digest = hashlib.sha256(exact.encode()).hexdigest()[:12]
    return f"{data.name}/{spec.name}/{digest}/{device_name(device)}"


def known_batch_sizes(plan: Plan, data: Data, store: Store, device: torch.device) -> Plan:
    """`plan` with the sizes that its folder knows, where it asks for "auto"; nothing is measured.

    A size is known from an earlier choice for the model on this device, or else from the records that the
    folder has of the model: a run goes on as it began, on whatever device.
    """
    if plan.preset.batch_size != "auto":
        return plan
    choices, sizes = Choices(store.folder), dict[str, int]()
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
        size = choices.get(choice_key(spec, plan, data, device))
        if size is None and used:
            size = max(used, key=lambda size: (used[size], -size))
        if size is not None:
            sizes[spec.name] = size
    return dataclasses.replace(plan, batch_sizes=sizes)


def settle_batch_sizes(
    plan: Plan,
    data: Data,
    store: Store,
    device: torch.device,
    *,
    fresh: bool = False,
    threads: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Plan:
    """`plan` with a size for each model, where it asks for "auto": a known one, else measured and kept.

    A model is measured untrained, once for all its seeds. One that fails has no size here: its failure is
    reported where it is trained.

    Parameters
    ----------
    fresh
        Measure again what is known.
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
            with time_limit(MEASURING, f"measuring batches of {spec.name}"), on_threads(threads):
                model = build_model(spec.build, data, plan.hyperparameters(spec), 0).to(device).eval()
                memory = free_memory(device) / 2
                with frozen(model):
                    size, rungs = choose(
                        measure_batches(model, data, device),
                        ladder(LARGEST[device.type], samples),
                        memory=min(memory, CPU_MEMORY) if device.type == "cpu" else memory,
                    )
        except Exception:
            continue
        Choices(store.folder).put(choice_key(spec, plan, data, device), size, rungs)
        sizes[spec.name] = size
        say(f"{spec.name} · {size} samples at once, measured up to {rungs[-1].size if rungs else size}")
    return dataclasses.replace(plan, batch_sizes=sizes)
