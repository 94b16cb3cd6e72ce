"""Do more attack steps, and stronger attacks, lower robust accuracy much?"""

from __future__ import annotations

import torch

from ..context import Context
from ..measures import array, exceeds, fraction
from ..registry import AuditResult, measured, register_audit

WEAKER, LONGER, TARGETED = 0.5, 2.0, 5.0


@register_audit(
    "step-counts",
    title="more attack steps lower robust accuracy little",
    needs="model",
    cost="FGSM, PGD-20 twice, PGD-1000 on its survivors, APGD-CE of 100 steps, APGD-T on its survivors",
    reference="Athalye, Carlini, Wagner, ICML 2018, section 3.1; Huang et al., PMLR 145",
    version=2,
)
def check(context: Context) -> AuditResult:
    """PGD above FGSM by .5 point, PGD-1000 below PGD-20 by 2 points, or APGD-T below APGD-CE by 5: flags.

    A difference of one sample never flags.

    The long run attacks the survivors of PGD-20 with two restarts, APGD-T those of APGD-CE. A context may
    make the long run shorter, and the sentence says so.
    """
    untargeted, targeted = context.apgd()
    masks = {
        "FGSM": context.survives(context.threat("fgsm")),
        "PGD-20": context.pgd(),
        f"PGD-{context.long_steps}": context.long_pgd(),
        "APGD-CE": untargeted,
        "APGD-T after it": targeted,
    }
    scores = {name: 100 * fraction(mask) for name, mask in masks.items()}
    one_step, short, long, ce, t = scores.values()
    gaps = {
        "PGD-20 is weaker than one step of FGSM": (short - one_step, WEAKER),
        f"PGD-20 is weaker than PGD-{context.long_steps}": (short - long, LONGER),
        "APGD-CE is weaker than APGD-T": (ce - t, TARGETED),
    }
    what, (value, threshold) = max(gaps.items(), key=lambda gap: gap[1][0] / gap[1][1])
    flagged = exceeds(value, threshold, len(context.images))
    listed = ", ".join(f"{name} {score:.1f}%" for name, score in scores.items())
    sentence = f"Robust accuracy: {listed}" + (
        f"; {what} by {value:.1f} points." if flagged else "; more steps lower it little."
    )
    return measured(
        value,
        threshold,
        sentence,
        flagged=flagged,
        unit="points",
        arrays={"x": array(torch.arange(len(scores))), "robust accuracy": array(list(scores.values()))},
        axes=(", ".join(scores), "percent"),
    )
