"""Relative margins of images: whether one is adversarial alone and in shuffled batches."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...attacks.core.losses import answered
from ..runtime.checked_model import CheckedModel
from .accuracy import frozen

TIE = 1e-4
"""A lead of the true class below this, relative to the largest logit, may be another machine's rounding."""


def relative_margins(
    model: nn.Module, images: Tensor, labels: Tensor, batch_size: int, num_classes: int
) -> NDArray[np.float64]:
    """The margin max_{k != y} z_k - z_y over the largest |logit|, float64 (n,).

    Positive where the prediction is wrong, infinite where there is no answer.

    Raises
    ------
    ModelFailure
        When the model breaks its contract, or raises by its code.
    """
    found = [np.zeros(0)]
    asked = CheckedModel(model, num_classes, per_sample=True)
    asked.has_answered = True
    with frozen(model), torch.no_grad():
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            logits = asked(images[part].clone()).double()
            true = labels[part, None]
            own = logits.gather(1, true).squeeze(1)
            other = logits.scatter(1, true, -torch.inf).amax(1)
            size = logits.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
            found.append(((other - own) / size).where(answered(logits), torch.inf).numpy())
    return np.concatenate(found)


def relative_margins_alone_and_shuffled(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    num_classes: int,
    *,
    unperturbed: Tensor,
) -> dict[str, NDArray[np.float64]]:
    """`relative_margins` of each image at batch size 1, and in batches shuffled with a fixed seed.

    Raises
    ------
    ModelFailure
        As `relative_margins`; or the model gives no answer, and none for the `unperturbed` images either.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    shuffled = np.empty(len(images))
    shuffled[order.numpy()] = relative_margins(model, images[order], labels[order], batch_size, num_classes)
    alone = relative_margins(model, images, labels, 1, num_classes)
    if (silent := torch.from_numpy(np.isinf(alone))).any():
        with frozen(model):  # raises where the model fails altogether
            CheckedModel(model, num_classes, per_sample=True).logits(unperturbed[silent].clone())
    return {"at batch size 1": alone, "in shuffled batches": shuffled}
