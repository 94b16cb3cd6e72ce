"""Uniform noise is a point of its ball in l-infinity: it may break nothing that attacks leave. No torch."""

from __future__ import annotations

import numpy as np

from ..evidence import Evidence
from ..registry import Verdict, judged, not_applicable, register_audit


@register_audit(
    "noise-below-attack",
    title="uniform noise breaks nothing that attacks in l-infinity of its half-width leave",
    needs="records",
    cost="stored records",
    fast=True,
    reference="Carlini et al., arXiv 1902.06705, section 4.4",
)
def check(evidence: Evidence) -> Verdict:
    """Samples that uniform noise breaks and every attack in L-infinity of its half-width leaves: any flags.

    Attacks at smaller radii count too. Other noise has no bound to compare with.
    """
    strengths, noisy, attacked, beaten = [], [], [], 0
    for record in evidence.noise():
        if record.cell.threat != "uniform":
            continue
        broken = evidence.broken("linf", record.cell.strength)
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
        f"Uniform noise breaks {beaten} samples that every attack of the same radius leaves."
        if beaten
        else f"Attacks break all that uniform noise of the same radius breaks ({len(strengths)} radii)."
    )
    return judged(
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
