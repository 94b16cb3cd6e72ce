"""Does robust accuracy depend on the tolerance of the adaptive solver that is attacked?"""

from __future__ import annotations

import torch

from ...._errors import ModelFailure
from ...solvers.changed_model import ChangedModel
from ...solvers.solver_call import SolverChange
from ..context import Context
from ..measures import array, exceeds, fraction
from ..registry import AuditResult, measured, not_applicable, register_audit

TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)
POINTS = 0.01


@register_audit(
    "tolerance-sweep",
    title="an attack at another tolerance is not stronger",
    needs="model",
    cost="PGD-20 with two restarts, 6 times",
    reference="Carrara, Caldelli, Falchi, Amato, WIFS 2019",
    version=2,
)
def check(context: Context) -> AuditResult:
    """PGD-20 at tolerances from 1e-1 to 1e-6, scored at the model's own: lower by more than 1 point flags.

    A difference of one sample never flags.
    """
    calls = context.solver_calls()
    if not calls:
        return context.without_solver()
    adaptive = [call for call in calls if call.adaptive]
    if not adaptive:
        return not_applicable(f"The model's solver is not adaptive, so it has no tolerance: {calls[0]}.")
    own = fraction(context.pgd())
    threat = context.threat("pgd", steps=20, restarts=2)
    scores: dict[float, float] = {}
    for tolerance in TOLERANCES:
        change = SolverChange(rtol=tolerance, atol=tolerance, only="adaptive")
        try:
            scores[tolerance] = fraction(context.survives(threat, model=ChangedModel(context.model, change)))
        except ModelFailure:
            continue
    if not scores:
        return not_applicable("The solver fails at every other tolerance.")
    best = min(scores, key=lambda one: scores[one])
    value = 100 * (own - scores[best])
    sentence = (
        f"Robust accuracy is {scores[best]:.1%} under an attack at a tolerance of {best:g}, {own:.1%} under "
        f"one at the model's own ({adaptive[0].rtol:g})."
    )
    return measured(
        value,
        100 * POINTS,
        sentence,
        flagged=exceeds(value, 100 * POINTS, len(context.images)),
        unit="points",
        arrays={
            "x": array(torch.tensor(list(scores)).log10()),
            "attacked at another tolerance": array([100 * v for v in scores.values()]),
            "attacked at its own": array([100 * own] * len(scores)),
        },
        axes=("log10 of the tolerance of the attack", "robust accuracy (%)"),
    )
