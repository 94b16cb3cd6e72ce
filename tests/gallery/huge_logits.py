"""Logits in the thousands: the cross-entropy of a correct sample has no gradient left in float32."""

from __future__ import annotations

from .base import Case, Defect, fitted


def defective(seed: int) -> Case:
    return Case(fitted("node", seed, size=1e4, steps=16, final_time=1.0))


def control(seed: int) -> Case:
    """Logits of twice the usual size."""
    return Case(fitted("node", seed, size=20.0, steps=16, final_time=1.0))


DEFECT = Defect("zero-gradients", defective, control)
