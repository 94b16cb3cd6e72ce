"""Does the model say the same thing twice?"""

from __future__ import annotations

import torch

from ..context import Context, array, normalised
from ..registry import Verdict, judged, register_audit

PASSES = 5
LIMIT = 1e-4


@register_audit(
    "determinism",
    title="the same image gives the same logits",
    needs="model",
    cost="5 forwards an image",
    fast=True,
    reference="Athalye, Carlini, Wagner, ICML 2018, arXiv 1802.00420, section 3.2",
)
def check(context: Context) -> Verdict:
    """Largest distance between the normalised logits of one image over 5 passes: at most 1e-4."""
    passes = [normalised(context.logits(context.images)) for _ in range(PASSES)]
    apart = torch.stack([(one - passes[0]).norm(dim=1) for one in passes[1:]])
    value = float(apart.max())
    sentence = f"Over {PASSES} passes the normalised logits of an image move by at most {value:.2g}."
    if value > LIMIT:
        sentence += " An attack meets another model at every query."
    return judged(
        value,
        LIMIT,
        sentence,
        unit="distance",
        arrays={"x": array(torch.arange(2, PASSES + 1)), "largest change": array(apart.amax(1))},
        axes=("pass", "distance of normalised logits"),
    )
