"""Is the solver's cost similar for all samples, and is its step size small enough for the field?"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from ...._errors import ModelFailure
from ....models import ODEBlock
from ...evaluation.dynamics import WIDEST, flow_inputs, jacobians
from ..context import Context
from ..measures import array, in_float64
from ..registry import AuditResult, measured, not_applicable, register_audit

SPREAD, STIFF = 5.0, 2.0
SAMPLES, STATES = 32, 64


@register_audit(
    "nfe-and-stiffness",
    title="the solver's cost is similar for all samples and its steps suit the field",
    needs="model",
    cost="1 forward pass of 32 images one by one, and the field's Jacobian at 64 states of every step",
    fast=True,
    reference="Hairer, Wanner, Solving Ordinary Differential Equations II, section IV.2",
    version=2,
)
def check(context: Context) -> AuditResult:
    """NFE p99 over median above 5, h times the Jacobian's norm above 2, any solver failure: flags.

    h |Jacobian| is computed for a flow on a fixed grid whose state is small; else the verdict rests on the
    evaluations alone, and the sentence says so. The audit does not apply where neither can be measured.
    """
    context = context.first(SAMPLES)
    counts: list[int] = []
    try:
        for image in context.images:
            context.logits(image[None])
            evaluations = context.queried.field_evaluations()
            counts += [] if evaluations is None else [evaluations]
    except ModelFailure as error:
        return measured(math.inf, SPREAD, f"The solver fails on a test image: {error}.", unit="ratio")
    growth = _stiffness(context.model, context.images)
    if isinstance(growth, str) and not counts:
        return not_applicable(
            f"No field evaluation of the model is seen, and h |Jacobian| was not computed: {growth}."
        )
    parts, ratios = [], []
    if counts:
        spread = float(np.percentile(counts, 99) / max(np.median(counts), 1))
        ratios.append((spread, SPREAD))
        parts.append(
            f"The most expensive samples take {spread:.2g} times the median number of field evaluations"
        )
    if isinstance(growth, str):
        parts.append(
            f"h times the norm of the field's Jacobian was not computed ({growth}): evaluations alone count"
        )
        lines = {"x": array(torch.arange(len(counts))), "NFE, sorted": np.sort(np.array(counts, float))}
        axes = ("sample", "field evaluations")
    else:
        ratios.append((float(growth.max()), STIFF))
        parts.append(f"h times the norm of the field's Jacobian reaches {growth.max():.3g}")
        parts[-1] += ": an explicit step of this size cannot follow the field" if growth.max() > STIFF else ""
        lines = {"x": np.arange(growth.size, dtype=float), "h |Jacobian|": growth}
        axes = ("solver step", "h times the Jacobian's norm")
    value, threshold = max(ratios, key=lambda one: one[0] / one[1])
    sentence = "; ".join(parts) + "."
    return measured(
        value, threshold, sentence, flagged=value > threshold, unit="ratio", arrays=lines, axes=axes
    )


def _stiffness(model: nn.Module, images: Tensor) -> np.ndarray | str:
    """Largest h |Jacobian|_2 of the field at real states, before every step; or why it is not computed."""
    flow = getattr(model, "flow", None)
    if not isinstance(flow, ODEBlock):
        return "the model has no ODE block as its flow"
    if flow.solver.adaptive:
        return "the steps of an adaptive solver are its own"
    largest = []
    with in_float64(model, images) as double:
        flow = double.flow
        assert isinstance(flow, ODEBlock)
        state = flow_inputs(double, images.double())
        if state.ndim != 2 or len(state) > WIDEST:
            return f"the state is no vector of at most {WIDEST} channels"
        state = state[:, :: max(1, state.shape[1] // STATES)]
        fields = dict(zip(map(id, flow.layers), flow.fields(), strict=True))
        for step in flow.step_maps():
            field = fields[id(step.layer)]
            norm = torch.linalg.matrix_norm(jacobians(field, state), ord=2).max()
            largest.append(float(norm) * step.duration)
            state = step(state).detach()
    finite: np.ndarray = np.nan_to_num(np.array(largest), nan=np.finfo(float).max)
    return finite
