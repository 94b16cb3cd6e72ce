"""Does the discretised network contract as its flow is claimed to?"""

from __future__ import annotations

import math
from contextlib import suppress

import torch
from torch import Tensor

from ...._errors import NotAsked
from ....models import NoCertificate, StepMap
from ....models.ode.statement import stated_constants, stated_lipschitz_bounds
from ...evaluation.dynamics import FAR, NEAR, follow, worst_direction
from ...runtime.float64 import in_float64
from ...solvers.column_flow import CannotFollow, ColumnFlow, column_flows
from ...solvers.solver_call import SolverCall
from ..context import Context
from ..measures import array
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
    claims = "contractive" in context.spec.claims
    rates = [_rate(call) for call in context.solver_calls()]
    if not claims and not any(rate > 0 for rate in rates):
        return not_applicable("Neither the model nor its flow claims to contract.")
    if not rates:
        return context.without_solver()
    context = context.first(SAMPLES)
    with in_float64(context.model, context.images) as double:
        images = context.images.double()
        try:
            flows = column_flows(double, images[context.answered(images, double)])
        except CannotFollow as reason:
            raise NotAsked(f"The solve of the model cannot be followed: {reason}") from None
        found = [_measured(flow, context) for flow in flows if claims or _rate(flow.call) > 0]
    times, growth, rho, final_time, step = max(found, key=lambda one: _excess(*one))
    rate = rho if rho > 0 else 0.0
    allowed = SLACK * math.exp(-rate * final_time)
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


def _rate(call: SolverCall) -> float:
    """The rate rho of the exact flow that its design guarantees; NaN where none is known."""
    block = call.block
    return float(stated_constants(block).get("rho", math.nan)) if block is not None else math.nan


def _measured(flow: ColumnFlow, context: Context) -> tuple[Tensor, Tensor, float, float, float]:
    """Times, the largest growth at each, the rate, the final time, the largest bound of a step (or NaN)."""
    block = flow.call.block
    states = flow.states[:, :: max(1, flow.states.shape[1] // STATES)]
    times, growth = _growth(flow.steps, states, context.generator("contraction"))
    if block is None:
        return times, growth, math.nan, flow.final_time, math.nan
    step = math.nan
    with suppress(NoCertificate):
        step = stated_lipschitz_bounds(block).get("worst_step", math.nan)
    return times, growth, _rate(flow.call), block.final_time, step


def _excess(times: Tensor, growth: Tensor, rho: float, final_time: float, step: float) -> float:
    """How far a flow is above what it is allowed, as a ratio."""
    allowed = SLACK * math.exp(-(rho if rho > 0 else 0.0) * final_time)
    return max(float(growth[-1]) / allowed, step if step > 1 else 0.0)


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
