"""Flows on a GPU: every thread carries whole columns through all steps in its registers.

Matrix products are sums in float32: n is below what tensor cores multiply, and TF32 is too coarse. Sums over
the columns are taken per program and added by torch, so results do not change from call to call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from . import _triton_kernels as kernels

# Unmeasured: chosen from what ptxas makes of the kernels for sm_90, where n = 8 and one column a thread fill
# the registers. A block of 32 columns a warp keeps every channel of a column in one thread, so that products
# of small matrices need no exchange between threads.
WARPS = 4
BLOCK = 32 * WARPS
PROGRAMS = 512
"""Programs that a pass with parameter gradients aims at: each reduces its sums once a layer."""
MOST_CHUNKS = 16
"""Most blocks that one such program takes after each other."""


def forward(
    state: Tensor, matrices: Sequence[Tensor], *, linear: bool, alphas: Sequence[float], steps: int, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """See `_fused.Backend`; the state before each step is kept, (S, n, M)."""
    n, M = state.shape
    tensors = [t.detach().contiguous() for t in matrices]
    layers = len(tensors[0])
    out = torch.empty_like(state)
    starts = state.new_empty(layers * steps, n, M) if keep else None
    if M:
        with torch.cuda.device_of(state):
            kernels.forward[(-(-M // BLOCK),)](
                state, out, out if starts is None else starts, *tensors, M, layers, steps,
                KEEP=keep, **_constants(n, linear, alphas),
            )  # fmt: skip
    return out, starts


def backward(
    g_out: Tensor,
    kept: Tensor,
    matrices: Sequence[Tensor],
    *,
    linear: bool,
    alphas: Sequence[float],
    steps: int,
    wants: bool,
) -> tuple[Tensor, list[Tensor | None] | None]:
    """See `_fused.Backend`; a step's stages are computed again from its start."""
    n, M = g_out.shape
    tensors = [t.detach().contiguous() for t in matrices]
    layers = len(tensors[0])
    g = g_out.clone()
    blocks = -(-M // BLOCK)
    chunks = max(1, min(MOST_CHUNKS, blocks // PROGRAMS)) if wants else 1
    programs = -(-blocks // chunks)
    width = (3 if linear else 2) * n + 1
    sums = g.new_empty(programs if wants else 0, layers, n, width)
    if M:
        with torch.cuda.device_of(g):
            kernels.backward[(programs,)](
                g, kept, sums if wants else g, *tensors, M, layers, steps, chunks,
                WANTS=wants, **_constants(n, linear, alphas),
            )  # fmt: skip
    if not wants:
        return g, None
    total = sums.sum(0)
    dE = total[..., 2 * n + 1 :] if linear else None
    return g, [total[..., :n], total[..., 2 * n], total[..., n : 2 * n], dE]


def _constants(n: int, linear: bool, alphas: Sequence[float]) -> dict[str, Any]:
    """What a kernel is compiled for."""
    return {
        "n": n,
        "N": triton.next_power_of_2(n),
        "LINEAR": linear,
        "STAGES": len(alphas),
        "ALPHA1": alphas[1] if len(alphas) > 1 else 0.0,
        "ALPHA2": alphas[2] if len(alphas) > 2 else 0.0,
        "BLOCK": BLOCK,
        "num_warps": WARPS,
    }
