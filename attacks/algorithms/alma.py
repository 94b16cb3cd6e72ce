"""ALMA: augmented Lagrangian attack (Rony, Granger, Pedersoli, Ben Ayed, ICCV 2021, arXiv 2011.11857).

Written from the paper's algorithm of that name, part by part and not by its equation numbers. `CHECK` is M
there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.minimum_norm_search import MinimumNormSearch, logit_lead
from ..core.norms import norms_of, per_image, scale_into_ball

ALPHA = 0.9
"""Weight of the past in the moving averages: of the multiplier, of the squared gradient, and of the steps."""
TAU, GAMMA, CHECK = 0.95, 1.2, 10
"""Every CHECK steps rho grows by GAMMA, unless the constraint shrank below TAU of what it was."""
MULTIPLIERS = (1e-6, 1e12)
RATE_LAST = 0.01
"""The last learning rate as a share of the first."""
TOLERANCE = 1e-4
"""What the constraint asks of a wrong class beyond a tie, as a share of the logits' spread."""
REACHES = (1.0, 1 / 3, 10 / 3)
"""The first runs differ in the length of their first step: where gradients mislead, each ends elsewhere."""


def alma(
    search: MinimumNormSearch, start: Tensor, target: Tensor | None, *, steps: int, reach: float
) -> None:
    """The attack in l2: minimise |delta|_2 subject to d(x + delta) < 0, d being `lead_ratio`.

    The constraint enters by the penalty-Lagrangian function P(d, rho, mu) of `slope_of_penalty`. Its
    multiplier mu is a moving average of P'(d, rho, mu), and delta follows RMSProp with momentum, clipped to
    the box after each step. The rate falls exponentially from the first step at which a sample is
    adversarial. The first step follows the constraint alone, and sets the rate by its length.

    The first three runs start at the image and descend towards the strongest other class, see `REACHES`;
    random starts were worth little. Only then do runs begin at `start`, towards `target`.

    Parameters
    ----------
    steps
        N: forwards are N + 1 (the last iterate counts too), backwards N.
    reach
        Length of the first step, epsilon in the paper: a share of the distance to the boundary of the
        linearised model, where the paper has one number for a dataset.

    References
    ----------
    Rony, Granger, Pedersoli, Ben Ayed, ICCV 2021, arXiv 2011.11857: the ALMA attack with the penalty P_2.
    """
    x = start
    if search.runs < len(REACHES):
        x, target, reach = search.images, None, reach * REACHES[search.runs]
    mu, rho = torch.ones_like(search.max_distance), torch.ones_like(search.max_distance)
    square, momentum = torch.ones_like(x), torch.zeros_like(x)
    rate, unit, checked = mu, mu, mu
    found = torch.full_like(search.labels, steps)
    for k in range(steps):
        d, gradient, adversarial = search.query_gradient(x, target, lead_ratio)
        found = torch.where(adversarial, found.clamp_max(k), found)
        if k == 0:
            checked, length = d, reach * torch.minimum(d.abs() / norms_of(gradient), search.max_distance)
            if search.num_classes < 3:  # d is no ratio then
                unit = 1 / d.abs().clamp_min(torch.finfo(d.dtype).tiny)
                checked = checked * unit
        d, gradient = d * unit, gradient * per_image(unit)
        if k:
            if (k + 1) % CHECK == 0:
                stuck = (found == steps) & (d >= TAU * checked)
                rho, checked = torch.where(stuck, GAMMA * rho, rho), d
            mu = (ALPHA * mu + (1 - ALPHA) * slope_of_penalty(d, rho, mu)).clamp(*MULTIPLIERS)
        slope = per_image(slope_of_penalty(d, rho, mu)) * gradient
        if k:
            delta = x - search.images
            slope = slope + delta / per_image(norms_of(delta))
        square = ALPHA * square + (1 - ALPHA) * slope.square()
        momentum = ALPHA * momentum + slope / (square.sqrt() + 1e-8)
        if k == 0:
            rate = scale_into_ball(-momentum, x, length, 1e3 * length / norms_of(momentum))
        decay = RATE_LAST ** ((k - found).clamp_min(0) / (steps - found).clamp_min(1))
        x = (x - per_image(rate * decay) * momentum).clamp(0, 1)
    search.query(x)


def lead_ratio(logits: Tensor, labels: Tensor, target: Tensor | None) -> Tensor:
    """The constraint d: `logit_lead` over the spread z_pi1 - z_pi3 of the three largest logits, (N,).

    Negative where the image is adversarial by more than `TOLERANCE`. With two classes, where the ratio would
    be constant, the lead itself.

    References
    ----------
    Croce, Hein, ICML 2020, arXiv 2003.01690: the difference of logits ratio, of which this is the
    negative.
    """
    lead = logit_lead(logits, labels, target)
    if logits.shape[1] < 3:
        return lead
    top = logits.topk(3, dim=1).values
    spread = (top[:, 0] - top[:, 2]).clamp_min(torch.finfo(logits.dtype).tiny)
    return lead / spread + TOLERANCE


def slope_of_penalty(d: Tensor, rho: Tensor, mu: Tensor) -> Tensor:
    """P'(d, rho, mu) of the penalty-Lagrangian function P_2 of Birgin, Castillo, Martinez (2005), (N,).

    P_2 is mu d + mu rho d^2 + rho^2 d^3 / 6 for d >= 0, and mu d / (1 - rho d) for d < 0.

    References
    ----------
    Birgin, Castillo, Martinez, Computational Optimization and Applications 31, 2005.
    """
    outside = mu + 2 * mu * rho * d + rho.square() * d.square() / 2
    return torch.where(d >= 0, outside, mu / (1 - rho * d.clamp_max(0)).square())
