"""Flows on a CPU: the compiled loops of `_kernels` on the columns that each thread takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from . import _kernels
from ._kernels import BLOCK, TILE

_loops: Any = _kernels  # compiled: they have no Python types


def forward(
    state: Tensor,
    matrices: Sequence[Tensor],
    *,
    linear: bool,
    alphas: Sequence[float],
    steps: int,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """See `_fused.Backend`; the flow's input is all that is kept."""
    out = torch.empty_like(state)
    x, y, arrays = state.detach().numpy(), out.numpy(), _arrays(*matrices)
    settings = linear, np.array(alphas, np.float32), steps
    _on_all_threads(lambda low, high: _loops.forward(x, y, *arrays, *settings, low, high), x)
    return out, state if keep else None


def backward(
    g_out: Tensor,
    kept: Tensor,
    matrices: Sequence[Tensor],
    *,
    linear: bool,
    alphas: Sequence[float],
    steps: int,
    wants: bool,
) -> tuple[Tensor, Sequence[Tensor | None] | None]:
    """See `_fused.Backend`."""
    g_in = torch.empty_like(kept)
    x, g, y, arrays = kept.detach().numpy(), g_out.numpy(), g_in.numpy(), _arrays(*matrices)
    B, _, G, E = matrices
    transposed = _arrays(B.mT, G.mT, E.mT)
    settings = linear, np.array(alphas, np.float32), steps

    def part(low: int, high: int) -> list[np.ndarray]:
        sums = [np.zeros(a.shape, np.float32) for a in arrays]
        _loops.backward(x, g, y, *arrays, *transposed, *settings, wants, *sums, low, high)
        return sums

    parts = _on_all_threads(part, x)
    if not wants:
        return g_in, None
    totals = [torch.from_numpy(np.sum(sums, axis=0)) for sums in zip(*parts, strict=True)]
    return g_in, [total[..., : len(kept)] for total in totals]


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    """Arrays of shape (..., n), their rows padded with zeros to whole blocks of the kernels."""
    more = -tensors[0].shape[-1] % BLOCK
    return [F.pad(t.detach(), (0, more)).contiguous().numpy() for t in tensors]


def _on_all_threads(work: Any, x: np.ndarray) -> list[Any]:
    """``work(low, high)`` on as many ranges of columns as torch has threads, cut at whole tiles."""
    tiles = -(-x.shape[1] // TILE)
    threads = max(1, min(torch.get_num_threads(), tiles))
    cuts = [min(x.shape[1], tiles * i // threads * TILE) for i in range(threads + 1)]
    if threads == 1:
        return [work(*cuts)]
    return list(_pool(threads).map(work, cuts[:-1], cuts[1:]))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="robustode-flow")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked child has none of these threads
