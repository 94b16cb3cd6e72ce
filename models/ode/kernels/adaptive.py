"""Adaptive path: `dopri5` on a CPU, as one autograd function.

It accepts and resizes steps as torchdiffeq does, so the two agree to rounding unless rounding changes
whether a step is accepted; torchdiffeq is the reference it is tested against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..tanh_field import TanhField
from .fixed_step import NO_SECOND_DERIVATIVE, supports_state, wanted_gradients

METHOD = "dopri5"
"""The one adaptive method with compiled steps."""


def supports_adaptive(state: Tensor, method: str) -> bool:
    """Whether `adaptive_flow` takes `state`: as `fixed_step.supports`, on a CPU, outside a dispatch mode.

    A dispatch mode, such as a counter of operations, would see no operation of a compiled step.
    """
    observed = torch._C._len_torch_dispatch_stack() > 0
    return method == METHOD and state.device.type == "cpu" and supports_state(state) and not observed


def adaptive_flow(
    state: Tensor,
    fields: Sequence[TanhField],
    *,
    duration: float,
    rtol: float,
    atol: float,
    count: Callable[[int], None],
) -> Tensor:
    """The state (n, M) after adaptive steps over `duration` in each of `fields`; same shape.

    Gradients reach the state and every matrix, and as in torchdiffeq they go through the size of each
    layer's first step and through no other; there is no second derivative.

    Parameters
    ----------
    count
        Called with each number of evaluations of a field.

    Raises
    ------
    ArithmeticError
        When the step size underflows or the state is not finite.
    """
    B = torch.stack([field.B for field in fields])
    b = torch.stack([field.b.flatten() for field in fields])
    A = torch.stack([field.dense_A() for field in fields])
    C = torch.stack([field.dense_C() for field in fields])
    settings = {"linear": any(field.C is not None for field in fields), "rtol": rtol, "atol": atol}
    save = torch.is_grad_enabled() and any(t.requires_grad for t in (state, B, b, A, C))
    out: Tensor = _AdaptiveFlow.apply(  # type: ignore[no-untyped-call]
        state, B, b, A, C, settings, duration, count, save
    )
    return out


class _AdaptiveFlow(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        state: Tensor,
        B: Tensor,
        b: Tensor,
        A: Tensor,
        C: Tensor,
        settings: dict[str, Any],
        duration: float,
        count: Callable[[int], None],
        save: bool,
    ) -> Tensor:
        solver, operands = _modules()
        field = operands.Operands((B, b, A, C), **settings)
        before = state.detach().contiguous()
        out, steps = solver.solve_all(
            before.numpy(), field, len(B), duration=duration, count=count, save=save
        )
        if save:
            ctx.settings, ctx.steps = settings, steps
            ctx.save_for_backward(state, B, b, A, C)
        return torch.from_numpy(out)

    @staticmethod
    def backward(ctx: Any, g_out: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(NO_SECOND_DERIVATIVE)
        solver, operands = _modules()
        _, *matrices = ctx.saved_tensors  # the state too, for autograd to see that nothing changed it
        needs_grad = wanted_gradients(ctx)[1:5]
        field = operands.Operands(matrices, **ctx.settings, needs_grad=needs_grad)
        g_in = g_out.clone(memory_format=torch.contiguous_format)
        totals = solver.vjp_all_steps(ctx.steps, g_in.numpy(), field)
        n = len(g_in)
        return g_in, *(torch.from_numpy(total)[..., :n] for total in totals), None, None, None, None


def _modules() -> tuple[Any, Any]:
    """Import numba at the first pass rather than with the package."""
    return tuple(import_module(name, __package__) for name in (".dopri5", ".operands"))  # type: ignore[return-value]
