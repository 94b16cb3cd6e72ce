"""Surrogates of a model: the same weights, their flow solved on another grid.

An attack crafted through one and scored on the model itself tells whether it was the solver that hid the
gradient (Huang, Yu, Zhang, Ma, Yao, PMLR 145, 2021), or that the solver is part of the model (Ott,
Katiyar, Hennig, Tiemann, ICLR 2021, arXiv 2007.15386).
"""

from __future__ import annotations

import copy
import dataclasses

from torch import nn

from ..._errors import InvalidArgument
from .block import ODEBlock
from .solver import Solver

SURROGATE_GRIDS = tuple((method, steps) for method in ("euler", "rk4") for steps in (16, 64))
"""Methods and steps over the whole of [0, T] of the surrogates."""


def with_solver(
    model: nn.Module,
    *,
    method: str,
    steps: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> nn.Module:
    """A deep copy of `model` whose every ODE block is solved by another solver; `model` stays as it is.

    Parameters
    ----------
    method
        As in `Solver`.
    steps
        Over the whole of [0, T] on a fixed grid, raised to the next multiple of a block's layers; a block's
        own number unless given.
    rtol, atol
        Tolerances of an adaptive method; a block's own unless given.

    Raises
    ------
    InvalidArgument
        When `model` has no ODE block, or there is no such solver.
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
    """`model` on grids of 16 and 64 steps of ``euler`` and of ``rk4``, by name: ``euler-16`` and so on.

    A surrogate that solves as the model itself does is left out, and one that solves as an earlier one
    does. Empty for a model without an ODE block.
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
