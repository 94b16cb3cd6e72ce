"""Auto-PGD, vectorised over the batch (Croce, Hein, ICML 2020, arXiv 2003.01690, Algorithm 1).

torchattacks 3.5.1 has an APGD, but it reseeds the global generators and draws one start for all its
restarts, adds 1e-12 to the length of a gradient (which stops L2 steps where gradients are small), compares
the first loss of a run with zero, uses the first sample's step size for the whole batch in targeted L2 runs,
goes on with samples that are broken, and asks for a gradient more than it uses. In L2 it projects onto the
ball and clips to the box then, as the authors' own does, which leaves part of the budget unused wherever the
box is met; here `project` finds the nearest point of both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..core.batch_state import BatchState
from ..core.losses import nonzero_gradient
from ..core.norms import Radius, project, radius_of
from ..core.sampling import draw, normal, uniform_unit
from ..core.seeds import derive
from ..core.types import Loss, Norm


def checkpoints(steps: int) -> Iterator[int]:
    """Steps w_j after which step sizes are reviewed (equation 2): 22, 41, 57, 70, 80, 87, 93, 99% of them."""
    p, gap = 22, 22
    while p < 100:
        yield -(-p * steps // 100)
        gap = max(gap - 3, 6)
        p += gap


def direction(g: Tensor, norm: Norm) -> Tensor:
    """The steepest step of length 1 along `g` (n, C, H, W); zero where `g` is exactly zero.

    A gradient is divided by its largest entry first: the squares of one below 1e-19 vanish in float32.
    """
    if norm == "linf":
        return g.sign()
    tiny = torch.finfo(g.dtype).tiny
    g = g / g.abs().amax((1, 2, 3), keepdim=True).clamp_min(tiny)
    normalise_l2: Tensor = g / torch.linalg.vector_norm(g, dim=(1, 2, 3), keepdim=True).clamp_min(tiny)
    return normalise_l2


def random_start(x0: Tensor, seeds: list[int], eps: Radius, norm: Norm) -> Tensor:
    """A random point on the sphere of radius `eps` around each of `x0`, clipped to the box."""
    if norm == "linf":
        t = 2 * draw(x0, seeds, uniform_unit) - 1
        t = t / t.abs().amax((1, 2, 3), keepdim=True)
    else:
        t = direction(draw(x0, seeds, normal), norm)
    return project(x0 + eps * t, x0, eps, norm)


@dataclass
class _Run:
    """The state of Algorithm 1 for n samples, by its symbols; every entry has n rows."""

    rows: Tensor
    x0: Tensor
    x: Tensor
    x_old: Tensor
    f: Tensor
    g: Tensor
    x_max: Tensor
    f_max: Tensor
    g_max: Tensor
    eta: Tensor
    rises: Tensor
    halved: Tensor
    f_check: Tensor

    def keep(self, mask: Tensor) -> None:
        """Forget the samples outside `mask`, bool (n,)."""
        if not bool(mask.all()):
            for field in fields(self):
                setattr(self, field.name, getattr(self, field.name)[mask])


def apgd(
    state: BatchState,
    loss: Loss,
    eps: Radius,
    norm: Norm,
    *,
    steps: int,
    purpose: str,
    straight: bool = False,
    first: float = 2.0,
    alpha: float = 0.75,
    rho: float = 0.75,
) -> None:
    """Maximise `loss` for the active samples from random starts.

    `steps` + 1 forwards and `steps` backwards for each.

    A run that starts where the gradient is exactly zero would never move. It draws another start in place of
    each step until it has one; where no gradient has been seen at all, it ends at once.

    Parameters
    ----------
    eps
        Radius of the ball, one for all samples or one for each, in pixel units.
    steps
        N_iter; the random start is one query more.
    purpose
        Tells the random starts of one run from those of another.
    straight
        Step along the gradient in L-infinity too, not along its sign: that follows a ridge, where the sign
        jumps from one side to the other.
    first
        Length of the first step, in radii. The paper's 2 leads to where the slope at the start points, at the
        far side of the ball; a short one stays in the basin that the run starts in.
    alpha, rho
        Weight of a step against momentum, and the share of steps that must raise the loss.
    """
    rows = state.rows
    if not len(rows):
        return
    x0 = state.images[rows]
    radius = radius_of(eps, rows, x0)
    x = random_start(x0, derive(state.seeds_of(rows), "apgd", purpose), radius, norm)
    f, g = state.query_gradient(rows, x, loss)
    eta = torch.ones_like(f, dtype=x.dtype).view(-1, 1, 1, 1) * first * radius
    nothing = torch.zeros_like(rows)
    run = _Run(rows, x0, x, x, f, g, x, f, g, eta, nothing, nothing == 0, f)
    run.keep(nonzero_gradient(g) | ~state.zero_gradient[rows])
    reviews, last = set(checkpoints(steps)), 0
    for k in range(1, steps + 1):
        run.keep(state.active[run.rows])
        if not len(run.rows):
            return
        a = alpha if k > 1 else 1.0
        radius = radius_of(eps, run.rows, run.x0)
        step = direction(run.g, "l2") * x0[0].numel() ** 0.5 if straight else direction(run.g, norm)
        z = project(run.x + run.eta * step, run.x0, radius, norm)
        x = project(run.x + a * (z - run.x) + (1 - a) * (run.x - run.x_old), run.x0, radius, norm)
        no_gradient = ~nonzero_gradient(run.g_max)
        if bool(no_gradient.any()):
            seeds = derive(state.seeds_of(run.rows[no_gradient]), "apgd", purpose, "start", k)
            radius = radius_of(eps, run.rows[no_gradient], run.x0)
            x[no_gradient] = random_start(run.x0[no_gradient], seeds, radius, norm)
        if k == steps:
            state.query_margins(run.rows, x)
            return
        f, g = state.query_gradient(run.rows, x, loss)
        run.rises += f > run.f
        run.x_old, run.x, run.f, run.g = torch.where(no_gradient.view(-1, 1, 1, 1), x, run.x), x, f, g
        better = (f > run.f_max) | no_gradient
        image = better.view(-1, 1, 1, 1)
        run.x_max, run.g_max = torch.where(image, x, run.x_max), torch.where(image, g, run.g_max)
        run.f_max = torch.where(better, f, run.f_max)
        if k in reviews:
            _review(run, rho * (k - last))
            last = k


def _review(run: _Run, enough: float) -> None:
    """Halve the steps of the samples that conditions 1 or 2 hold for, and put these back to x_max."""
    halve = (run.rises < enough) | (~run.halved & (run.f_max <= run.f_check))
    image = halve.view(-1, 1, 1, 1)
    run.eta = torch.where(image, run.eta / 2, run.eta)
    run.x, run.g = torch.where(image, run.x_max, run.x), torch.where(image, run.g_max, run.g)
    run.f = torch.where(halve, run.f_max, run.f)
    run.rises, run.halved, run.f_check = torch.zeros_like(run.rises), halve, run.f_max
