"""Is an attack through another solver of the same flow stronger than one through the model's own?"""

from __future__ import annotations

import math

import torch

from ...._errors import ModelFailure, NotAsked
from ...solvers.changed_model import solver_surrogates
from ...solvers.solver_call import CannotSolveOtherwise
from ..context import Context
from ..measures import array, exceeds, fraction
from ..registry import AuditResult, measured, not_applicable, register_audit

POINTS = 0.01
MODES = 1e-4


@register_audit(
    "solver-transfer",
    title="an attack through another solver is not stronger",
    needs="model",
    cost="PGD-20 with two restarts, 5 times, up to 16 times the cost per step on the finest grid",
    reference="Huang, Yu, Zhang, Ghosh, Xing, Wang, PMLR 145, 2021; Carrara et al., arXiv 1908.09559",
    version=2,
)
def check(context: Context) -> AuditResult:
    """PGD-20 through euler and rk4 grids of 16 and 64 steps, scored on the model: over 1 point lower flags.

    A difference of one sample never flags.

    A model whose logits differ by more than 1e-4, normalised, when gradients are recorded is flagged too: the
    attacked model is not the scored one.
    """
    apart = _modes(context)
    if apart > MODES:
        change = f"normalised logits differ by up to {apart:.2g}"
        if math.isinf(apart):
            change = "images have no answer that have one otherwise, or have one that have none"
        sentence = f"With gradients recorded, {change}: the attacked model is not the scored one."
        return measured(apart, MODES, sentence, unit="distance")
    if not context.solver_calls():
        return context.without_solver()
    surrogates = solver_surrogates(context.model, context.images[:2])
    own = fraction(context.pgd())
    threat = context.threat("pgd", steps=20, restarts=2)
    scores: dict[str, float] = {}
    for name, surrogate in surrogates.items():
        try:
            scores[name] = fraction(context.survives(threat, model=surrogate))
        except CannotSolveOtherwise as reason:
            raise NotAsked(f"The model cannot be solved otherwise: {reason}") from None
        except ModelFailure:
            continue  # a grid too coarse for the field gives no numbers, and no attack
    if not scores:
        return not_applicable("No other grid solves this flow: every surrogate gave non-finite numbers.")
    name = min(scores, key=lambda one: scores[one])
    value = 100 * (own - scores[name])
    sentence = (
        f"Robust accuracy is {scores[name]:.1%} under the strongest attack through another grid ({name}), "
        f"{own:.1%} under the one through the model's own."
    )
    return measured(
        value,
        100 * POINTS,
        sentence,
        flagged=exceeds(value, 100 * POINTS, len(context.images)),
        unit="points",
        arrays={
            "x": array(torch.arange(len(scores) + 1)),
            "robust accuracy": array([100 * v for v in (own, *scores.values())]),
        },
        axes=(", ".join(["own", *scores]), "percent"),
    )


def _modes(context: Context) -> float:
    """Largest distance of normalised logits between scoring and attacking."""
    return float(context.distance(context.logits(context.images), context.logits_with_gradients()).max())
