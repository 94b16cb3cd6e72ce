"""The cells of each model, which of them are stored, and the estimated time of the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import nn

from ..._errors import CheckpointError
from ...models import ModelSpec
from ..config.cells import accuracy_cells, certificate_cells, dynamics_cell, throughput_cells, training_cell
from ..config.plan import Plan
from ..data import Data
from ..records.checkpoint import stored_checkpoint
from ..records.record import Cell
from ..records.store import Store
from ..runtime.device import device_name
from ..runtime.foreign_code import running
from ..runtime.time_limit import time_limit
from ..solvers.changed_model import solver_surrogates
from ..solvers.observe import adaptive_evaluations
from ..training.load_trained import changed_since
from ..training.provenance import solver_names
from .build_planned import build_planned
from .cost_estimate import ESTIMATE_LIMIT, ESTIMATE_SAMPLES, Cost, makespan, measure_cost, torch_threads


@dataclass(frozen=True, kw_only=True)
class RemainingWork:
    """One model of a plan: all its cells, those still to do, and the estimated seconds for them.

    Attributes
    ----------
    seconds_by_seed
        Estimated seconds of all but timings, by training seed; only of seeds with something of that left.
    training
        Estimated seconds of the training of one seed; None where none is left, or it could not be timed.
    longest
        Estimated seconds of the longest of the other cells that are left.
    adaptive
        Field evaluations of a pass by solvers that choose their steps; None where there is none.
    """

    model: str
    cost: Cost
    cells: int
    left: int
    seconds: float
    seconds_by_seed: Mapping[int, float] = field(default_factory=dict)
    training: float | None = None
    longest: float = 0.0
    adaptive: int | None = None


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


def estimate_remaining(
    plan: Plan,
    data: Data,
    store: Store,
    device: torch.device,
    *,
    fresh: bool = False,
    threads: int | None = None,
) -> list[RemainingWork]:
    """Time one batch of each model of `plan` and add up what is not stored; reads, writes nothing.

    `threads` is the number of torch threads that each model run will have; None for all.
    """
    remaining = []
    for spec in plan.specs:
        with torch_threads(threads):
            model, cost = _try(spec, plan, data, device)
        solver = solver_names(model, data.train.images) if model else None
        total, left, seconds_by_seed = 0, list[Cell](), dict[int, float]()
        for seed in plan.seeds_of(spec):
            training = training_cell(plan, spec, seed, data)
            again = fresh or bool(changed_since(store.get(training), spec))
            cells, missing = _missing_cells(plan, training, data, store, device, solver, again)
            total += len(cells)
            left += missing
            untimed = [cell for cell in missing if cell.kind != "throughput"]
            if untimed:
                seconds_by_seed[seed] = sum(cost.seconds_for(cell, plan) for cell in untimed)
        seconds = sum(cost.seconds_for(cell, plan) for cell in left)
        trainings = [cost.seconds_for(cell, plan) for cell in left if cell.kind == "training"]
        others = [cost.seconds_for(cell, plan) for cell in left if cell.kind != "training"]
        remaining.append(
            RemainingWork(
                model=spec.name,
                cost=cost,
                cells=total,
                left=len(left),
                seconds=seconds,
                seconds_by_seed=seconds_by_seed,
                training=max(trainings, default=None) if not cost.problem else None,
                longest=max(others, default=0.0),
                adaptive=_adaptive(model, data, device) if model and trainings else None,
            )
        )
    return remaining


def _adaptive(model: nn.Module, data: Data, device: torch.device) -> int | None:
    with suppress(Exception):  # of the model's own code, which its training will say
        return adaptive_evaluations(model, data.train.images[:2].to(device))
    return None


def estimate_duration(remaining: Sequence[RemainingWork], processes: int) -> float:
    """Estimated seconds of a run with `processes` model runs at once, and its timings alone after them."""
    seeds = sorted({seed for work in remaining for seed in work.seconds_by_seed})
    runs = [
        work.seconds_by_seed[seed] for seed in seeds for work in remaining if seed in work.seconds_by_seed
    ]
    return makespan(runs, processes) + sum(work.seconds for work in remaining) - sum(runs)


def _missing_cells(
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
        checkpoint = None if fresh else stored_checkpoint(store, training)
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
            model = build_planned(plan, spec, data, 0).to(device)
    except Exception as error:  # of the model's own code
        return None, Cost.unknown(error)
    size, of_training = plan.batch_size(spec.name), plan.recipe(spec).batch_size
    with running(model, 0):
        cost = measure_cost(model, data, size, device)
        if of_training != size and not cost.problem and not plan.pretrained:
            small = measure_cost(model, data, of_training, device)
            if not small.problem:
                cost = dataclasses.replace(cost, training=(small.forward, small.backward))
    if any(attack.threat.crafted_on == "solvers" for attack in plan.attacks):
        # An error is of the model's own code, and a failure where it is attacked.
        with suppress(Exception), running(model, 0):
            few = min(size, ESTIMATE_SAMPLES)
            surrogates = solver_surrogates(model, data.train.images[:1].to(device))
            others = [measure_cost(other, data, few, device) for other in surrogates.values()]
            sums = sum(one.forward for one in others), sum(one.backward for one in others)
            cost = dataclasses.replace(cost, surrogates=sums)
    return model, cost
