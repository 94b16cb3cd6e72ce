"""Does the model give the same logits twice?"""

from __future__ import annotations

import torch

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
    remedy="Draw no random numbers in eval mode.",
    reference="Athalye, Carlini, Wagner, ICML 2018, arXiv 1802.00420, section 3.2",
)
def check(context: Context) -> AuditResult:
    """Largest distance between the normalised logits of one image over 5 passes: at most 1e-4.

    If the context is strict, none at all.
    """
    limit = 0.0 if context.strict else LIMIT
    passes = [context.logits(context.images) for _ in range(PASSES)]
    apart = torch.stack([context.distance(one, passes[0]) for one in passes[1:]])
    value = float(apart.max())
    sentence = f"Over {PASSES} passes the logits of an image move by at most {value:.2g} of their size."
    if value > limit:
        sentence += " The model answers every query of an attack differently."
    return measured(
        value,
        limit,
        sentence,
        unit="distance",
        arrays={"x": array(torch.arange(2, PASSES + 1)), "largest change": array(apart.amax(1))},
        axes=("pass", "distance of normalised logits"),
    )
