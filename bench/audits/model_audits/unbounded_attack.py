"""Does an attack without a bound on the perturbation break every sample?"""

from __future__ import annotations

import math

from ..context import Context
from ..measures import array, fraction
from ..registry import AuditResult, measured, register_audit


@register_audit(
    "unbounded-attack",
    title="an attack without a bound breaks every sample",
    needs="model",
    cost="PGD-20 with two restarts at four radii, then APGD-CE and APGD-T on its survivors at the largest",
    reference="Athalye, Carlini, Wagner, ICML 2018, section 3.1; Carlini et al., arXiv 1902.06705",
)
def check(context: Context) -> AuditResult:
    """Survivors where the ball holds every image: any flags.

    Each of the radii below is a point of the plot.
    """
    whole = 1.0 if context.norm == "linf" else math.sqrt(context.images[0].numel())
    threat = context.threat("pgd", steps=20, restarts=2)
    radii = [r for r in (context.eps, 2 * context.eps, 4 * context.eps) if r < whole]
    scores = [fraction(context.survives(threat, eps=radius)) for radius in radii[1:]]
    left = context.survives(threat, eps=whole)
    left = context.apgd_t(context.apgd_ce(left, whole), whole)
    value = float(left.sum())
    sentence = (
        f"{int(value)} of {len(left)} samples survive an attack that may change every pixel to any value."
    )
    if not value:
        sentence = "No sample survives an attack that may change every pixel to any value."
    curve = [fraction(context.correct()), fraction(context.pgd()), *scores, fraction(left)]
    return measured(
        value,
        0.0,
        sentence,
        unit="samples",
        arrays={"x": array([0.0, *radii, whole]), "robust accuracy": array([100 * v for v in curve])},
        axes=(f"{context.norm} radius", "percent"),
    )
