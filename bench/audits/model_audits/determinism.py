"""Does the model give the same logits twice?"""

from __future__ import annotations

import math

import torch

from ...evaluation.consistency import SAMPLES, RandomNumbers, draws_at_random
from ...runtime.checked_model import CheckedModel
from ..context import Context
from ..measures import array
from ..registry import AuditResult, measured, register_audit

PASSES = 5
LIMIT = 1e-4


@register_audit(
    "determinism",
    title="the same image gives the same logits",
    needs="model",
    cost="5 forward passes per image",
    fast=True,
    untrained=True,
    version=2,
    remedy="Draw no random numbers in eval mode, keep no state, and answer alike with gradients and without.",
    reference="Athalye, Carlini, Wagner, ICML 2018, arXiv 1802.00420, section 3.2",
)
def check(context: Context) -> AuditResult:
    """Largest distance between the normalised logits of one image over 5 passes: at most 1e-4.

    If the context is strict, none at all. A pass with gradients may differ by 1e-4 in either case. Of a model
    that draws random numbers, two more passes are asked with torch's fixed at 0 and at almost 1.
    """
    limit = 0.0 if context.strict else LIMIT
    passes = [context.own_logits(), *(context.logits_at_once(context.images) for _ in range(PASSES - 2))]
    few = context.images[:SAMPLES]
    aside = CheckedModel(context.model, context.num_classes, per_sample=True)
    random_numbers = draws_at_random(lambda: context.logits(few, aside))
    for fixed in RandomNumbers.EXTREMES if random_numbers else ():
        with RandomNumbers(fixed):
            passes.append(context.logits_at_once(context.images))
    apart = torch.stack([context.distance(one, passes[0]) for one in passes[1:]])
    value = float(apart.max())
    sentence = (
        f"Over {len(passes) + 1} passes the logits of an image move by at most {value:.2g} of their size."
    )
    if math.isinf(value):
        sentence = f"Over {len(passes) + 1} passes an image has an answer in one and none in another."
    if value > limit:
        sentence += " The model answers every query of an attack differently."
    with_gradients = float(context.distance(context.logits_with_gradients(), passes[0]).max())
    if with_gradients > LIMIT:
        sentence += f" Where gradients are recorded they move by {with_gradients:.2g}."
    return measured(
        max(value, with_gradients if with_gradients > LIMIT else 0.0),
        limit,
        sentence,
        flagged=value > limit or with_gradients > LIMIT,
        unit="distance",
        arrays={"x": array(torch.arange(2, len(passes) + 1)), "largest change": array(apart.amax(1))},
        axes=("pass", "distance of normalised logits"),
    )
