"""SPSA, simultaneous perturbation stochastic approximation: Uesato et al., ICML 2018, arXiv 1802.05666."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.batch_state import BatchState
from ..core.norms import Radius, project
from ..core.sampling import draw, uniform_unit
from ..core.seeds import derive


def slope(state: BatchState, rows: Tensor, x: Tensor, width: Radius, directions: int, purpose: str) -> Tensor:
    """Estimate the margin's gradient at `x` (n, C, H, W) of the samples `rows`; 2 `directions` forwards each.

    The mean of (f(x + width v) - f(x - width v)) / (2 width) v over random signs v from each sample's own
    stream (section 4.1). Points are clipped to the box, outside which a model promises nothing.
    """
    g = torch.zeros_like(x)
    seeds = state.seeds_of(rows)
    for number in range(directions):
        v = torch.where(draw(x, derive(seeds, purpose, number), uniform_unit) < 0.5, -1.0, 1.0).to(x)
        above = state.probe_margins(rows, (x + width * v).clamp(0, 1))
        below = state.probe_margins(rows, (x - width * v).clamp(0, 1))
        rise = (above - below).nan_to_num(0, 0, 0)  # a margin is infinite where there is no answer
        g += (rise.view(-1, 1, 1, 1) / (2 * width * directions)).to(x) * v
    return g


def spsa_linf(
    state: BatchState,
    eps: float,
    *,
    steps: int,
    directions: int,
    rate: float,
    width: float,
    decay: tuple[float, float] = (0.9, 0.999),
) -> None:
    """Adam on an estimated gradient, from the images as they are; (2 `directions` + 1) `steps` forwards each.

    Parameters
    ----------
    directions
        Pairs of points per step; Uesato et al. take 128 to 4,096 and more.
    rate, width
        Adam's learning rate and delta, the size of the differences, in pixel units.
    """
    rows = state.rows
    x0 = state.images[rows]
    tiny = torch.finfo(x0.dtype).tiny
    x, m, v = x0, torch.zeros_like(x0), torch.zeros_like(x0)
    for t in range(1, steps + 1):
        active = state.active[rows]
        rows, x0, x, m, v = (tensor[active] for tensor in (rows, x0, x, m, v))
        if not len(rows):
            return
        g = slope(state, rows, x, width, directions, f"spsa {t}")
        m = decay[0] * m + (1 - decay[0]) * g
        v = decay[1] * v + (1 - decay[1]) * g.square()
        step = m / (1 - decay[0] ** t) / (v / (1 - decay[1] ** t)).sqrt().clamp_min(tiny)
        x = project(x + rate * step, x0, eps, "linf")
        state.query_margins(rows, x)
