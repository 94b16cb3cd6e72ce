"""The fast path of a flow: all its steps on a few columns at a time, in one compiled loop.

A layer whose field is A tanh(B x + b) + C x has the Euler step E x + G tanh(B x + b) with E = I + h C and
G = h A, and the contraction-keeping solvers are convex combinations of such steps (Shu, Osher, J. Comput.
Phys. 77, 1988, eq. 2.1): stage i is alpha_i x + (1 - alpha_i) (Euler step of stage i - 1). So one compiled
loop serves every model that states its matrices: `cpu` has it for a CPU, `gpu` for a GPU. `ODEBlock`
takes it when `supported` says so; the step-by-step path is the reference it is tested against.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ..backend import get_ode_backend
from ..tanh_field import TanhField

STAGES = {"euler": (0.0,), "heun2": (0.0, 1 / 2), "ssprk3": (0.0, 3 / 4, 1 / 3)}
"""alpha of each stage, by method."""

MAX_STATE_SIZE = 16
"""Largest state dimension n: a GPU's threads hold whole columns, and on a CPU BLAS is faster beyond it."""

NO_SECOND_DERIVATIVE = (
    "the compiled flow has no second derivative: use robustode.use_ode_backend('torchdiffeq')"
)


class Backend(Protocol):
    """A module that carries flows on one kind of device.

    ``state``, ``g_out`` and what is kept are contiguous float32; ``matrices`` are B, b, G, E, stacked over
    the layers: (L, n, n), and b (L, n). E is the identity unless ``linear``.
    """

    def forward(
        self,
        state: Tensor,
        matrices: Sequence[Tensor],
        *,
        linear: bool,
        alphas: Sequence[float],
        steps: int,
        keep: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """The state (n, M) carried through the flow, and with `keep` what `backward` needs."""

    def backward(
        self,
        g_out: Tensor,
        kept: Tensor,
        matrices: Sequence[Tensor],
        *,
        linear: bool,
        alphas: Sequence[float],
        steps: int,
        wants: Sequence[bool],
    ) -> tuple[Tensor, Sequence[Tensor | None] | None]:
        """Gradient by the state, and at least those by B, b, G, E that `wants` names (E where `linear`)."""


def flow_implementation(device: torch.device) -> str:
    """Which implementation solves flows of tanh fields on `device`: ``numba``, ``triton`` or ``eager``.

    ``eager`` is torchdiffeq: the chosen backend, or the only one for such a device.
    """
    if get_ode_backend() == "torchdiffeq":
        return "eager"
    if device.type == "cpu":
        return "numba"
    return "triton" if device.type == "cuda" and _triton_runs(device) else "eager"


def supported(state: Tensor, method: str) -> bool:
    """Whether `fused_flow` can carry `state`: (n, M), float32, for reverse mode alone; n at most 16."""
    return method in STAGES and suits(state)


def suits(state: Tensor) -> bool:
    """Whether a compiled loop takes `state`, whatever the method; see `supported`."""
    return (
        state.ndim == 2
        and state.dtype == torch.float32
        and state.shape[0] <= MAX_STATE_SIZE
        and flow_implementation(state.device) != "eager"
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
    E = torch.eye(B.shape[-1], dtype=B.dtype, device=B.device).expand_as(B)
    linear = any(field.C is not None for field in fields)
    if linear:
        E = E + h * torch.stack([torch.zeros_like(f.A) if f.C is None else f.C for f in fields])
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (state, B, b, G, E))
    settings = {"linear": linear, "alphas": STAGES[method], "steps": steps}
    out: Tensor = _FusedFlow.apply(state, B, b, G, E, settings, keep)  # type: ignore[no-untyped-call]
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
        settings: dict[str, Any],
        keep: bool,
    ) -> Tensor:
        ctx.settings = settings
        out, kept = _backend(state.device).forward(state.contiguous(), (B, b, G, E), **settings, keep=keep)
        if kept is not None:
            ctx.save_for_backward(kept, B, b, G, E)
        return out

    @staticmethod
    def backward(ctx: Any, g_out: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(NO_SECOND_DERIVATIVE)
        kept, *matrices = ctx.saved_tensors
        wants = ctx.needs_input_grad[1:5]
        backend = _backend(g_out.device)
        g_in, totals = backend.backward(g_out.contiguous(), kept, matrices, **ctx.settings, wants=wants)
        return g_in, *(totals or [None] * 4), None, None


def _backend(device: torch.device) -> Backend:
    return _module("cpu" if device.type == "cpu" else "gpu")


@cache
def _module(name: str) -> Backend:
    """numba and triton are imported at the first pass, not with the package."""
    return cast(Backend, import_module(f".{name}", __package__))


@cache
def _triton_runs(device: torch.device) -> bool:
    """Whether triton is installed and compiles for this GPU: tried on one small flow, there and back."""
    try:
        backend = _module("gpu")
    except ImportError:
        return False
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        try_out(backend, device)
    except Exception as error:  # no compiler, no ptxas, a kernel this GPU refuses: whatever it is, go on
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(f"flows go step by step on {device}: triton cannot carry them ({reason})", stacklevel=2)
        return False
    return True


def try_out(backend: Backend, device: torch.device) -> None:
    """Carry a small flow forwards and backwards, x' = tanh(0) in one step; raises what `backend` raises."""
    state = torch.ones(2, 3, device=device)
    matrices = [state.new_zeros(1, 2, 2), state.new_zeros(1, 2), state.new_zeros(1, 2, 2)]
    matrices.append(torch.eye(2, device=device)[None])
    settings: dict[str, Any] = {"linear": False, "alphas": STAGES["euler"], "steps": 1}
    out, kept = backend.forward(state, matrices, **settings, keep=True)
    assert kept is not None
    gradient, _ = backend.backward(
        torch.ones_like(out), kept, matrices, **settings, wants=[True] * 3 + [False]
    )
    if not (torch.equal(out, state) and torch.equal(gradient, state)):
        raise ArithmeticError("a flow that stands still does not")
