"""CW: the l2 attack of Carlini and Wagner (IEEE S&P 2017, arXiv 1608.04644), with nothing frozen."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.minimum_norm_search import MinimumNormSearch, cosine_annealing
from ..core.norms import norms_of, per_image

BETA, EPS = (0.9, 0.999), 1e-8
"""Adam's own constants."""
LR_LAST = 0.01
"""The last rate as a share of the first."""


def cw(
    search: MinimumNormSearch, start: Tensor, target: Tensor | None, *, steps: int, rounds: int, rate: float
) -> None:
    """Minimise |delta|_2^2 + c f_6(x + delta) by Adam, for `rounds` values of c per sample (section VI-A).

    f_6 = max(z_y - max_{k != y} z_k, 0), untargeted and with kappa = 0: no sign of a logit is assumed.

    The box is kept by projection (section V-B, "projected gradient descent"). The change of variable
    1/2 (tanh w + 1) has no gradient at pixels of exactly 0 or 1, and can only approach these; here they move
    and stop there. c is searched in units of its own first-order value: on a linear model the optimum's
    multiplier is 2 f / |grad f|^2, so logits of any scale need the same few rounds.

    Parameters
    ----------
    steps
        Steps of Adam in each round: a forward and a backward each; a forward more looks at the last iterate.
    rounds
        Values of c, found by binary search on a logarithmic scale. Each starts anew, as in the paper.
    rate
        Adam's first step, as a share of what a pixel has to move: the distance known (before one is, that to
        the boundary of the linearised model) over the root of the number of pixels. It falls to `LR_LAST`
        of it. The paper's is 0.01 of the box, too coarse for a boundary nearer than that.
    """
    c = torch.ones_like(search.max_distance)
    low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)
    scale, reach = c, c
    pixels = search.images[0].numel()
    for round_ in range(rounds):
        pixel = search.distance.to(c) / pixels**0.5
        x, hit = start, torch.zeros_like(search.labels, dtype=torch.bool)
        mean, square = torch.zeros_like(x), torch.zeros_like(x)
        for k in range(steps):
            f, gradient, adversarial = search.query_gradient(x, target)
            hit = hit | adversarial
            if round_ == k == 0:
                scale = norms_of(gradient)
                reach = 2 * torch.minimum(f.abs() / scale, search.max_distance)
            if k == 0:
                pixel = torch.where(pixel.isfinite(), pixel, reach / 2 / pixels**0.5)  # reach: 2 |delta|
            pull = torch.where(f > 0, c * reach, 0)
            slope = 2 * (x - search.images) + per_image(pull) * (gradient / per_image(scale)).clamp(-1e6, 1e6)
            mean = BETA[0] * mean + (1 - BETA[0]) * slope
            square = BETA[1] * square + (1 - BETA[1]) * slope.square()
            moved = mean / (1 - BETA[0] ** (k + 1)) / ((square / (1 - BETA[1] ** (k + 1))).sqrt() + EPS)
            x = (x - cosine_annealing(rate, LR_LAST * rate, k, steps) * per_image(pixel) * moved).clamp(0, 1)
        hit = hit | search.query(x)
        low, high = torch.where(hit, low, c), torch.where(hit, c, high)
        c = torch.where(high.isinf(), 10 * c, torch.where(low == 0, c / 10, (low * high).sqrt()))
