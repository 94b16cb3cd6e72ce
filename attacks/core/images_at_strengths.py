"""The images of a minimal-norm attack at each of a grid of strengths, with room to be rounded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .frozen_model import frozen
from .losses import misclassified
from .queried_model import QueriedModel
from .types import Model, Norm

ROOM = 3e-5
"""How much farther in each pixel than a closest image a curve goes where it can: an image on the
boundary itself would not survive being rounded to the steps in which it is stored."""


@torch.no_grad()
def images_at_strengths(
    strengths: Sequence[float],
    model: Model,
    images: Tensor,
    labels: Tensor,
    found: Tensor,
    distances: Tensor,
    norm: Norm,
) -> Tensor:
    """At each of S strengths the closest image where it is near enough, else `images`: (S, N, C, H, W).

    Parameters
    ----------
    found, distances
        The closest adversarial images (N, C, H, W) and their distances (N,). Where one a little farther
        out is adversarial too it takes their place: one query.
    """
    room = ROOM * (images[0].numel() ** 0.5 if norm == "l2" else 1.0)
    far = 1.005 * distances + room
    factor = (far / distances).nan_to_num(0, 0, 0).view(-1, 1, 1, 1).to(images)
    outward = (images + factor * (found - images)).clamp(0, 1)
    with frozen(model):
        broken = misclassified(QueriedModel.of(model).logits(outward), labels)
    holds = broken & (factor.view(-1) > 0)
    grid = []
    for strength in strengths:
        near = found.where((distances <= strength).view(-1, 1, 1, 1), images)
        further = holds & (far <= strength)
        grid.append(outward.where(further.view(-1, 1, 1, 1), near))
    return torch.stack(grid)
