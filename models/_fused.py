"""The fast path of a flow on a CPU: all its steps on one tile of columns after the other.

A layer whose field is A tanh(B x + b) + C x has the Euler step E x + G tanh(B x + b) with E = I + h C and
G = h A, and the contraction-keeping solvers are convex combinations of such steps (Shu, Osher, J. Comput.
Phys. 77, 1988, eq. 2.1): stage i is alpha_i x + (1 - alpha_i) (Euler step of stage i - 1). So one compiled
loop serves every model that states its matrices. `ODEBlock` takes it when `supported` says so; the
step-by-step path is the reference it is tested against.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ._tanh import TanhField

STAGES = {"euler": (0.0,), "heun2": (0.0, 1 / 2), "ssprk3": (0.0, 3 / 4, 1 / 3)}
"""alpha of each stage, by method."""

SWITCH = "ROBUSTODE_FUSED"
"""Environment variable; ``0`` turns the fast path off."""


def supported(state: Tensor, method: str) -> bool:
    """Whether `fused_flow` can carry `state`: (n, M), float32, on a CPU, for reverse mode alone."""
    return (
        method in STAGES
        and state.ndim == 2
        and state.dtype == torch.float32
        and state.device.type == "cpu"
        and os.environ.get(SWITCH, "1") != "0"
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
    )


def fused_flow(state: Tensor, fields: Sequence[TanhField], *, h: float, steps: int, method: str) -> Tensor:
    """Carry `state` (n, M) by `steps` steps of size `h` of `method` in each of `fields`; same shape.

    Gradients reach the state and every matrix; there is no second derivative.
    """
    B = torch.stack([field.B for field in fields])
    b = torch.stack([field.b.flatten() for field in fields])
    G = h * torch.stack([field.A for field in fields])
    E = torch.eye(B.shape[-1]).expand_as(B)
    linear = any(field.C is not None for field in fields)
    if linear:
        E = E + h * torch.stack([torch.zeros_like(f.A) if f.C is None else f.C for f in fields])
    out: Tensor = _FusedFlow.apply(state, B, b, G, E, linear, steps, method)  # type: ignore[no-untyped-call]
    return out


class _FusedFlow(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        state: Tensor,
        B: Tensor,
        b: Tensor,
        G: Tensor,
        E: Tensor,
        linear: bool,
        steps: int,
        method: str,
    ) -> Tensor:
        kernels = _kernels()
        state = state.contiguous()
        ctx.save_for_backward(state, B, b, G, E)
        ctx.settings = linear, np.array(STAGES[method], np.float32), steps
        out = torch.empty_like(state)
        matrices = _arrays(B, b, G, E)
        x, y = state.numpy(), out.numpy()
        _on_all_threads(lambda low, high: kernels.forward(x, y, *matrices, *ctx.settings, low, high), x)
        return out

    @staticmethod
    def backward(ctx: Any, g_out: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"the compiled flow has no second derivative: set {SWITCH}=0 in the environment"
            )
        kernels = _kernels()
        state, *matrices = ctx.saved_tensors
        wants = any(ctx.needs_input_grad[1:5])
        g_in = torch.empty_like(state)
        x, g, y, arrays = state.numpy(), g_out.contiguous().numpy(), g_in.numpy(), _arrays(*matrices)
        B, _, G, E = matrices
        transposed = _arrays(B.mT, G.mT, E.mT)

        def part(low: int, high: int) -> list[np.ndarray]:
            sums = [np.zeros(a.shape, np.float32) for a in arrays]
            kernels.backward(x, g, y, *arrays, *transposed, *ctx.settings, wants, *sums, low, high)
            return sums

        parts = _on_all_threads(part, x)
        if not wants:
            return g_in, None, None, None, None, None, None, None
        n = len(state)
        sums = [torch.from_numpy(np.sum(each, axis=0)) for each in zip(*parts, strict=True)]
        dB, db, dG, dE = (total[..., :n] for total in sums)
        return g_in, dB, db, dG, dE, None, None, None


@cache
def _kernels() -> Any:
    """The compiled loops: numba is imported at the first pass, not with the package."""
    return import_module("._kernels", __package__)


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    """Arrays of shape (..., n), their rows padded with zeros to whole blocks of the kernels."""
    more = -tensors[0].shape[-1] % _kernels().BLOCK
    return [F.pad(t.detach(), (0, more)).contiguous().numpy() for t in tensors]


def _on_all_threads(work: Any, x: np.ndarray) -> list[Any]:
    """``work(low, high)`` on as many ranges of columns as torch has threads, cut at whole tiles."""
    TILE = _kernels().TILE
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
