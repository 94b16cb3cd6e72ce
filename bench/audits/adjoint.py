"""A copy of a model whose gradient goes through the adjoint equation instead of the solver's steps."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torchdiffeq import odeint_adjoint

from ...models import ODEBlock, SolverFailure
from ...models.ode.solver import Field


class _Adjoint(ODEBlock):
    """Solves forwards as the block does, and the adjoint equation backwards by the same solver."""

    def integrate(self, field: Field, state: Tensor, *, duration: float, steps: int) -> Tensor:
        def derivative(_time: Tensor, x: Tensor) -> Tensor:
            self.nfe += 1
            return field(x)

        solver = self.solver
        how = {} if solver.adaptive else {"options": {"step_size": duration / steps}}
        ends = torch.tensor([0.0, duration], dtype=state.dtype, device=state.device)
        try:
            path: Tensor = odeint_adjoint(
                derivative,
                state,
                ends,
                method=solver.method,
                rtol=solver.rtol,
                atol=solver.atol,
                adjoint_params=(),
                **how,
            )
        except AssertionError as error:
            raise SolverFailure(f"{solver.method} failed: {error}") from None
        return path[-1]


def adjoint_copy(model: nn.Module) -> nn.Module | None:
    """A deep copy of `model` whose ODE blocks have adjoint gradients, to the state alone.

    None for a model without ODE blocks, with one that overrides its solve, or with ssprk3, which torchdiffeq
    lacks.
    """
    blocks = [module for module in model.modules() if isinstance(module, ODEBlock)]
    if not blocks or any(
        type(b).integrate is not ODEBlock.integrate or b.solver.method == "ssprk3" for b in blocks
    ):
        return None
    found = copy.deepcopy(model)
    for block in found.modules():
        if isinstance(block, ODEBlock):
            block.__class__ = type("Adjoint", (_Adjoint, type(block)), {})
    return found
