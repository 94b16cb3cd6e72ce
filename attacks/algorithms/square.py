"""Square Attack, vectorised over the batch (Andriushchenko, Croce, Flammarion, Hein, ECCV 2020).

arXiv 1912.00049. torchattacks 3.5.1 has it, but draws one position per step for the whole batch, so that a
sample's result depends on the other samples of the batch, never puts a square against the right or lower
edge, divides by zero for images of fewer than 5 rows, and reads the height for the width of images that are
not square. Here each sample has its own stream.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..core.batch_state import BatchState
from ..core.norms import Radius, radius_of
from ..core.sampling import draw, uniform_unit
from ..core.seeds import derive
from ..core.types import Norm

BLOCK = 50
"""Steps whose random numbers are drawn at once."""
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def fraction(step: int, p_init: float) -> float:
    """Share p of the pixels that a square changes at `step`: the paper's schedule for 10,000 steps.

    It is not rescaled to the number of queries, as in the official AutoAttack.
    """
    halvings = sum(step > last for last in _HALVINGS)
    return p_init * 0.5**halvings


def square(
    state: BatchState, eps: Radius, norm: Norm, *, queries: int, purpose: str = "", p_init: float = 0.8
) -> None:
    """Random search with squares for the active samples; `queries` forwards each.

    A proposal is taken when its margin is at least as large as the present one. The paper asks for a larger
    one, which comes to a standstill where logits are rounded or saturated; elsewhere equality has
    probability zero.

    Parameters
    ----------
    eps
        Radius of the ball, one for all samples or one for each, in pixel units.
    p_init
        Share of the pixels in the first squares.
    """
    rows = state.rows
    if not len(rows):
        return
    x0 = state.images[rows]
    start = _stripes if norm == "linf" else _tiles
    radius = radius_of(eps, rows, x0)
    x = start(x0, radius, derive(state.seeds_of(rows), "square", purpose, "start"))
    margin = state.query_margins(rows, x)
    rng = _Draws(state, (5 if norm == "l2" else 2) + x0.shape[1], purpose)
    for step in range(queries - 1):
        active = state.active[rows]
        if not bool(active.all()):
            rows, x0, x, margin = rows[active], x0[active], x[active], margin[active]
            if not len(rows):
                return
            radius = radius_of(eps, rows, x0)
        u = rng.of(rows, step)
        side = math.sqrt(fraction(step, p_init) * x0[0, 0].numel())
        propose = _propose_linf if norm == "linf" else _propose_l2
        proposal = propose(x, x0, radius, side, u)
        found = state.query_margins(rows, proposal)
        better = found >= margin
        margin = torch.where(better, found, margin)
        x = torch.where(better.view(-1, 1, 1, 1), proposal, x)


class _Draws:
    """`width` numbers from U(0, 1) for every sample and step, from the sample's own stream."""

    def __init__(self, state: BatchState, width: int, purpose: str) -> None:
        self._state, self._width, self._purpose = state, width, purpose
        self._place = torch.zeros_like(state.labels)

    def of(self, rows: Tensor, step: int) -> Tensor:
        """The numbers of the samples `rows` at `step`, float32 (n, width); steps are asked for in order."""
        if step % BLOCK == 0:
            seeds = derive(self._state.seeds_of(rows), "square", self._purpose, step // BLOCK)
            blank = torch.empty(len(rows), BLOCK, self._width, device=rows.device)
            self._block = draw(blank, seeds, uniform_unit)
            self._place[rows] = torch.arange(len(rows), device=rows.device)
        return self._block[self._place[rows], step % BLOCK]


def _signs(u: Tensor) -> Tensor:
    return torch.where(u < 0.5, -1.0, 1.0)


def _corner(u: Tensor, size: int, s: int) -> Tensor:
    """Where a window of `s` in `size` begins, uniformly, int64 like `u`."""
    return (u * (size - s + 1)).long().clamp_max(size - s)


def _stripes(x0: Tensor, eps: Radius, seeds: list[int]) -> Tensor:
    """Vertical stripes of +-eps, one pixel wide (section 3.3)."""
    n, channels, _, width = x0.shape
    u = draw(torch.empty(n, channels, 1, width, device=x0.device), seeds, uniform_unit)
    return (x0 + eps * _signs(u).to(x0)).clamp(0, 1)


def _propose_linf(x: Tensor, x0: Tensor, eps: Radius, side: float, u: Tensor) -> Tensor:
    """One square per sample set to x0 +- eps, a sign per channel (Algorithm 2)."""
    height, width = x.shape[2:]
    s = min(max(round(side), 1), height, width)
    r, c = _corner(u[:, 0], height, s), _corner(u[:, 1], width, s)
    i, j = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    down = (i >= r[:, None]) & (i < r[:, None] + s)
    across = (j >= c[:, None]) & (j < c[:, None] + s)
    mask = (down[:, :, None] & across[:, None, :])[:, None]
    changed = (x0 + eps * _signs(u[:, 2:]).to(x0)[:, :, None, None]).clamp(0, 1)
    return torch.where(mask, changed, x)


def eta_rectangle(rows: int, columns: int) -> Tensor:
    """Sum of 1 / (k + 1)^2 over k from the distance to the centre on, float64 (rows, columns), unit norm."""
    i = (torch.arange(rows) - rows // 2).abs()
    j = (torch.arange(columns) - columns // 2).abs()
    terms = 1 / torch.arange(1, max(rows, columns) // 2 + 2, dtype=torch.float64).square()
    heights = terms.flip(0).cumsum(0).flip(0)[torch.maximum(i[:, None], j[None, :])]
    normalise_l2: Tensor = heights / torch.linalg.vector_norm(heights)
    return normalise_l2


def eta_pattern(s: int) -> Tensor:
    """eta of section 3.4, (s, s) of unit norm: a hill in the upper half, a pit in the lower."""
    if s == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    pair = torch.cat([eta_rectangle(s // 2, s), -eta_rectangle(s - s // 2, s)])
    normalise_l2: Tensor = pair / torch.linalg.vector_norm(pair)
    return normalise_l2


def _turned(s: int, u: Tensor, like: Tensor) -> Tensor:
    """eta or its transpose, (*u.shape, s, s), by a throw of `u`."""
    eta = eta_pattern(s).to(like)
    return torch.where((u < 0.5)[..., None, None], eta, eta.T)


def _tiles(x0: Tensor, eps: Radius, seeds: list[int]) -> Tensor:
    """A grid of 5 x 5 tiles of eta, with random signs and turns, of length eps (section 3.4)."""
    n, channels, height, width = x0.shape
    s = max(min(height, width) // 5, 1)
    down, across = height // s, width // s
    u = draw(torch.empty(n, channels + 1, down, across, device=x0.device), seeds, uniform_unit)
    tiles = _signs(u[:, 1:])[..., None, None].to(x0) * _turned(s, u[:, :1], x0)
    delta = torch.zeros_like(x0)
    top, left = (height - down * s) // 2, (width - across * s) // 2
    tiled = tiles.transpose(3, 4).reshape(n, channels, down * s, across * s)
    delta[:, :, top : top + down * s, left : left + across * s] = tiled
    return _scaled(x0, delta, eps)


def _length(delta: Tensor, dim: tuple[int, ...]) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(delta, dim=dim, keepdim=True)
    return length


def _scaled(x0: Tensor, delta: Tensor, eps: Radius) -> Tensor:
    """x0 + delta with delta of length `eps`, clipped to the box."""
    return (x0 + eps * delta / _length(delta, (1, 2, 3)).clamp_min(1e-12)).clamp(0, 1)


def _windows(u: Tensor, x: Tensor, s: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Index of two windows of each sample, as delta[index] of shape (n, s, s, C) with channels last."""
    n, _, height, width = x.shape
    sample, along = torch.arange(n, device=x.device)[:, None, None], torch.arange(s, device=x.device)
    for r, c in ((u[:, 0], u[:, 1]), (u[:, 2], u[:, 3])):
        i, j = _corner(r, height, s)[:, None] + along, _corner(c, width, s)[:, None] + along
        yield sample, i[:, :, None], j[:, None, :]


def _propose_l2(x: Tensor, x0: Tensor, eps: Radius, side: float, u: Tensor) -> Tensor:
    """The mass of one window, and what is left of eps, moved into another (Algorithm 3)."""
    channels = x.shape[1]
    s = min(max(round(side), 3) | 1, *x.shape[2:])
    first, second = _windows(u, x, s)
    delta = (x - x0).permute(0, 2, 3, 1).contiguous()
    spare = (eps**2 - _length(delta, (1, 2, 3)).square()).clamp_min(0) / channels
    old = delta[first]
    rest = delta.clone()
    rest[first] = 0
    rest[second] = 0
    mass = (delta.square().sum((1, 2), keepdim=True) - rest.square().sum((1, 2), keepdim=True)).clamp_min(0)
    fresh = _signs(u[:, 5 : 5 + channels]).to(x)[:, None, None, :] * _turned(s, u[:, 4], x)[..., None]
    fresh = fresh + old / _length(old, (1, 2)).clamp_min(1e-12)
    rest[first] = fresh / _length(fresh, (1, 2)).clamp_min(1e-12) * (spare + mass).sqrt()
    return _scaled(x0, rest.permute(0, 3, 1, 2), eps)
