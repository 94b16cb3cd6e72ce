"""Does accuracy under an attack rise with eps? A larger ball contains the smaller one. No torch."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import numpy as np

from ...records.record import Record
from ..registry import AuditResult, measured, not_applicable, register_audit
from ..stored_records import StoredRecords


@register_audit(
    "monotone-in-eps",
    title="accuracy under an attack does not rise with eps",
    needs="records",
    cost="stored records",
    fast=True,
    reference="Athalye, Carlini, Wagner, ICML 2018, section 3.1; Carlini et al., arXiv 1902.06705",
)
def check(stored: StoredRecords) -> AuditResult:
    """Largest rise of accuracy from one stored strength to the next, of any iterative attack: any flags.

    One step of FGSM overshoots by itself and is left out.
    """
    curves: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in stored.attacks():
        if not record.cell.threat.startswith("fgsm"):
            curves[record.cell.threat, str(record.cell.norm)].append(record)
    curves = {name: curve for name, curve in curves.items() if len(curve) > 1}
    if not curves:
        return not_applicable("No iterative attack is stored at two strengths.")
    worst, value, where = next(iter(curves)), -np.inf, 0.0
    for name, curve in curves.items():
        for smaller, larger in pairwise(curve):
            count = min(smaller.cell.samples, larger.cell.samples)
            before, after = (float(r.outcomes["correct"][:, :count].mean()) for r in (smaller, larger))
            if 100 * (after - before) > value:
                worst, value, where = name, 100 * (after - before), larger.cell.strength
    rise = max(value, 0.0)
    sentence = (
        f"Under {worst[0]} accuracy is {rise:.1f} points higher at eps {where:g} than at the eps below."
        if rise > 0
        else "Accuracy rises with eps under no stored attack."
    )
    shown = curves[worst]
    return measured(
        round(rise, 9),
        0.0,
        sentence,
        unit="points",
        arrays={
            "x": np.array([r.cell.strength for r in shown]),
            worst[0]: np.array([100 * r.accuracy for r in shown]),
        },
        axes=("eps", "robust accuracy (%)"),
    )
