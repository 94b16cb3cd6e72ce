"""A plan becomes cells: what is trained, attacked, certified, followed and timed. None of it is done here.

The training cell of a model that is not of this package holds the hash of its network, which the plan builds
for it.
"""

from __future__ import annotations

import dataclasses

from ...attacks import Threat
from ...models import ModelSpec
from ..data import Data
from ..records.record import Cell
from .attack_grid import attack_norm
from .perturbation import recipe_facts
from .plan import Plan
from .preset import ThreatPlan

LIPSCHITZ_VERSION, SMOOTHING_VERSION, DYNAMICS_VERSION = 2, 2, 2
"""Raise one by hand when its algorithm changes: stored records of older versions are not reused."""
FLOW_TIMINGS = ("flow", "flow-gradient")
"""Timings of the ODE blocks alone: forward; forward and backward, to the state and every parameter."""
TRAJECTORY_IMAGES = 8
"""Test images whose states are followed through the flow."""


def training_cell(plan: Plan, spec: ModelSpec, seed: int, data: Data) -> Cell:
    """The cell that trains `spec` with `seed`, or evaluates pretrained weights."""
    recipe = plan.recipe(spec)
    return Cell(
        kind="training",
        dataset=data.name,
        index_sha256=data.index_sha256,
        model=spec.name,
        model_version=spec.full_version,
        network_sha256=plan.network_sha256(spec, data),
        hyperparameters=plan.hyperparameters(spec),
        recipe=plan.pretrained.recipe() if plan.pretrained else recipe_facts(recipe),
        training_seed=seed,
        samples=0 if plan.pretrained else len(data.train),
        batch_size=0 if plan.pretrained else recipe.batch_size,
    )


def accuracy_cells(
    plan: Plan,
    training: Cell,
    checkpoint_sha256: str,
    solver: str | None,
    data: Data,
    *,
    on_gpu: bool = False,
) -> list[Cell]:
    """Return one cell for each threat and strength, on the weights that `training` made.

    Threats that craft on other solvers need a model in which a `solver` was seen. With `on_gpu` the number of
    samples is the preset's for a GPU.
    """
    return [
        dataclasses.replace(
            training,
            kind="accuracy",
            checkpoint_sha256=checkpoint_sha256,
            solver=solver,
            threat=threat.name,
            threat_version=threat.version,
            family=threat.family,
            norm=attack_norm(threat),
            protocol=threat.protocol,
            parameters=_parameters(plan, threat, grid),
            strength=strength,
            draws=grid.draws if threat.stochastic else 1,
            attack_seed=grid.seed,
            samples=min(grid.samples_on(gpu=on_gpu) or len(data.test), len(data.test)),
            batch_size=grid.batch_size or plan.batch_size(training.model),
        )
        for threat, grid in ((attack.threat, attack.plan) for attack in plan.attacks)
        if threat.crafted_on == "model" or solver is not None
        for strength in grid.strengths
    ]


def samples_in_common(plan: Plan, norm: str, data: Data, *, on_gpu: bool = False) -> int:
    """How many test samples every attack in `norm` sees: the worst case is taken over these."""
    plans = [attack.plan for attack in plan.attacks if attack_norm(attack.threat) == norm]
    return min([p.samples_on(gpu=on_gpu) or len(data.test) for p in plans] + [len(data.test)])


def _parameters(plan: Plan, threat: Threat, grid: ThreatPlan) -> dict[str, object]:
    """Everything but the strength that what `threat` finds depends on."""
    if not threat.grid_matters:
        return dict(threat.parameters)
    reported = plan.headline().reported.get(attack_norm(threat) or threat.name)
    curve = {"strengths": grid.strengths, "reported": [] if reported is None else [reported]}
    return {**threat.parameters, **curve}


def certificate_cells(
    plan: Plan, training: Cell, checkpoint_sha256: str, solver: str | None, data: Data
) -> list[Cell]:
    """The cells that certify test samples, on the weights that `training` made."""
    lipschitz = dataclasses.replace(
        training,
        kind="certificate",
        checkpoint_sha256=checkpoint_sha256,
        solver=solver,
        threat="lipschitz",
        threat_version=LIPSCHITZ_VERSION,
        family="certificate",
        norm="l2",
        samples=len(data.test),
        batch_size=plan.batch_size(training.model),
        dtype="float64",
    )
    if (smoothing_plan := plan.preset.smoothing) is None:
        return [lipschitz]
    smoothing = dataclasses.replace(
        lipschitz,
        threat="smoothing",
        threat_version=SMOOTHING_VERSION,
        strength=smoothing_plan.sigma,
        parameters=smoothing_plan.model_dump(include={"n0", "n", "alpha"}),
        samples=min(smoothing_plan.samples, len(data.test)),
        dtype="float32",
    )
    return [lipschitz, smoothing]


def dynamics_cell(plan: Plan, training: Cell, checkpoint_sha256: str, solver: str | None) -> Cell:
    """The cell that follows the flow along its time, on the weights that `training` made."""
    return dataclasses.replace(
        training,
        kind="dynamics",
        checkpoint_sha256=checkpoint_sha256,
        solver=solver,
        threat="trajectories",
        threat_version=DYNAMICS_VERSION,
        family="dynamics",
        samples=TRAJECTORY_IMAGES,
        batch_size=TRAJECTORY_IMAGES,
        dtype="float64",
    )


def throughput_cells(
    plan: Plan, training: Cell, checkpoint_sha256: str, solver: str | None, device: str
) -> list[Cell]:
    """One cell for each batch size, for inference and for a training step.

    Of a model in which a `solver` was seen its ODE blocks alone besides, at the largest batch size.
    """
    timing = plan.preset.throughput
    if timing is None:
        return []
    timed = [(what, size) for what in ("inference", "training-step") for size in timing.batch_sizes]
    if solver is not None:
        timed += [(what, max(timing.batch_sizes)) for what in FLOW_TIMINGS]
    return [
        dataclasses.replace(
            training,
            kind="throughput",
            checkpoint_sha256=checkpoint_sha256,
            solver=solver,
            threat=what,
            family="timing",
            parameters={"seconds": timing.seconds, "passes": timing.passes},
            samples=batch_size,
            batch_size=batch_size,
            device=device,
        )
        for what, batch_size in timed
    ]
