"""A contractive flow on forward-Euler steps that are far too long for it."""

from __future__ import annotations

from .base import Case, Defect, fitted

CLAIMS = frozenset({"contractive"})


def defective(seed: int) -> Case:
    """The published rule for gamma, whose flow contracts, at h = 0.5."""
    model = fitted("ch-node-euler", seed)
    model.flow.update_gamma()
    from .base import fit

    fit(model, model.head)
    return Case(model, claims=CLAIMS)


def control(seed: int) -> Case:
    """A contractive flow on a grid that keeps the contraction."""
    return Case(fitted("ch-node", seed, steps=16), claims=CLAIMS)


DEFECT = Defect("contraction", defective, control)
