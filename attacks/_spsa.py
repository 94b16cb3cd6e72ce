"""SPSA, simultaneous perturbation stochastic approximation (Uesato et al., ICML 2018, arXiv 1802.05666)."""

from __future__ import annotations

import torch

from ._norms import project
from ._seeds import derive
from ._survivors import Survivors
from .noise import draw, uniform_unit


def spsa_linf(
    survivors: Survivors,
    eps: float,
    *,
    steps: int,
    directions: int,
    rate: float,
    width: float,
    decay: tuple[float, float] = (0.9, 0.999),
) -> None:
    """Adam on a gradient estimated from differences; (2 `directions` + 1) `steps` forwards each.

    Raises the margin over the ball of radius `eps` around the survivors (section 4.1, Algorithm 1). All
    signs come from each sample's own stream.

    Parameters
    ----------
    directions
        Pairs of points per step; Uesato et al. take 128 to 4,096 and more.
    rate, width
        Adam's learning rate and delta, the size of the differences, in pixel units. Points are clipped to
        the box, outside which a model promises nothing.
    """
    rows = survivors.rows
    x0 = survivors.images[rows]
    tiny = torch.finfo(x0.dtype).tiny
    x, m, v = x0, torch.zeros_like(x0), torch.zeros_like(x0)
    for t in range(1, steps + 1):
        standing = survivors.standing[rows]
        if not bool(standing.all()):
            rows, x0, x, m, v = (tensor[standing] for tensor in (rows, x0, x, m, v))
        if not len(rows):
            return
        seeds = survivors.seeds_of(rows)
        g = torch.zeros_like(x)
        for number in range(directions):
            sign = torch.where(draw(x, derive(seeds, "spsa", t, number), uniform_unit) < 0.5, -1.0, 1.0).to(x)
            above = survivors.probe(rows, (x + width * sign).clamp(0, 1))
            below = survivors.probe(rows, (x - width * sign).clamp(0, 1))
            g += ((above - below) / (2 * width * directions)).to(x).view(-1, 1, 1, 1) * sign
        m = decay[0] * m + (1 - decay[0]) * g
        v = decay[1] * v + (1 - decay[1]) * g.square()
        step = m / (1 - decay[0] ** t) / (v / (1 - decay[1] ** t)).sqrt().clamp_min(tiny)
        x = project(x + rate * step, x0, eps, "linf")
        survivors.ask(rows, x)
