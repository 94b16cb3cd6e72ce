"""Does a black-box attack break samples that are robust to every white-box attack?"""

from __future__ import annotations

import torch

from ..context import Context
from ..measures import array, exceeds, fraction
from ..registry import AuditResult, measured, register_audit

POINTS = 0.2


@register_audit(
    "black-box",
    title="black-box attacks break no sample that is robust to white-box attacks",
    needs="model",
    cost="Square of 1000 queries and SPSA of 1290 on the samples that are robust to white-box attacks",
    reference="Athalye, Carlini, Wagner, ICML 2018, section 3.1; Andriushchenko et al., ECCV 2020",
    version=2,
)
def check(context: Context) -> AuditResult:
    """Square, and SPSA in L-infinity, on the survivors of all white-box attacks: above .2 point flags.

    One sample alone never flags.

    White-box: PGD-20, the long PGD, APGD-CE, APGD-T, and what is stored.
    """
    white = context.white_box()
    left = context.survives(context.threat("square", queries=context.queries), among=white)
    if context.norm == "linf":
        threat = context.threat(
            "spsa", steps=context.spsa_steps, directions=64, rate=context.eps / 3, width=context.eps / 10
        )
        left = context.survives(threat, among=left)
    value = 100 * (fraction(white) - fraction(left))
    flagged = exceeds(value, POINTS, len(context.images))
    sentence = (
        f"Robust accuracy is {fraction(white):.1%} under white-box attacks, {fraction(left):.1%} when "
        "black-box attacks follow"
    )
    sentence += ": the gradients mislead white-box attacks." if flagged else "."
    scores = [100 * fraction(context.correct()), 100 * fraction(white), 100 * fraction(left)]
    return measured(
        value,
        POINTS,
        sentence,
        flagged=flagged,
        unit="points",
        arrays={"x": array(torch.arange(3)), "robust accuracy": array(scores)},
        axes=("clean, white-box, black-box after it", "percent"),
    )
