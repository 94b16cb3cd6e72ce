"""Surrogates of a model: the same weights, solved by another ODE solver.

An attack crafted on a surrogate and scored on the model itself shows whether the solver masks gradients
(Huang, Yu, Zhang, Ma, Yao, PMLR 145, 2021) or is part of the model (Ott, Katiyar, Hennig, Tiemann, ICLR 2021,
arXiv 2007.15386).
"""

from __future__ import annotations

import copy
import dataclasses

from torch import nn

from ..._errors import InvalidArgument
from .block import ODEBlock
from .solver import Solver

SURROGATE_GRIDS = tuple((method, steps) for method in ("euler", "rk4") for steps in (16, 64))
"""Method and steps over the whole of [0, T] of each surrogate."""


def with_solver(
    model: nn.Module,
    *,
    method: str,
    steps: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> nn.Module:
    """Return a deep copy of `model` with another solver in every ODE block; `model` itself is unchanged.

    Parameters
    ----------
    method
        As in `Solver`.
    steps
        Over the whole of [0, T] on a fixed grid, rounded up to a multiple of a block's layers; None for a
        block's own number.
    rtol, atol
        Tolerances of an adaptive method; None for a block's own.

    Raises
    ------
    InvalidArgument
        When `model` has no ODE block, or the solver is unknown.
    """
    blocks = _blocks(model)
    if not blocks:
        raise InvalidArgument("the model has no ODE block: there is no solver to replace")
    solvers = [_solver(block, method, steps, rtol, atol) for block in blocks]
    surrogate = copy.deepcopy(model)
    for block, solver in zip(_blocks(surrogate), solvers, strict=True):
        block.solver = solver
    return surrogate


def solver_surrogates(model: nn.Module) -> dict[str, nn.Module]:
    """Return `model` solved by 16 and 64 steps of ``euler`` and ``rk4``, by name: ``euler-16`` and so on.

    Surrogates with the solver of the model itself, or of an earlier surrogate, are left out. Empty for a
    model without an ODE block.
    """
    blocks = _blocks(model)
    seen = [[_grid(block, block.solver) for block in blocks]]
    found: dict[str, nn.Module] = {}
    for method, steps in SURROGATE_GRIDS:
        grids = [_grid(block, _solver(block, method, steps, None, None)) for block in blocks]
        if grids not in seen:
            seen.append(grids)
            found[f"{method}-{steps}"] = with_solver(model, method=method, steps=steps)
    return found


def _blocks(model: nn.Module) -> list[ODEBlock]:
    return [module for module in model.modules() if isinstance(module, ODEBlock)]


def _solver(
    block: ODEBlock, method: str, steps: int | None, rtol: float | None, atol: float | None
) -> Solver:
    layers, own = len(block.layers), block.solver
    if steps is None:
        steps = layers * block.steps_per_layer() if own.steps == "contractive" else own.steps
    return dataclasses.replace(
        own,
        method=method,
        steps=-(-steps // layers) * layers,
        rtol=own.rtol if rtol is None else rtol,
        atol=own.atol if atol is None else atol,
    )


def _grid(block: ODEBlock, solver: Solver) -> tuple[str, int | None]:
    """What solves `block`: the method and, on a fixed grid, its steps."""
    if solver.adaptive:
        return solver.method, None
    steps = solver.steps
    return solver.method, block.steps_per_layer() * len(block.layers) if isinstance(steps, str) else steps
