"""FMN: the fast minimum-norm attack (Pintor, Roli, Brendel, Biggio, NeurIPS 2021, arXiv 2102.12827)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.minimum_norm_search import MinimumNormSearch, cosine_annealing
from ..core.norms import distance, normalise_l2, norms_of, onto_ball, per_image

GAMMA_LAST, ALPHA_LAST = 0.001, 0.01
"""The last factor that changes the radius, and the last step as a share of the first."""


def fmn(
    search: MinimumNormSearch,
    start: Tensor,
    target: Tensor | None,
    *,
    steps: int,
    alpha: float,
    gamma: float,
    warm: bool = False,
) -> None:
    """Algorithm 1, in l2 and L-infinity: follow the gradient on a ball whose radius looks for the boundary.

    The loss is the paper's, the difference of logits, so the scale of the logits does not matter. In
    L-infinity the step goes along the sign of the gradient, the steepest direction of that norm, where the
    paper goes along the gradient itself and leaves pixels of small weight behind.

    Parameters
    ----------
    steps
        K: forwards are K + 1 (the last iterate counts too), backwards K.
    alpha
        The first step, pixel units in l2; it falls to `ALPHA_LAST` of it. In L-infinity a share of epsilon.
    gamma
        The first change of the radius: epsilon (1 +- gamma); it falls to `GAMMA_LAST`.
    warm
        Begin at the radius of `start`, an adversarial example, instead of 0.
    """
    x, linf = start, search.norm == "linf"
    found = torch.zeros_like(search.labels, dtype=torch.bool)
    epsilon = torch.zeros_like(search.max_distance)
    if warm:
        epsilon = distance(start, search.images, search.norm).to(epsilon)
    for k in range(steps):
        f, gradient, adversarial = search.query_gradient(x, target)
        gamma_k = cosine_annealing(gamma, GAMMA_LAST, k, steps)
        boundary = distance(x, search.images, search.norm).to(x) + f.abs() / norms_of(
            gradient, 1 if linf else 2
        )
        found = found | adversarial
        inside = torch.where(found, epsilon, torch.maximum(boundary, epsilon)) * (1 + gamma_k)
        outside = torch.minimum(epsilon * (1 - gamma_k), search.distance.to(x))
        epsilon = torch.minimum(torch.where(adversarial, outside, inside), search.max_distance)
        alpha_k = cosine_annealing(alpha, ALPHA_LAST * alpha, k, steps)
        step = gradient.sign() * per_image(epsilon) if linf else normalise_l2(gradient)
        x = onto_ball(x - alpha_k * step, search.images, epsilon, search.norm).clamp(0, 1)
    search.query(x)
