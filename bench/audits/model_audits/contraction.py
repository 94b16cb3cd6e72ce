"""Does the discretised network contract as its flow is claimed to?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ....models import ODEBlock
from ....models.ode.solver import StepMap
from ...evaluation.dynamics import FAR, NEAR, flow_inputs, follow, worst_direction
from ..context import Context
from ..measures import array, in_float64
from ..registry import AuditResult, measured, not_applicable, register_audit

SLACK = 1.01
SAMPLES, STATES = 8, 64


@register_audit(
    "contraction",
    title="pairs of states contract as claimed",
    needs="model",
    cost="the flow of 64 states, 45 times, in float64",
    fast=True,
    reference="Zakwan, Xu, Ferrari-Trecate, arXiv 2203.11805, Definition 1; Ott et al., ICLR 2021",
)
def check(context: Context) -> AuditResult:
    """Largest |d(T)| / |d(0)| of pairs of states above 1.01 exp(-rho T), or a step's bound above 1: flags.

    rho is the flow's own rate (``bounds()["rho"]``), 0 where it only claims to contract. Pairs are
    real states with random ones near and far, and with neighbours along the direction that power iteration
    on the Jacobian finds.
    """
    flow = getattr(context.model, "flow", None)
    claims = "contractive" in context.spec.claims
    if not isinstance(flow, ODEBlock):
        return not_applicable("The model has no ODE block of which contraction could be measured.")
    with in_float64(context.model, context.images) as double:
        flow = double.flow
        assert isinstance(flow, ODEBlock)
        rho = flow.bounds().get("rho", math.nan)
        if not claims and not rho > 0:
            return not_applicable("Neither the model nor its flow claims to contract.")
        states = flow_inputs(double, context.images[:SAMPLES].double())
        if states.ndim != 2:
            return not_applicable("The flow's states are no columns (n, M).")
        states = states[:, :: max(1, states.shape[1] // STATES)]
        maps = flow.step_maps()
        times, growth = _growth(maps, states, context.generator("contraction"))
        step = flow.lipschitz_bounds().get("worst_step", math.nan) if flow.has_tanh_fields() else math.nan
    rate = rho if rho > 0 else 0.0
    allowed = SLACK * math.exp(-rate * flow.final_time)
    value = float(growth[-1])
    fails = not value <= allowed or step > 1
    sentence = f"Pairs of states end at most {value:.4g} times as far apart as they began"
    sentence += f" (claimed rate {rho:.3g}: at most {allowed / SLACK:.4g})" if rho > 0 else ""
    if math.isfinite(step):
        sentence += f"; a solver step is bounded by {step:.4g}"
    sentence += ": the discretised network does not contract as its flow does." if fails else "."
    if step > 1 and value <= allowed:
        value, allowed = step, 1.0
    shown = growth.clamp_min(1e-300).log10()
    return measured(
        value,
        allowed,
        sentence,
        flagged=fails,
        unit="ratio",
        arrays={
            "x": array(times),
            "measured": array(shown),
            "claimed": array(-rate * times / math.log(10)),
        },
        axes=("time", "log10 of the largest distance ratio"),
    )


def _growth(maps: list[StepMap], states: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Times (k,), and the largest distance ratio at each, over all pairs."""
    noise = torch.randn(states.shape, dtype=states.dtype, generator=generator).to(states)
    noise = noise / noise.norm(dim=0)

    def whole(state: Tensor) -> Tensor:
        for step in maps:
            state = step(state)
        return state

    with torch.enable_grad():
        worst = worst_direction(whole, states, noise)
    times, path = follow(maps, states)
    largest = torch.zeros(len(path), dtype=states.dtype, device=states.device)
    for offset in (NEAR * noise, FAR * noise, NEAR * worst):
        _, other = follow(maps, states + offset)
        ratios = [((a - b).norm(dim=0) / offset.norm(dim=0)).max() for a, b in zip(other, path, strict=True)]
        largest = torch.maximum(largest, torch.stack(ratios))
    shuffled = states.roll(1, dims=1)
    distance = (shuffled - states).norm(dim=0)
    if bool((distance > 0).any()):
        _, other = follow(maps, shuffled)
        ratios = [
            ((a - b).norm(dim=0)[distance > 0] / distance[distance > 0]).max()
            for a, b in zip(other, path, strict=True)
        ]
        largest = torch.maximum(largest, torch.stack(ratios))
    return torch.from_numpy(times), largest.nan_to_num(nan=math.inf)
