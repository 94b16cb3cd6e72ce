"""What there is to do: the cells of each training, which of them are stored, how long the rest takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import nn

from ..._errors import CheckpointError
from ...models import ModelSpec, solver_surrogates
from ..config.cells import accuracy_cells, certificate_cells, dynamics_cell, throughput_cells, training_cell
from ..config.plan import Plan
from ..data import Data
from ..records.checkpoint import find_checkpoint
from ..records.record import Cell
from ..records.store import Store
from ..runtime.device import device_name
from ..runtime.time_limit import time_limit
from ..training.provenance import describe_solver
from ..training.train import build_model
from .cost_estimate import ESTIMATE_LIMIT, ESTIMATE_SAMPLES, Cost, makespan, measure_cost, on_threads


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """One model of a plan: all its cells, those still to do, and the estimated seconds for them.

    Attributes
    ----------
    busy
        Training seeds that have more to do than timings, and the estimated seconds of that.
    """

    model: str
    cost: Cost
    cells: int
    left: int
    seconds: float
    busy: Mapping[int, float] = field(default_factory=dict)


def cells_of(
    plan: Plan,
    training: Cell,
    checkpoint_sha256: str | None,
    data: Data,
    device: torch.device,
    solver: str | None = None,
) -> list[Cell]:
    """The training cell and every cell on the weights it makes; the hash is None before they are made."""
    sha256 = checkpoint_sha256 or ""
    accuracy = accuracy_cells(plan, training, sha256, solver, data, on_gpu=device.type == "cuda")
    certificates = certificate_cells(plan, training, sha256, solver, data)
    return [
        training,
        *accuracy,
        *certificates,
        dynamics_cell(plan, training, sha256, solver),
        *throughput_cells(plan, training, sha256, solver, device_name(device)),
    ]


def look_ahead(
    plan: Plan,
    data: Data,
    store: Store,
    device: torch.device,
    *,
    fresh: bool = False,
    threads: int | None = None,
) -> list[Outlook]:
    """Time one batch of each model of `plan` and add up what is not stored; reads, writes nothing.

    `threads` are those that a unit will have, of torch's.
    """
    outlooks = []
    for spec in plan.specs:
        with on_threads(threads):
            model, cost = _try(spec, plan, data, device)
        solver = describe_solver(model) if model else None
        total, left, busy = 0, list[Cell](), dict[int, float]()
        for seed in plan.seeds_of(spec):
            training = training_cell(plan, spec, seed, data)
            cells, remaining = _remaining(plan, training, data, store, device, solver, fresh)
            total += len(cells)
            left += remaining
            untimed = [cell for cell in remaining if cell.kind != "throughput"]
            if untimed:
                busy[seed] = sum(cost.of(cell, plan) for cell in untimed)
        seconds = sum(cost.of(cell, plan) for cell in left)
        outlooks.append(
            Outlook(
                model=spec.name,
                cost=cost,
                cells=total,
                left=len(left),
                seconds=seconds,
                busy=busy,
            )
        )
    return outlooks


def elapsed(outlooks: Sequence[Outlook], processes: int) -> float:
    """Estimated seconds that a run takes with `processes` units at once, its timings alone after them."""
    seeds = sorted({seed for outlook in outlooks for seed in outlook.busy})
    units = [outlook.busy[seed] for seed in seeds for outlook in outlooks if seed in outlook.busy]
    return makespan(units, processes) + sum(outlook.seconds for outlook in outlooks) - sum(units)


def _remaining(
    plan: Plan,
    training: Cell,
    data: Data,
    store: Store,
    device: torch.device,
    solver: str | None,
    fresh: bool,
) -> tuple[list[Cell], list[Cell]]:
    """All cells of one training, and those of them that are not stored."""
    try:
        checkpoint = None if fresh else find_checkpoint(store.checkpoint_path(training))
    except CheckpointError:
        checkpoint = None
    if checkpoint is None:
        cells = cells_of(plan, training, None, data, device, solver)
        return cells, cells
    cells = cells_of(plan, training, checkpoint.sha256, data, device, solver)
    records = [(cell, store.get(cell)) for cell in cells]
    return cells, [cell for cell, record in records if record is None or record.status != "ok"]


def _try(spec: ModelSpec, plan: Plan, data: Data, device: torch.device) -> tuple[nn.Module | None, Cost]:
    """Build the model and time it; one that cannot be built costs nothing here and fails later."""
    try:
        with time_limit(3 * ESTIMATE_LIMIT, f"building {spec.name}"):  # the first pass may compile
            model = build_model(spec.build, data, plan.hyperparameters(spec), 0).to(device)
    except Exception as error:  # of the model's own code
        return None, Cost.unknown(error)
    size = plan.batch_size(spec.name)
    cost = measure_cost(model, data, size, device)
    if any(attack.threat.through == "solvers" for attack in plan.attacks):
        with suppress(Exception):  # of the model's own code; it is a failure where it is attacked
            few = min(size, ESTIMATE_SAMPLES)
            others = [measure_cost(other, data, few, device) for other in solver_surrogates(model).values()]
            sums = sum(one.forward for one in others), sum(one.backward for one in others)
            cost = dataclasses.replace(cost, surrogates=sums)
    return model, cost
