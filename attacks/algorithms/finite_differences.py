"""An attack for samples whose input gradient is exactly zero: a Jacobian fitted to differences of logits.

Rounding the logits, or the input inside the model, makes the derivative zero, but over differences as wide as
the ball the logits still change. A Jacobian is fitted to such differences (`broyden_update`: Broyden, Math.
Comp. 19, 1965, for several differences at once) along random orthogonal directions (Choromanski et al., ICML
2018, arXiv 1804.02395). Then each wrong class is aimed at where the ball and the box permit most: the linear
step of Frank-Wolfe, as in Chen, Zhou, Yi, Gu, AAAI 2020, arXiv 1811.10828.

Where logits are flat, as of a saturated softmax, the differences widen until they show something. A model
that returns only its decision can be attacked that way too, but less well than the unmasked model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.batch_state import BatchState
from ..core.norms import Radius, radius_of, scale_into_ball
from ..core.norms import inside as within
from ..core.sampling import draw, uniform_unit
from ..core.seeds import derive
from ..core.types import Norm

_ENTRIES = 2**26
"""Entries of the largest tensor at once; more samples than it has room for take turns."""


def maximise_linear(g: Tensor, x0: Tensor, eps: Radius, norm: Norm) -> Tensor:
    """The point x of the ball and the box that maximises <g, x>, (n, C, H, W): exact for each norm.

    In l2 every pixel moves along `g` until it meets the box, see `scale_into_ball`.

    Parameters
    ----------
    g, x0
        Slopes and centres, (n, C, H, W). Where a slope is zero, nothing moves.
    eps
        Radius of the ball, in pixel units; one for all, or (n, 1, 1, 1).
    """
    if norm == "linf":
        return (x0 + eps * g.sign()).clamp(0, 1)
    g, center = g.double(), x0.double()
    g = g / g.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    room = torch.where(g > 0, 1 - center, center)
    corner = torch.where(g == 0, 0, room / g.abs()).flatten(1).amax(1)  # where the last pixel meets the box
    radius = eps.double() if isinstance(eps, Tensor) else eps
    scale = scale_into_ball(g, center, radius, largest=2 * corner)
    x: Tensor = (center + scale.view(-1, 1, 1, 1) * g).clamp(0, 1).to(x0)
    return x


def orthogonal_directions(x: Tensor, seeds: list[int], first: int, count: int) -> Tensor:
    """`count` directions of length 1 for each sample, (n, count, D), from number `first` of an endless row.

    Every D of them are an orthonormal basis: the cosines of the DCT with a random sign for each pixel, the
    signs from each sample's own stream and new for every basis.
    """
    size = x[0].numel()
    number = torch.arange(first, first + count)
    k, i = (number % size)[:, None], torch.arange(size)[None, :]
    rows = torch.cos(math.pi / size * (i + 0.5).double() * k) * torch.where(k > 0, 2 / size, 1 / size).sqrt()
    basis = number // size
    signs = [
        torch.where(draw(x, derive(seeds, "directions", sweep), uniform_unit) < 0.5, -1.0, 1.0).flatten(1)
        for sweep in range(int(basis[0]), int(basis[-1]) + 1)
    ]
    sweeps = torch.stack(signs, 1)[:, (basis - basis[0]).to(x.device)]
    return sweeps.to(x) * rows.to(x)


def broyden_update(jacobian: Tensor, moves: Tensor, changes: Tensor, ridge: float | Tensor) -> Tensor:
    """`jacobian` with the smallest change that explains what was seen: J + (F - J X) (X'X + ridge)^-1 X'.

    Parameters
    ----------
    jacobian
        (n, T, D).
    moves, changes
        m differences of images, the rows of X', (n, m, D), and of T values each, (n, m, T).
    ridge
        How much of a change is left to noise, the values being rounded and curved; (n, 1, 1) or one for all.
    """
    gram = moves @ moves.mT + ridge * torch.eye(moves.shape[1]).to(moves)
    missed = changes - moves @ jacobian.mT
    explained: Tensor = jacobian + torch.linalg.solve(gram, missed).mT @ moves
    return explained


def fit_and_attack(
    state: BatchState, eps: Radius, norm: Norm, *, queries: int, targets: int, pairs: int = 32
) -> None:
    """Fit a Jacobian and step along it, for active samples of zero gradient; at most `queries` forwards each.

    A round asks at `pairs` pairs of points around the present image, then at one aim for each of the
    likeliest `targets` wrong classes; the aim of the largest margin is the next round's image. Points are
    clipped to the box, outside which a model promises nothing: what is fitted is how they differ after that.

    Parameters
    ----------
    eps
        Radius of the ball, one for all samples or one for each, in pixel units. The points of a pair lie that
        far from the image, in l2 or by the root of the mean square of the pixels; twice as far after each
        round in which less than a quarter of the pairs differed, and half as far, if not nearer than that,
        when more than three quarters did.
    """
    rows = state.rows
    rows = rows[state.zero_gradient[rows]]
    targets = min(targets, state.logits.shape[1] - 1)
    rounds = queries // (2 * pairs + targets)
    if not len(rows) or not targets:
        return
    size = state.images[0].numel()
    for part in rows.split(max(_ENTRIES // (size * max(pairs, targets)), 1)):
        _run(state, part, eps, norm, rounds, targets, pairs)


def _run(
    state: BatchState, rows: Tensor, eps: Radius, norm: Norm, rounds: int, targets: int, pairs: int
) -> None:
    x0, x = state.images[rows], state.best[rows]
    classes = torch.stack([state.target(rank + 1) for rank in range(targets)], 1)[rows]
    size = x0[0].numel()
    jacobian = x0.new_zeros(len(rows), targets, size)
    ones = torch.ones(len(rows), 1, 1, 1).to(x)
    width = (radius_of(eps, rows, x) * ones * (math.sqrt(size) if norm == "linf" else 1)).flatten(2)
    least = width
    for t in range(rounds):
        active = state.active[rows]
        rows, x0, x, classes, jacobian, width, least = (
            a[active] for a in (rows, x0, x, classes, jacobian, width, least)
        )
        if not len(rows):
            return
        radius = radius_of(eps, rows, x)
        moves, changes = [], []
        for v in orthogonal_directions(x, state.seeds_of(rows), t * pairs, pairs).unbind(1):
            step = width[..., None] * v.view_as(x)
            points = [(x + step).clamp(0, 1), (x - step).clamp(0, 1)]
            above, below = (state.query_logits(rows, p, within(p, x0, eps, rows, norm)) for p in points)
            change = (above - below).nan_to_num(0)  # no answer at one of the points
            changes.append(change.gather(1, classes) - change.gather(1, state.labels[rows][:, None]))
            moves.append((points[0] - points[1]).flatten(1))
        changes_seen = torch.stack(changes, 1).to(x)
        share_changed = (changes_seen != 0).any(2).to(x).mean(1).view(-1, 1, 1)
        fitted = broyden_update(jacobian, torch.stack(moves, 1), changes_seen, 0.05 * (2 * width) ** 2)
        jacobian = torch.where(share_changed > 0, fitted, jacobian)
        wider, narrower = (2 * width).clamp_max(math.sqrt(size)), torch.maximum(width / 2, least)
        width = torch.where(share_changed < 0.25, wider, torch.where(share_changed > 0.75, narrower, width))
        largest = torch.full_like(state.margin[rows], -torch.inf)
        for g in jacobian.unbind(1):
            aim = maximise_linear(g.view_as(x0), x0, radius, norm)
            margin = state.query_margins(rows, aim)
            x = torch.where((margin > largest).view(-1, 1, 1, 1), aim, x)
            largest = torch.maximum(margin, largest)
