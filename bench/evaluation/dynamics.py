"""What a flow does between its input and its output: distances, sensitivities and energy along time.

Measured in float64 on the states that the first test images give, with the solver of the model, step by
step. These are measurements, not proofs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..._errors import NotAsked
from ...models import StepMap
from ..data import Split
from ..records.record import Cell, Record
from ..runtime.checked_model import answered_rows
from ..runtime.float64 import in_float64
from ..solvers.column_flow import CannotFollow, column_flows
from ..solvers.observe import observe

NEAR, FAR = 1e-3, 1.0
"""Initial distances of the pairs, in the state's own units."""
POWER_ITERATIONS = (20, 5)
"""For the first step, and for each later time from the direction that was worst at the time before."""
WIDEST = 512
"""Largest n for which the Jacobian of every state is formed."""


def measure_dynamics(
    cell: Cell,
    model: nn.Module,
    initial: nn.Module,
    split: Split,
    *,
    num_classes: int,
    device: torch.device,
    environment: Mapping[str, Any],
) -> Record:
    """Follow trajectories of the model's flow; `initial` is the same model before training.

    A model that does not solve exactly one ODE in a forward pass, on a state of columns or with a row for
    each image, gets a record that carries the reason and nothing else. Images without an answer are left out
    and counted, by the measure ``left_out``.
    """
    started = time.perf_counter()

    def record(**rest: Any) -> Record:
        return Record(cell=cell, seconds=time.perf_counter() - started, environment=environment, **rest)

    images = split.first(cell.samples).images.to(device)
    images = images[answered_rows(model, images, num_classes)]
    calls = observe(model, images[:2])
    if len(calls) != 1:
        why = (
            f"{len(calls)} solves in a forward pass are not one flow" if calls else "no solver was seen in it"
        )
        return record(card={"no_dynamics": why})
    outcomes: dict[str, np.ndarray] = {}
    try:
        initial = initial.to(device)
        for module in (model, initial):
            with in_float64(module, images):
                images = images[answered_rows(module, images.double(), num_classes)]
        for name, module in (("trained", model), ("initial", initial)):
            with in_float64(module, images):
                (flow,) = column_flows(module, images.double())
                states, maps = flow.states, flow.steps
                times, path = follow(maps, states)
                outcomes[f"sensitivity_{name}"] = sensitivity(maps, path)
                if name == "trained":
                    outcomes["time"] = times
                    outcomes["layer"] = layer_numbers(maps)
                    outcomes |= distances(maps, states, path, cell.attack_seed)
                    drift = energy_drift(maps, path)
                    outcomes |= {} if drift is None else {"energy_drift": drift}
    except (CannotFollow, NotAsked) as reason:
        return record(card={"no_dynamics": str(reason)})
    double_outcomes = {name: lines.astype(np.float64) for name, lines in outcomes.items()}
    missing = cell.samples - len(images)
    left_out = {"left_out": float(missing)} if missing else {}
    return record(outcomes=double_outcomes, measures=left_out, forwards=2 * len(images))


@torch.no_grad()
def follow(maps: Sequence[StepMap], states: Tensor) -> tuple[np.ndarray, list[Tensor]]:
    """Times (steps + 1,), and the states (n, M) at each."""
    path, times = [states], [0.0]
    for step in maps:
        path.append(step(path[-1]))
        times.append(times[-1] + step.duration)
    return np.array(times), path


def layer_numbers(maps: Sequence[StepMap]) -> np.ndarray:
    """The number of the layer that ends at or spans each time, (steps + 1,), counted from 0."""
    seen = list(dict.fromkeys(id(step.layer) for step in maps))
    return np.array([0, *(seen.index(id(step.layer)) for step in maps)])


