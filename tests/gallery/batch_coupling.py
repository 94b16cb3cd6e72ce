"""An adaptive solver at a loose tolerance: one error norm for the whole batch."""

from __future__ import annotations

from .base import Case, Defect, fitted


def defective(seed: int) -> Case:
    return Case(fitted("node-dopri5", seed, gain=2.5, layers=1, rtol=0.3, atol=0.3))


def control(seed: int) -> Case:
    """The same field, solved on a grid that is fine enough."""
    return Case(fitted("node", seed, gain=2.5, layers=1, steps=128))


DEFECT = Defect("batch-independence", defective, control)
