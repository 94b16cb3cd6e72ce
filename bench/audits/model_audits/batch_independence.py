"""Do a sample's logits depend on the samples beside it?"""

from __future__ import annotations

import math
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor, nn

from ...._errors import ModelFailure
from ....attacks.core.losses import answered
from ...evaluation.consistency import alone as asked_alone
from ...evaluation.consistency import among
from ...runtime.checked_model import CheckedModel, answered_rows
from ...solvers.changed_model import ChangedModel
from ...solvers.solver_call import SolverChange
from ..context import Context
from ..measures import array, coarsest_eps, normalised
from ..registry import AuditResult, measured, register_audit

SAMPLES, BATCHES = 32, 3
LIMIT, BASELINES = 1e-4, 10
TIE = 1e-5
"""Two largest normalised logits closer than this are a tie, which rounding decides."""
ROUNDING = 16
"""Rounding errors that logits may move by, where that is more: those of half precision are large."""


@register_audit(
    "batch-independence",
    title="a sample's logits do not depend on its batch-mates",
    needs="model",
    cost="8 forward passes per image, a quarter of them one by one, 32 images",
    fast=True,
    untrained=True,
    initialisations=3,
    extreme_images=True,
    remedy="Use no statistics over the batch, and a solver on a fixed grid.",
    reference="torchdiffeq accepts or rejects a step by one norm over the whole batch (misc.py)",
)
def check(context: Context) -> AuditResult:
    """Logits alone against the same sample in 3 random batches.

    Any change of class flags, ties aside; so do normalised logits that differ by more than 1e-4 and by more
    than ten times what they do with the same weights on a fixed grid (any, if the context is strict). In
    half precision 16 rounding errors are allowed. A sample that is answered alone and not in a batch, or the
    other way round, flags.
    """
    context = context.first(SAMPLES)
    rounding = ROUNDING * coarsest_eps(context.model, context.logits(context.images[:1]))
    limit = max(LIMIT, rounding)
    moved, flips, alone, among = _distances(context, context.model, max(TIE, rounding))
    value = float(moved.max())
    baseline = 0.0
    coupled = any(call.couples_samples for call in context.solver_calls())
    if value > limit and coupled and not context.strict:
        fixed = ChangedModel(context.model, SolverChange(method="rk4", steps=16))
        with suppress(ModelFailure):  # which has no answer to compare with
            apart = _distances(context, fixed, TIE)[0]
            baseline = float(apart.where(apart.isfinite(), 0.0).max())
    fails = flips > 0 or (value > limit and value > BASELINES * baseline)
    sentence = f"Alone and in a batch, logits differ by up to {value:.2g} of their size"
    if math.isinf(value):
        sentence = "Images have an answer alone and none in a batch, or the other way round"
    sentence += f" and {flips} of {len(context.images)} samples change class." if flips else "."
    worst = int(moved.amax(0).argmax())
    return measured(
        value,
        limit,
        sentence,
        flagged=fails,
        unit="distance",
        arrays={
            "x": array(torch.arange(alone.shape[1])),
            "alone": array(alone[worst]),
            "in a batch": array(among[worst]),
        },
        axes=("class", "normalised logits of the sample that moves most"),
    )


def _distances(context: Context, model: nn.Module, tie: float) -> tuple[Tensor, int, Tensor, Tensor]:
    """How far each sample moves in each batch (batches, N), changes of class, logits alone and in a batch."""
    images, count = context.images, len(context.images)
    checked = CheckedModel(model, context.num_classes, per_sample=True)
    checked.has_answered = True  # as a batch, of other samples
    single = asked_alone(lambda x: context.logits(x, checked), images)
    alone = normalised(single)
    generator = context.generator("batch-independence")
    moved, others = [], []
    flipped = torch.zeros(count, dtype=torch.bool, device=alone.device)
    for batch in range(BATCHES):
        order = torch.randperm(count, generator=generator)
        mates = torch.rand(images.shape, generator=generator).to(images)
        mates = (mates.round(), mates, mates * 0)[batch]
        found = _in_a_batch(context, model, order, mates)
        top = alone.topk(2, dim=1).values
        other = (found.argmax(1) != alone.argmax(1)) & answered(found)
        flipped |= other & (top[:, 0] - top[:, 1] > tie)
        moved.append(context.distance(single, found))
        others.append(normalised(found))
    distances = torch.stack(moved)
    return distances, int(flipped.sum()), alone, others[int(distances.amax(1).argmax())]


def _in_a_batch(context: Context, model: nn.Module, order: Tensor, mates: Tensor) -> Tensor:
    """Logits (N, K) of the samples in one batch with `mates`, NaN where the model fails at it.

    It is not asked in halves: whether a batch has an answer is the question. Mates that have none by
    themselves are left out.
    """
    ask = partial(context.logits_at_once, model=model)
    found = among(ask, context.images, order, before=mates[:0], after=mates)
    if bool(answered(found).any()):
        return found
    with suppress(ModelFailure):
        mates = mates[answered_rows(model, mates, context.num_classes)]
    return among(ask, context.images, order, before=mates[:0], after=mates)
