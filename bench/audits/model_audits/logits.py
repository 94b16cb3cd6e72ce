"""Are the outputs logits? Probabilities give every loss a second softmax, which flattens its gradient."""

from __future__ import annotations

import torch

from ..context import Context
from ..measures import fraction
from ..registry import AuditResult, measured, register_audit


@register_audit(
    "logits",
    title="outputs are logits and not probabilities",
    needs="model",
    cost="1 forward pass per image",
    fast=True,
    untrained=True,
    remedy="Return logits, without a final softmax.",
    reference="Carlini, Wagner, arXiv 1608.04644, section VI",
)
def check(context: Context) -> AuditResult:
    """Share of samples whose outputs are non-negative and sum to 1: half flags."""
    outputs = context.logits(context.images).double()
    ones = torch.ones(len(outputs), dtype=torch.float64, device=outputs.device)
    plain = (outputs >= 0).all(1) & torch.isclose(outputs.sum(1), ones, atol=1e-4)
    value = fraction(plain)
    sentence = (
        f"For {value:.0%} of the samples the outputs are non-negative and sum to 1: they are probabilities."
        if value > 0.5
        else "The outputs are logits."
    )
    return measured(value, 0.5, sentence, unit="share")
