"""The one rule by which an attack leaves a sample alone: its image breaks it as the harness will ask."""

from __future__ import annotations

import torch
from torch import Tensor

from .losses import margin, minimum_reliable_margin
from .queried_model import QueriedModel

STEPS = 65535
"""An adversarial image is stored as a perturbation in whole steps of 1/STEPS of a pixel."""


def as_stored(images: Tensor, clean: Tensor) -> Tensor:
    """`images` (n, C, H, W) as they come back from storage: perturbations of `clean` rounded towards zero."""
    original = clean.double()
    steps = ((images.double() - original) * STEPS).trunc()
    return (original + steps / STEPS).float().to(images)


@torch.no_grad()
def broken_as_stored(model: QueriedModel, images: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
    """Which of `images` (n, C, H, W) are misclassified once stored, each asked alone, bool (n,).

    By more than the `minimum_reliable_margin`. One forward each.
    """
    found = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    for row, image in enumerate(as_stored(images, clean)):
        logits = model.logits(image[None])
        found[row] = (margin(logits, labels[row : row + 1]) > minimum_reliable_margin(logits))[0]
    return found


@torch.no_grad()
def broken_beyond_doubt(
    model: QueriedModel,
    images: Tensor,
    logits: Tensor,
    clean: Tensor,
    labels: Tensor,
    eligible: Tensor | None = None,
) -> Tensor:
    """Which samples need no further attack, bool (n,): `images`, whose `logits` are known, break them.

    The margin exceeds the `minimum_reliable_margin`, and so it does when the image is asked about again as
    the harness will: rounded for storage, alone. That costs one forward for each sample that passes the first
    condition.

    Parameters
    ----------
    images, clean
        Perturbed and unperturbed, (n, C, H, W).
    eligible
        Which of `images` lie within the budget, bool (n,); None for all.
    """
    sure = margin(logits, labels) > minimum_reliable_margin(logits)
    if eligible is not None:
        sure &= eligible
    rows = sure.nonzero().flatten()
    if len(rows):
        sure[rows] = broken_as_stored(model, images[rows], clean[rows], labels[rows])
    return sure
