"""Does an attack that sees no gradient break what the best white-box attack leaves?"""

from __future__ import annotations

import torch

from ..context import Context, array, share
from ..registry import Verdict, judged, register_audit

POINTS = 0.2


@register_audit(
    "black-box",
    title="a black-box attack breaks nothing that white-box attacks leave",
    needs="model",
    cost="what white-box attacks leave: Square of 1000 queries and SPSA of 1290",
    reference="Athalye, Carlini, Wagner, ICML 2018, section 3.1; Andriushchenko et al., ECCV 2020",
)
def check(context: Context) -> Verdict:
    """Square, and SPSA in L-infinity, on the survivors of all white-box attacks: above .2 point flags.

    White-box: PGD-20, the long PGD, APGD-CE, APGD-T, and what is stored.
    """
    white = context.white_box()
    left = context.survives(context.threat("square", queries=context.queries), among=white)
    if context.norm == "linf":
        threat = context.threat(
            "spsa", steps=context.spsa_steps, directions=64, rate=context.eps / 3, width=context.eps / 10
        )
        left = context.survives(threat, among=left)
    value = 100 * (share(white) - share(left))
    sentence = f"White-box attacks leave {share(white):.1%}, black-box attacks after them {share(left):.1%}"
    sentence += ": gradients mislead." if value > POINTS else "."
    scores = [100 * share(context.correct()), 100 * share(white), 100 * share(left)]
    return judged(
        value,
        POINTS,
        sentence,
        unit="points",
        arrays={"x": array(torch.arange(3)), "robust accuracy": array(scores)},
        axes=("clean, white-box, black-box after it", "percent"),
    )