def distances(
    maps: Sequence[StepMap], states: Tensor, path: list[Tensor], seed: int
) -> dict[str, np.ndarray]:
    """Growth |x(t) - y(t)| / |x(0) - y(0)| of pairs: random ones, near and far, and adversarial ones.

    A random pair is followed along the whole time axis; an adversarial one is sought anew for each time, so
    that its growth there is near the norm of the Jacobian dx(t)/dx(0).

    Returns
    -------
    dict
        ``growth_random`` (steps + 1, 2 M) and ``growth_adversarial`` (steps + 1, M).
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(states.shape, dtype=states.dtype, generator=generator).to(states)
    noise = noise / noise.norm(dim=0)
    growth = []
    for offset in (NEAR * noise, FAR * noise):
        _, other = follow(maps, states + offset)
        growth.append(torch.stack([_ratio(a, b, offset) for a, b in zip(other, path, strict=True)]))
    worst, adversarial = noise, [torch.ones_like(states[0])]
    for k in range(1, len(path)):
        flow = _compose(maps[:k])
        worst = worst_direction(flow, states, worst, POWER_ITERATIONS[k > 1])
        with torch.no_grad():
            adversarial.append(_ratio(flow(states + NEAR * worst), path[k], NEAR * worst))
    return {
        "growth_random": torch.cat(growth, 1).cpu().numpy(),
        "growth_adversarial": torch.stack(adversarial).cpu().numpy(),
    }


def worst_direction(
    flow: Callable[[Tensor], Tensor], states: Tensor, start: Tensor, iterations: int = POWER_ITERATIONS[0]
) -> Tensor:
    """Unit vectors (n, M) that the flow's Jacobian stretches most, by power iteration from `start`."""
    v, step = start, 1e-6
    states = states.detach().requires_grad_(True)
    final = flow(states)
    for _ in range(iterations):
        with torch.no_grad():
            stretched = (flow(states + step * v) - final) / step
        (v,) = torch.autograd.grad(final, states, stretched, retain_graph=True)
        v = v / v.norm(dim=0).clamp_min(torch.finfo(v.dtype).tiny)
    return v


def _ratio(state: Tensor, other: Tensor, offset: Tensor) -> Tensor:
    ratio: Tensor = (state - other).norm(dim=0) / offset.norm(dim=0)
    return ratio


def sensitivity(maps: Sequence[StepMap], path: list[Tensor]) -> np.ndarray:
    """Norms |dx(T)/dx(t)|_2 of the backward sensitivity matrix, shape (steps + 1, M).

    Those of a wide state are found by power iteration, which gives a little less at most.

    References
    ----------
    Zakwan, Xu, Ferrari-Trecate, arXiv 2203.11805, section III.C.
    """
    n, columns = path[0].shape
    if n > WIDEST:
        return _wide_sensitivity(maps, path)
    total = torch.eye(n).to(path[0]).expand(columns, n, n)
    norms = [torch.linalg.matrix_norm(total, ord=2)]
    for step, states in zip(reversed(maps), reversed(path[:-1]), strict=True):
        total = total @ jacobians(step, states)
        norms.append(torch.linalg.matrix_norm(total, ord=2))
    return torch.stack(norms[::-1]).cpu().numpy()


def _wide_sensitivity(maps: Sequence[StepMap], path: list[Tensor]) -> np.ndarray:
    """Norms along directions sought anew for each time, each from that of the time after it."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(path[0].shape, dtype=path[0].dtype, generator=generator).to(path[0])
    v = v / v.norm(dim=0)
    norms = [torch.ones_like(path[0][0])]
    for k in reversed(range(len(maps))):
        flow = _compose(maps[k:])
        v = worst_direction(flow, path[k], v, POWER_ITERATIONS[k < len(maps) - 1])
        with torch.no_grad():
            norms.append((flow(path[k] + 1e-6 * v) - flow(path[k])).norm(dim=0) / 1e-6)
    return torch.stack(norms[::-1]).cpu().numpy()


@torch.no_grad()
def energy_drift(maps: Sequence[StepMap], path: list[Tensor]) -> np.ndarray | None:
    """Relative change (H(x(t)) - H(x(t_j))) / H(x(t_j)) since the start t_j of the layer, (steps + 1, M).

    None when a layer reports no energy. At the end of a layer the change is that of the layer's own H.
    """
    if not all(callable(getattr(step.layer, "energy", None)) for step in maps):
        return None
    start = torch.zeros(path[0].shape[1]).to(path[0])
    drift, layer, reference = [start], None, start
    for step, before, after in zip(maps, path[:-1], path[1:], strict=True):
        energy: Any = step.layer.energy
        if step.layer is not layer:
            layer, reference = step.layer, energy(before)
        drift.append((energy(after) - reference) / reference.clamp_min(torch.finfo(reference.dtype).tiny))
    return torch.stack(drift).cpu().numpy()


def jacobians(function: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    """Jacobians (M, n, n) of `function` at each of the states (n, M); one backward pass per row."""
    states = states.detach().requires_grad_(True)
    with torch.enable_grad():
        values = function(states)
        rows = [torch.autograd.grad(row.sum(), states, retain_graph=True)[0] for row in values]
    return torch.stack(rows).permute(2, 0, 1)


def _compose(maps: Sequence[StepMap]) -> Callable[[Tensor], Tensor]:
    def flow(state: Tensor) -> Tensor:
        for step in maps:
            state = step(state)
        return state

    return flow
