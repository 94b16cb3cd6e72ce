"""Is the solver's cost similar for all samples, and is its step size small enough for the field?"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ...._errors import ModelFailure, NotAsked
from ....attacks.core.losses import answered
from ...evaluation.dynamics import WIDEST, jacobians
from ...runtime.float64 import in_float64
from ...solvers.column_flow import CannotFollow, ColumnFlow, column_flows
from ..context import Context
from ..measures import array
from ..registry import AuditResult, measured, register_audit

SPREAD, STIFF = 5.0, 2.0
SAMPLES, STATES = 32, 64


@register_audit(
    "nfe-and-stiffness",
    title="the solver's cost is similar for all samples and its steps suit the field",
    needs="model",
    cost="1 forward pass of 32 images one by one, and the field's Jacobian at 64 states of every step",
    fast=True,
    every_sample=True,
    reference="Hairer, Wanner, Solving Ordinary Differential Equations II, section IV.2",
    version=3,
)
def check(context: Context) -> AuditResult:
    """NFE p99 over median above 5, h times the Jacobian's norm above 2, any solver failure: flags.

    h |Jacobian| is computed for a flow on a fixed grid whose state is small; else the verdict rests on the
    evaluations alone, and the sentence says so.
    """
    context = context.first(SAMPLES)
    counts: list[int] = []
    failures = 0
    for image in context.images:
        if not _has_answer(context, image):
            failures += 1
        elif (evaluations := context.queried.field_evaluations()) is not None:
            counts.append(evaluations)
    if failures:
        reason = f": {context.queried.failure}" if context.queried.failure else ""
        sentence = f"The solver fails on {failures} of {len(context.images)} test images{reason}."
        return measured(math.inf, SPREAD, sentence, unit="ratio")
    if not counts:
        return context.without_solver()
    growth = _stiffness(context)
    spread = float(np.percentile(counts, 99) / max(np.median(counts), 1))
    ratios = [(spread, SPREAD)]
    parts = [f"The most expensive samples take {spread:.2g} times the median number of field evaluations"]
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


def _has_answer(context: Context, image: Tensor) -> bool:
    try:
        return bool(answered(context.logits(image[None])))
    except ModelFailure:  # where it has answered none so far
        return False


def _stiffness(context: Context) -> np.ndarray | str:
    """Largest h |Jacobian|_2 of the field at real states, before every step; or why it is not computed."""
    if all(call.adaptive for call in context.solver_calls()):
        return "the steps of an adaptive solver are its own"
    try:
        with in_float64(context.model, context.images) as double:
            images = context.images.double()
            images = images[context.answered(images, double)]
            flows = [f for f in column_flows(double, images) if not f.call.adaptive]
            if any(len(flow.states) > WIDEST for flow in flows):
                raise CannotFollow(f"the state is no vector of at most {WIDEST} channels")
            largest = [norm for flow in flows for norm in _norms(flow)]
    except (CannotFollow, NotAsked) as reason:
        return str(reason)
    finite: np.ndarray = np.nan_to_num(np.array(largest), nan=np.finfo(float).max)
    return finite


def _norms(flow: ColumnFlow) -> list[float]:
    """Largest h |Jacobian|_2 over the states, before every step."""
    state = flow.states[:, :: max(1, flow.states.shape[1] // STATES)]
    largest = []
    for field, step in zip(flow.fields, flow.steps, strict=True):
        norm = torch.linalg.matrix_norm(jacobians(field, state), ord=2).max()
        largest.append(float(norm) * step.duration)
        state = step(state).detach()
    return largest
