"""Targeted FAB, vectorised over the batch (Croce, Hein, ICML 2020, arXiv 1907.02044, Algorithm 1).

torchattacks 3.5.1 has it, but works in float32, takes gradient entries below 1e-8 for zero in L2 (a model
with small gradients would pass for robust), starts each target from fresh global seeds, and goes on with
samples that are broken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.batch_state import BatchState
from ..core.losses import difference, nonzero_gradient
from ..core.norms import Radius, inside, radius_of
from ..core.seeds import derive
from ..core.types import Norm
from .apgd import random_start


def step_to_plane(p: Tensor, w: Tensor, c: Tensor, norm: Norm) -> Tensor:
    """The shortest step d from `p` with p + d in the box [0, 1] and <w, d> = -c (equations 4 and 7).

    Where the box does not reach the plane, d goes as far towards it as the box permits.

    Parameters
    ----------
    p, w
        Points in the box and normals, (n, D). A normal of zero gives a step of zero.
    c
        Signed offsets, (n,): <w, p' - p> + c = 0 is the plane.

    Notes
    -----
    |d_i| = min(lambda v_i, room_i), v_i = 1 in L-infinity and |w_i| in L2: each coordinate moves until it
    meets the box. <|w|, |d|> is piecewise linear in lambda and its breakpoints room_i / v_i are sorted.
    """
    tiny, huge = torch.finfo(w.dtype).tiny, torch.finfo(w.dtype).max
    scale = w.abs().amax(1, keepdim=True).clamp_min(tiny)
    w, c = w / scale, c / scale[:, 0]
    sign = -w.sign() * torch.where(c >= 0, 1.0, -1.0)[:, None].to(w)
    room = torch.where(sign > 0, 1 - p, p).clamp_min(0)
    weight = w.abs()
    v = torch.ones_like(w) if norm == "linf" else weight
    breaks, order = torch.where(weight > 0, room / v, 0).clamp_max(huge).sort(dim=1)
    full = (weight * room).gather(1, order)
    rate = (weight * v).gather(1, order)
    before = full.cumsum(1) - full
    left = rate.flip(1).cumsum(1).flip(1)
    reach = before + breaks * left
    k = (reach < c.abs()[:, None]).sum(1, keepdim=True)
    last = (k == p.shape[1]).any(1, keepdim=True)
    k = k.clamp_max(p.shape[1] - 1)
    exact = (c.abs()[:, None] - before.gather(1, k)) / left.gather(1, k).clamp_min(tiny)
    amount = torch.where(last, breaks[:, -1:], exact.clamp(0, huge))
    return sign * torch.minimum(amount * v, room)


def fab(
    state: BatchState,
    targets: Tensor,
    eps: Radius,
    norm: Norm,
    *,
    steps: int,
    purpose: str | None = None,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
) -> None:
    """For the active samples, look for the nearest point where classes `targets` (N,) overtake the true ones.

    2 `steps` forwards and `steps` backwards each. FAB knows no budget: an image counts once it lies within
    its `eps`, and its sample is then left alone; so is one whose gradient is zero, which has no plane, and
    one that has to be asked in double precision, whose plane single precision would not find.

    Parameters
    ----------
    purpose
        Tells the start of one run from those of others: at random, half of `eps` away. Without, a run starts
        at the image itself.
    alpha_max, eta, beta
        Largest weight of the original image, overshoot, and how far a step back towards it goes.
    """
    rows = state.rows
    rows = rows[~state.use_float64[rows]]
    x0 = state.images[rows]
    x = x0
    if purpose is not None and len(rows):
        half = radius_of(eps, rows, x0) / 2
        x = random_start(x0, derive(state.seeds_of(rows), "fab", purpose), half, norm)

    def loss(logits: Tensor, rows: Tensor) -> Tensor:
        return difference(logits, state.labels[rows], targets[rows])

    for _ in range(steps):
        if not len(rows):
            return
        f, g = state.query_gradient(rows, x, loss, inside(x, x0, eps, rows, norm))
        rows, x0, x, f, g = _of(state.active[rows] & nonzero_gradient(g), rows, x0, x, f, g)
        if not len(rows):
            return
        x = _step(x, x0, f.to(x), g, norm, alpha_max, eta)
        found = state.query_margins(rows, x, inside(x, x0, eps, rows, norm))
        x = torch.where((found > 0).view(-1, 1, 1, 1), x0 + beta * (x - x0), x)
        rows, x0, x = _of(state.active[rows], rows, x0, x)


def _step(x: Tensor, x0: Tensor, f: Tensor, g: Tensor, norm: Norm, alpha_max: float, eta: float) -> Tensor:
    """x of the next step: both `x` and `x0` go a little past the plane f + <g, . - x> = 0 and are mixed."""
    w = g.flatten(1)
    offset = f + (w * (x0 - x).flatten(1)).sum(1)
    d, d0 = step_to_plane(x.flatten(1), w, f, norm), step_to_plane(x0.flatten(1), w, offset, norm)
    order = torch.inf if norm == "linf" else 2
    near, far = (torch.linalg.vector_norm(d_, ord=order, dim=1) for d_ in (d, d0))
    alpha = (near / (near + far).clamp_min(1e-8)).clamp_max(alpha_max).view(-1, 1, 1, 1)
    mixed = (1 - alpha) * (x + eta * d.view_as(x)) + alpha * (x0 + eta * d0.view_as(x))
    clipped: Tensor = mixed.clamp(0, 1)
    return clipped


def _of(mask: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The rows in `mask` of each of `tensors`."""
    return tensors if bool(mask.all()) else tuple(tensor[mask] for tensor in tensors)
