"""Is the Lipschitz bound of the certificate above every slope that is measured?"""

from __future__ import annotations

import torch

from ....models import NoCertificate, stated_lipschitz_parts
from ...proofs.slopes import ROUNDING, slopes_over_bound
from ...runtime.float64 import in_float64
from ..context import Context
from ..differences import off_kinks
from ..measures import array
from ..registry import AuditResult, measured, not_applicable, register_audit

SAMPLES, ASCENTS = 32, 10


@register_audit(
    "lipschitz-bound",
    title="no pair of images exceeds the Lipschitz bound",
    needs="model",
    cost="32 images in float64: one backward pass per class, 10 ascents of the slope, 5 forward passes",
    fast=True,
    untrained=True,
    remedy="Compute the bound from the weights in use, with no factor left out.",
    reference="Tsuzuku, Sato, Sugiyama, NeurIPS 2018, arXiv 1802.04034, eq. 6",
    version=2,
)
def check(context: Context) -> AuditResult:
    """Largest |d(z_i - z_j)| / (|w_i - w_j| L |dx|) over pairs of images and of classes: above 1 flags.

    Pairs are test images, random neighbours, and infinitesimal steps along the gradient: at test images, and
    after ascending the slope itself by power iteration on the Jacobian between two classes. Images are moved
    off kinks, see `differences`: at a kink backpropagation may return what is no slope of the model.
    """
    generator = context.generator("lipschitz-bound")
    images = off_kinks(context.images[:SAMPLES].double(), generator)
    with in_float64(context.model, context.images) as double:
        images = images[context.answered(images, double)]
        try:
            parts = stated_lipschitz_parts(double)
        except NoCertificate as reason:
            return not_applicable(f"The model has no Lipschitz bound: {reason}.")
        seen = slopes_over_bound(double, images, parts, ascents=ASCENTS, generator=generator)
    value = max(float(each.max()) for each in seen.values())
    sentence = f"The largest measured slope is {value:.3g} of what the model's Lipschitz bound allows"
    sentence += ": the bound is wrong, and so is every certificate." if value > 1 + ROUNDING else "."
    return measured(
        value,
        1.0,
        sentence,
        flagged=not value <= 1 + ROUNDING,
        unit="of the bound",
        arrays={
            "x": array(torch.arange(len(seen))),
            "largest slope over the bound": array([float(each.max()) for each in seen.values()]),
        },
        axes=(", ".join(seen), "fraction of the claimed bound"),
    )
