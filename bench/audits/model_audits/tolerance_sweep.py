"""Does the tolerance of an adaptive solver decide how robust the model seems?"""

from __future__ import annotations

import torch

from ...._errors import ModelFailure
from ....models import ODEBlock
from ....models.ode.surrogates import with_solver
from ..context import Context, array, share
from ..registry import Verdict, judged, not_applicable, register_audit

TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)
POINTS = 0.01


@register_audit(
    "tolerance-sweep",
    title="an attack at another tolerance is not stronger",
    needs="model",
    cost="PGD-20 with two restarts, 6 times",
    reference="Carrara, Caldelli, Falchi, Amato, WIFS 2019",
)
def check(context: Context) -> Verdict:
    """PGD-20 at tolerances from 1e-1 to 1e-6, scored at the model's own: lower by more than 1 point flags.

    One sample alone decides nothing, however few there are.
    """
    solvers = [module.solver for module in context.model.modules() if isinstance(module, ODEBlock)]
    adaptive = [solver for solver in solvers if solver.adaptive]
    if not adaptive:
        return not_applicable("The model has no adaptive solver, so no tolerance.")
    own = share(context.pgd())
    threat = context.threat("pgd", steps=20, restarts=2)
    scores: dict[float, float] = {}
    for tolerance in TOLERANCES:
        other = with_solver(context.model, method=adaptive[0].method, rtol=tolerance, atol=tolerance)
        try:
            scores[tolerance] = share(context.survives(threat, model=other))
        except ModelFailure:
            continue
    if not scores:
        return not_applicable("The solver fails at every other tolerance.")
    best = min(scores, key=lambda one: scores[one])
    value = 100 * (own - scores[best])
    sentence = (
        f"Attacked at a tolerance of {best:g} the model keeps {scores[best]:.1%}, attacked at its own "
        f"({adaptive[0].rtol:g}) {own:.1%}."
    )
    return judged(
        value,
        100 * POINTS,
        sentence,
        fails=round(value, 9) > 100 * POINTS and round(value / 100 * len(context.images)) > 1,
        unit="points",
        arrays={
            "x": array(torch.tensor(list(scores)).log10()),
            "attacked at another tolerance": array([100 * v for v in scores.values()]),
            "attacked at its own": array([100 * own] * len(scores)),
        },
        axes=("log10 of the tolerance of the attack", "robust accuracy (%)"),
    )
