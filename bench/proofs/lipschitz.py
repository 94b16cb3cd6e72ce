"""Certificates: for every sample an l2 radius inside which no perturbation changes the prediction.

A model states Lipschitz bounds of its parts (``lipschitz_parts``); the harness combines them in float64
with the margins of the logits. The bound speaks of the network in real arithmetic: rounding in float32 is
not part of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..._errors import ContractBroken, ModelFailure, NotAsked
from ...attacks.core.losses import answered
from ...models import LipschitzParts, NoCertificate, stated_lipschitz_parts
from ..data import Split
from ..records.record import Cell, Record
from ..runtime.checked_model import CheckedModel
from ..runtime.float64 import in_float64
from .slopes import ROUNDING, slopes_over_bound

MEASURED, ASCENTS = 8, 2
"""Images at which slopes are compared with the stated bound, and steps that ascend the slope."""


def l2_radius(logits: Tensor, labels: Tensor, parts: LipschitzParts) -> Tensor:
    """Certified l2 radius of each sample in pixel units, float64 (N,); 0 where it is misclassified.

    min over j != y of (z_y - z_j) / (|w_y - w_j|_2 L), L the product of the bounds of the body.

    References
    ----------
    Tsuzuku, Sato, Sugiyama, "Lipschitz-margin training", NeurIPS 2018, eq. 6 and its appendix on the
    last layer.
    """
    head = parts.head.to(logits)
    rows = torch.arange(len(labels), device=logits.device)
    margins = logits[rows, labels][:, None] - logits
    # Not by way of a matrix product, which loses the digits of rows that nearly agree.
    apart = torch.cdist(head[labels], head, compute_mode="donot_use_mm_for_euclid_dist")
    slopes = apart * math.prod(parts.body.values())
    radii = margins / slopes
    radii[rows, labels] = torch.inf
    # Equal rows of W with equal logits give 0/0: nothing is certified there.
    return torch.where(radii.isnan(), 0.0, radii).amin(1).clamp_min(0)


def certify_cell(
    cell: Cell,
    model: nn.Module,
    split: Split,
    *,
    num_classes: int,
    device: torch.device,
    environment: Mapping[str, Any],
) -> Record:
    """Certify the first ``cell.samples`` of `split`, in float64.

    A model without bounds gets a record that carries the reason and no radius: nothing is claimed of it.
    """
    started = time.perf_counter()
    split = split.first(cell.samples)
    try:
        radius, parts = _radii(model, split, num_classes, cell.batch_size, device)
    except (NoCertificate, NotAsked) as reason:
        seconds = time.perf_counter() - started
        return Record(
            cell=cell, card={"no_certificate": str(reason)}, seconds=seconds, environment=environment
        )
    # Stored in float32, rounded towards 0: a certificate never grows by being written down.
    stored = np.nextafter(radius.astype(np.float32), np.float32(0))
    return Record(
        cell=cell,
        outcomes={"radius": np.maximum(stored, 0)},
        measures={
            **{f"lipschitz_{name}": value for name, value in parts.body.items()},
            "lipschitz_body": math.prod(parts.body.values()),
            "pixels": float(math.prod(split.images.shape[1:])),
        },
        forwards=cell.samples,
        seconds=time.perf_counter() - started,
        environment=environment,
    )


def _radii(
    model: nn.Module, split: Split, num_classes: int, batch_size: int, device: torch.device
) -> tuple[np.ndarray, LipschitzParts]:
    """The radius of each sample, float64 (N,), and the bounds: what is bounded is what is evaluated."""
    stated_lipschitz_parts(model)  # before anything is asked of a model that states none
    images = split.images.to(device)
    with in_float64(model, images):
        parts = stated_lipschitz_parts(model)
        if not all(math.isfinite(bound) and bound >= 0 for bound in parts.body.values()):
            raise ModelFailure(
                f"lipschitz_parts returned bounds that are no finite numbers: {dict(parts.body)}"
            )
        asked = CheckedModel(model, num_classes, per_sample=True)
        few = images[: max(MEASURED, batch_size)].double()
        few = few[answered(asked.logits(few))][:MEASURED]
        generator = torch.Generator().manual_seed(0)
        seen = slopes_over_bound(model, few, parts, ascents=ASCENTS, generator=generator)
        steepest = max(float(each.max()) for each in seen.values())
        if not steepest <= 1 + ROUNDING:
            raise ContractBroken(
                f"a slope of {steepest:.3g} times the stated Lipschitz bound was measured: lipschitz_parts "
                "is wrong, compute it from the weights in use"
            )
        radii = []
        with torch.no_grad():
            for part, labels in zip(images.split(batch_size), split.labels.split(batch_size), strict=True):
                logits = asked(part.double())  # no answer: NaN, and a radius of 0
                radii.append(l2_radius(logits, labels.to(device), parts).cpu())
    return torch.cat(radii).numpy(), parts
