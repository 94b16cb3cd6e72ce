"""Does uniform noise break samples that are robust to attacks in the same l-infinity ball? No torch."""

from __future__ import annotations

import numpy as np

from ..registry import AuditResult, measured, not_applicable, register_audit
from ..stored_records import StoredRecords


@register_audit(
    "noise-below-attack",
    title="uniform noise breaks no sample that is robust to l-infinity attacks of its half-width",
    needs="records",
    cost="stored records",
    fast=True,
    reference="Carlini et al., arXiv 1902.06705, section 4.4",
)
def check(stored: StoredRecords) -> AuditResult:
    """Samples that uniform noise breaks and no attack in L-infinity of its half-width does: any flags.

    Attacks at smaller radii count too. Other noise has no bound to compare with.
    """
    strengths, noisy, attacked, beaten = [], [], [], 0
    for record in stored.noise():
        if record.cell.threat != "uniform":
            continue
        broken = stored.broken("linf", record.cell.strength)
        if broken is None:
            continue
        count = min(len(broken), record.cell.samples)
        survived = record.outcomes["correct"][:, :count].all(0)
        strengths.append(record.cell.strength)
        noisy.append(100 * float(survived.mean()))
        attacked.append(100 * float((~broken[:count]).mean()))
        beaten += int((~survived & ~broken[:count]).sum())
    if not strengths:
        return not_applicable("No uniform noise is stored at a strength at which an attack in L-infinity is.")
    sentence = (
        f"Uniform noise breaks {beaten} samples that no attack of the same radius breaks."
        if beaten
        else f"Attacks break all that uniform noise of the same radius breaks ({len(strengths)} radii)."
    )
    return measured(
        float(beaten),
        0.0,
        sentence,
        unit="samples",
        arrays={
            "x": np.array(strengths),
            "worst draw of noise": np.array(noisy),
            "attacks": np.array(attacked),
        },
        axes=("radius in L-infinity", "accuracy (%)"),
    )
