"""Fixed-step path on a GPU: calls the triton kernels of `gpu_loops`; a thread holds whole columns.

Matrix products are sums in float32: n is below what tensor cores multiply, and TF32 is too coarse. Sums over
the columns are taken per program and added by torch, so results do not change from call to call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from . import gpu_loops as kernels

# Unmeasured on any GPU: chosen from the registers that ptxas gives the kernels for sm_90. A block of 32
# columns a warp leaves every channel of a column to one thread, so that products of small matrices need no
# exchange; for n = 8 matrices and states then take up to 255 registers, eight warps a multiprocessor. Two
# warps a program let batches of a few thousand columns reach all multiprocessors. `backward` spills a little
# for n = 8 where it sums parameters' gradients, and much for n = 16.
WARPS = 2
BLOCK = 32 * WARPS
PROGRAMS = 1024
"""Target number of programs for parameter gradients: each reduces its sums once per layer."""
MAX_CHUNKS = 16
"""Largest number of blocks that one such program takes in sequence."""
MAX_SINGLE_PASS_STATE = 4
"""Largest n whose three sums are accumulated in one pass; beyond, a second pass for dE spills far less."""


def forward(
    state: Tensor,
    matrices: Sequence[Tensor],
    *,
    linear: bool,
    alphas: Sequence[float],
    steps: int,
    save: bool,
) -> tuple[Tensor, Tensor | None]:
    """See `fixed_step.Kernels`; the state before each step is saved, (S, n, M)."""
    n, M = state.shape
    tensors = [t.detach().contiguous() for t in matrices]
    layers = len(tensors[0])
    out = torch.empty_like(state)
    starts = state.new_empty(layers * steps, n, M) if save else None
    if M:
        with torch.cuda.device_of(state):
            kernels.forward[(-(-M // BLOCK),)](
                state, out, out if starts is None else starts, *tensors, M, layers, steps,
                SAVE=save, **_constants(n, linear, alphas),
            )  # fmt: skip
    return out, starts


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
    """See `fixed_step.Kernels`; a step's stages are computed again from its start."""
    n, M = g_out.shape
    tensors = [t.detach().contiguous() for t in matrices]
    layers = len(tensors[0])
    blocks = -(-M // BLOCK)
    sums_needed = any(needs_grad)
    chunks = max(1, min(MAX_CHUNKS, blocks // PROGRAMS)) if sums_needed else 1
    programs = -(-blocks // chunks)
    width = (3 if linear else 2) * n + 1
    sums = g_out.new_empty(programs if sums_needed else 0, layers, n, width)
    for part in _parts(n, linear) if sums_needed else (0,):
        g = g_out.clone()
        if M:
            with torch.cuda.device_of(g):
                kernels.backward[(programs,)](
                    g, saved, sums if part else g, *tensors, M, layers, steps, chunks,
                    SUMS=part, **_constants(n, linear, alphas),
                )  # fmt: skip
    if not sums_needed:
        return g, None
    total = sums.sum(0)
    dE = total[..., 2 * n + 1 :] if linear else None
    return g, [total[..., :n], total[..., 2 * n], total[..., n : 2 * n], dE]


def _parts(n: int, linear: bool) -> tuple[int, ...]:
    """What each pass sums, as ``SUMS`` of the kernel."""
    if not linear:
        return (1 + 2,)
    return (1 + 2 + 4,) if n <= MAX_SINGLE_PASS_STATE else (1 + 2, 4)


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
        "num_stages": 1,  # no loop's loads may run only_h0_gradient of the stores before them
    }
