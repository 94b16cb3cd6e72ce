"""Fixed-step path: all steps of a tanh flow on a few columns at a time, in one compiled loop.

A layer whose field is A tanh(B x + b) + C x has the Euler step E x + G tanh(B x + b) with E = I + h C and
G = h A, and contraction-preserving solvers are convex combinations of such steps (Shu, Osher, J. Comput.
Phys. 77, 1988, eq. 2.1): stage i is alpha_i x + (1 - alpha_i) (Euler step of stage i - 1). So one compiled
loop serves every model with a ``tanh_field``: `cpu` has it for a CPU, `gpu` for a GPU. `ODEBlock` uses it
where `supports` is true; torchdiffeq is the reference it is tested against.
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
from ..solver import SHU_OSHER_ALPHAS
from ..tanh_field import TanhField

MAX_STATE_SIZE = 16
"""Largest state dimension n: a GPU's threads hold whole columns, and on a CPU BLAS is faster beyond it."""

NO_SECOND_DERIVATIVE = (
    "the compiled flow has no second derivative: use robustode.use_ode_backend('torchdiffeq')"
)


class Kernels(Protocol):
    """A module with the compiled loops for one kind of device.

    ``state``, ``g_out`` and what `forward` saves are contiguous float32; ``matrices`` are B, b, G, E, stacked
    over the layers: (L, n, n), and b (L, n). E is the identity unless ``linear``.
    """

    def forward(
        self,
        state: Tensor,
        matrices: Sequence[Tensor],
        *,
        linear: bool,
        alphas: Sequence[float],
        steps: int,
        save: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """The state (n, M) after the flow, and with `save` what `backward` needs."""

    def backward(
        self,
        g_out: Tensor,
        saved: Tensor,
        matrices: Sequence[Tensor],
        *,
        linear: bool,
        alphas: Sequence[float],
        steps: int,
        needs_grad: Sequence[bool],
    ) -> tuple[Tensor, Sequence[Tensor | None] | None]:
        """Gradient by the state, and at least those by B, b, G, E with `needs_grad` (E where `linear`)."""


def flow_implementation(device: torch.device) -> str:
    """Which implementation solves flows of tanh fields on `device`: ``numba``, ``triton`` or ``eager``.

    ``eager`` is torchdiffeq: the chosen backend, or the only one for such a device.
    """
    if get_ode_backend() == "torchdiffeq":
        return "eager"
    if device.type == "cpu":
        return "numba"
    return "triton" if device.type == "cuda" and _triton_runs(device) else "eager"


def supports(state: Tensor, method: str) -> bool:
    """Whether `fixed_step_flow` takes `state`: (n, M), float32, n <= 16, reverse-mode gradients only."""
    return method in SHU_OSHER_ALPHAS and supports_state(state)


def supports_state(state: Tensor) -> bool:
    """Whether compiled loops take `state`, for any method; see `supports`."""
    return (
        state.ndim == 2
        and state.dtype == torch.float32
        and state.shape[0] <= MAX_STATE_SIZE
        and flow_implementation(state.device) != "eager"
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
    )


def fixed_step_flow(
    state: Tensor, fields: Sequence[TanhField], *, h: float, steps: int, method: str
) -> Tensor:
    """The state (n, M) after `steps` steps of size `h` of `method` in each of `fields`; same shape.

    Gradients reach the state and every matrix; there is no second derivative.
    """
    B = torch.stack([field.B for field in fields])
    b = torch.stack([field.b.flatten() for field in fields])
    G = h * torch.stack([field.dense_A() for field in fields])
    E = torch.eye(B.shape[-1], dtype=B.dtype, device=B.device).expand_as(B)
    linear = any(field.C is not None for field in fields)
    if linear:
        E = E + h * torch.stack([field.dense_C() for field in fields])
    save = torch.is_grad_enabled() and any(t.requires_grad for t in (state, B, b, G, E))
    settings = {"linear": linear, "alphas": SHU_OSHER_ALPHAS[method], "steps": steps}
    out: Tensor = _FixedStepFlow.apply(state, B, b, G, E, settings, save)  # type: ignore[no-untyped-call]
    return out


class _FixedStepFlow(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        state: Tensor,
        B: Tensor,
        b: Tensor,
        G: Tensor,
        E: Tensor,
        settings: dict[str, Any],
        save: bool,
    ) -> Tensor:
        ctx.settings = settings
        out, saved = _kernels(state.device).forward(state.contiguous(), (B, b, G, E), **settings, save=save)
        if saved is not None:
            ctx.save_for_backward(saved, B, b, G, E)
        return out

    @staticmethod
    def backward(ctx: Any, g_out: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(NO_SECOND_DERIVATIVE)
        saved, *matrices = ctx.saved_tensors
        needs_grad = wanted_gradients(ctx)[1:5]
        g_in, totals = _kernels(g_out.device).backward(
            g_out.contiguous(), saved, matrices, **ctx.settings, needs_grad=needs_grad
        )
        return g_in, *(totals or [None] * 4), None, None


def wanted_gradients(ctx: Any) -> list[bool]:
    """Of each tensor that a function took first, in its backward pass: whether its gradient is asked for.

    Autograd says of an input only whether it requires a gradient. An attack asks for that of the images
    alone, and the gradients of matrices, which are no leaves of the graph, need not be computed.
    """
    will_run = getattr(torch._C, "_will_engine_execute_node", None)
    return [
        needed and (will_run is None or node is None or _is_leaf(node) or will_run(node))
        for needed, (node, _) in zip(ctx.needs_input_grad, ctx.next_functions, strict=False)
    ]


def _is_leaf(node: Any) -> bool:
    return hasattr(node, "variable")


def _kernels(device: torch.device) -> Kernels:
    return _module("cpu" if device.type == "cpu" else "gpu")


@cache
def _module(name: str) -> Kernels:
    """Import numba or triton at the first pass rather than with the package."""
    return cast(Kernels, import_module(f".{name}", __package__))


@cache
def _triton_runs(device: torch.device) -> bool:
    """Whether triton is installed and compiles for this GPU: tested on one small flow and its gradient."""
    try:
        backend = _module("gpu")
    except ImportError:
        return False
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        check_kernels(backend, device)
    except Exception as error:  # no compiler, no ptxas, a kernel this GPU refuses: fall back
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(
            f"torchdiffeq solves the flows on {device}: triton is unusable ({reason})", stacklevel=2
        )
        return False
    return True


def check_kernels(backend: Kernels, device: torch.device) -> None:
    """Solve x' = tanh(0) in one step, forwards and backwards; raises `ArithmeticError` for a wrong result."""
    state = torch.ones(2, 3, device=device)
    matrices = [state.new_zeros(1, 2, 2), state.new_zeros(1, 2), state.new_zeros(1, 2, 2)]
    matrices.append(torch.eye(2, device=device)[None])
    settings: dict[str, Any] = {"linear": False, "alphas": SHU_OSHER_ALPHAS["euler"], "steps": 1}
    out, saved = backend.forward(state, matrices, **settings, save=True)
    assert saved is not None
    gradient, _ = backend.backward(
        torch.ones_like(out), saved, matrices, **settings, needs_grad=[True] * 3 + [False]
    )
    if not (torch.equal(out, state) and torch.equal(gradient, state)):
        raise ArithmeticError("wrong result for x' = 0")
