"""DDN: decoupled direction and norm (Rony, Hafemann, Oliveira, Ben Ayed, Sabourin, Granger, CVPR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.minimum_norm_search import MinimumNormSearch, cosine_annealing
from ..core.norms import normalise_l2, norms_of, per_image

ALPHA_LAST = 0.01
"""The last step as a share of the first."""


def ddn(
    search: MinimumNormSearch, start: Tensor, target: Tensor | None, *, steps: int, alpha: float, gamma: float
) -> None:
    """Algorithm 1 of arXiv 1811.09600 without its quantisation: step, then rescale to the norm epsilon_k.

    Only the direction of the loss's gradient enters. The paper takes it from the cross-entropy, whose
    gradient underflows when logits are large and blends all classes when they are small; here it is the
    difference of logits, whose direction has no scale. The first norm is not the paper's 1 but the distance
    to the boundary of the linearised model, so that near boundaries are met in few steps too.

    Parameters
    ----------
    steps
        K: forwards are K + 1 (the last iterate counts too), backwards K.
    alpha
        The first step, pixel units; it falls to `ALPHA_LAST` of it.
    gamma
        The change of the norm: epsilon_{k+1} = (1 +- gamma) epsilon_k.
    """
    delta = start - search.images
    epsilon = norms_of(delta)
    for k in range(steps):
        f, gradient, adversarial = search.query_gradient(search.images + delta, target)
        if k == 0:
            epsilon = epsilon + f.abs() / norms_of(gradient)
        delta = delta - cosine_annealing(alpha, ALPHA_LAST * alpha, k, steps) * normalise_l2(gradient)
        epsilon = torch.where(adversarial, 1 - gamma, 1 + gamma) * epsilon
        epsilon = torch.minimum(epsilon, search.max_distance)
        delta = delta * per_image(epsilon / norms_of(delta))
        delta = (search.images + delta).clamp(0, 1) - search.images
    search.query(search.images + delta)
