"""A model whose ODEs are solved by another solver: the same weights, the same module, another solve.

An attack crafted on one and scored on the model itself shows whether the solver masks gradients
(Huang, Yu, Zhang, Ma, Yao, PMLR 145, 2021) or is part of the model (Ott, Katiyar, Hennig, Tiemann, ICLR 2021,
arXiv 2007.15386).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ...models import ODEBlock
from .observe import eager, observe, solvers_changed
from .ode_block import changed_solver
from .solver_call import SolverCall, SolverChange

SURROGATE_GRIDS = tuple((method, steps) for method in ("euler", "rk4") for steps in (16, 64))
"""Method and steps over the whole time of each surrogate."""


class ChangedModel(nn.Module):
    """`model` itself, each forward pass of which is solved as `change` says.

    Weights, buffers and mode are those of `model`, which is not copied.
    """

    def __init__(self, model: nn.Module, change: SolverChange) -> None:
        super().__init__()
        self.model = model
        self.change = change
        self.training = model.training

    def forward(self, images: Tensor) -> Any:
        """What `model` answers to `images`, solved otherwise."""
        with eager(self.model), solvers_changed(self.change):
            return self.model(images)


@contextmanager
def solved_as_forward(model: nn.Module) -> Iterator[None]:
    """Keep the change of a `ChangedModel` for a ``with`` block; of another model, nothing.

    Take gradients within it: a backward pass may solve again (``torch.utils.checkpoint``).
    """
    if isinstance(model, ChangedModel):
        with eager(model.model), solvers_changed(model.change):
            yield
    else:
        yield


def solver_surrogates(model: nn.Module, images: Tensor) -> dict[str, ChangedModel]:
    """`model` solved by 16 and 64 steps of ``euler`` and ``rk4``, by name: ``euler-16`` and so on.

    Surrogates with the solver of the model itself, or of an earlier surrogate, are left out. Empty for a
    model of which no solve is seen on `images` (N, C, H, W).
    """
    calls = observe(model, images)
    seen = [[_grid(call) for call in calls]]
    found: dict[str, ChangedModel] = {}
    for method, steps in SURROGATE_GRIDS:
        change = SolverChange(method=method, steps=steps)
        grids = [_grid(call, change) for call in calls]
        if grids not in seen:
            seen.append(grids)
            found[f"{method}-{steps}"] = ChangedModel(model, change)
    return found


def _grid(call: SolverCall, change: SolverChange | None = None) -> tuple[str, int | None]:
    """What solves `call` after `change`: the method and, on a fixed grid, its steps."""
    if change is None:
        return call.method, call.steps
    if not isinstance(call.block, ODEBlock):
        return str(change.method), change.steps
    solver = changed_solver(call.block, change)
    return solver.method, int(solver.steps)
