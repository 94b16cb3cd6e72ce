"""Did an attack break a sample inside its certified radius? No torch."""

from __future__ import annotations

import math

import numpy as np

from ...records.record import UNASKED
from ..registry import AuditResult, measured, not_applicable, register_audit
from ..stored_records import StoredRecords


@register_audit(
    "certified-below-attacked",
    title="no attack broke a certified sample",
    needs="records",
    cost="stored records",
    fast=True,
    reference="certified <= true <= attacked, for every sample",
    version=2,
)
def check(stored: StoredRecords) -> AuditResult:
    """Pairs of an attack and a sample that it broke inside its certified radius: any flags.

    Examples that someone submitted and other models' examples count as attacks on the samples they break.
    """
    certificate = stored.certificate
    if certificate is None:
        return not_applicable("The model has no certificate.")
    attacks = stored.attacks(submitted=True)
    if not attacks:
        return not_applicable("No attack is stored to compare the certificate with.")
    radius, pixels = certificate.outcomes["radius"], certificate.measures["pixels"]
    pairs = broken = 0
    lines: dict[float, tuple[float, float]] = {}
    for record in attacks:
        scale = math.sqrt(pixels) if record.cell.norm == "linf" else 1.0
        count = min(record.cell.samples, radius.size)
        inside = radius[:count] > record.cell.strength * scale
        survived = record.outcomes["correct"][:, :count].all(0)
        tried = np.full(count, record.cell.family not in UNASKED) | ~survived
        pairs += int((inside & tried).sum())
        broken += int((inside & ~survived).sum())
        if record.cell.norm == "l2" and record.cell.family not in UNASKED:
            low = min(lines.get(record.cell.strength, (0.0, 1.0))[1], float(survived.mean()))
            lines[record.cell.strength] = (float(inside.mean()), low)
    sentence = (
        f"{broken} of {pairs} attacks inside a certified radius broke the sample: the certificate is wrong."
        if broken
        else f"None of {pairs} attacks inside a certified radius broke the sample."
    )
    arrays = {}
    if lines:
        arrays = {
            "x": np.array(list(lines)),
            "certified": np.array([100 * v[0] for v in lines.values()]),
            "attacked": np.array([100 * v[1] for v in lines.values()]),
        }
    return measured(
        float(broken), 0.0, sentence, unit="samples", arrays=arrays, axes=("l2 radius", "accuracy (%)")
    )
