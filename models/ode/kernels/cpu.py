"""Fixed-step path on a CPU: calls the compiled loops of `cpu_loops`, columns shared among threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from . import cpu_loops
from .cpu_tiles import BLOCK, TILE

_loops: Any = cpu_loops  # compiled: they have no Python types


def forward(
    state: Tensor,
    matrices: Sequence[Tensor],
    *,
    linear: bool,
    alphas: Sequence[float],
    steps: int,
    save: bool,
) -> tuple[Tensor, Tensor | None]:
    """See `fixed_step.Kernels`; only the flow's input is saved."""
    out = torch.empty_like(state)
    x, y = state.detach().numpy(), out.numpy()
    B, b, G, E = matrices
    operands = padded_array(B), padded_array(b), matrix_operand(G), matrix_operand(E)
    settings = linear, np.array(alphas, np.float32), steps
    run_on_threads(lambda low, high: _loops.forward(x, y, *operands, *settings, low, high), x)
    return out, state if save else None


def backward(
    g_out: Tensor,
    saved: Tensor,
    matrices: Sequence[Tensor],
    *,
    linear: bool,
    alphas: Sequence[float],
    steps: int,
    needs_grad: Sequence[bool],
) -> tuple[Tensor, Sequence[Tensor | None] | None]:
    """See `fixed_step.Kernels`."""
    g_in = torch.empty_like(saved)
    x, g, y = saved.detach().numpy(), g_out.numpy(), g_in.numpy()
    B, b, G, E = matrices
    operands = padded_array(B), padded_array(b), matrix_operand(G), matrix_operand(E)
    transposed = padded_array(B.mT), matrix_operand(G.mT), matrix_operand(E.mT)
    settings = linear, np.array(alphas, np.float32), steps
    needed = needs_grad[0] or needs_grad[1], needs_grad[2], needs_grad[3] and linear

    def part(low: int, high: int) -> list[np.ndarray]:
        sums = [np.zeros(padded_array(matrix).shape, np.float32) for matrix in matrices]
        _loops.backward(x, g, y, *operands, *transposed, *settings, needed, *sums, low, high)
        return sums

    parts = run_on_threads(part, x)
    if not any(needed):
        return g_in, None
    totals = [torch.from_numpy(np.sum(sums, axis=0)) for sums in zip(*parts, strict=True)]
    return g_in, [total[..., : len(saved)] for total in totals]


def padded_array(tensor: Tensor) -> np.ndarray:
    """An array of shape (..., n), its rows padded with zeros to whole blocks of the kernels."""
    array: np.ndarray = tensor.detach().numpy()
    more = -array.shape[-1] % BLOCK
    if more:
        array = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, more)])
    return np.ascontiguousarray(array)


def matrix_operand(matrices: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """The matrices (L, n, n) as an array, the two largest entries of each row, and whether all others are 0.

    G = h I and E = I + h kappa^2 (J - gamma I) have at most two entries per row: their products cost a
    quarter or less. An attack uses the same matrices thousands of times, so results are cached by value.
    """
    return _prepared(matrices.detach().numpy().tobytes(), matrices.shape)


@lru_cache(maxsize=256)
def _prepared(values: bytes, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    matrices = torch.frombuffer(bytearray(values), dtype=torch.float32).view(shape)
    value, index = matrices.abs().topk(min(2, shape[-1]), dim=-1)
    value = matrices.gather(-1, index)
    sparse = int(torch.count_nonzero(matrices)) == int(torch.count_nonzero(value))
    if value.shape[-1] == 1:
        index, value = index.repeat(1, 1, 2), F.pad(value, (0, 1))
    return padded_array(matrices), index.numpy(), value.numpy(), sparse


def run_on_threads(work: Any, x: np.ndarray) -> list[Any]:
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
