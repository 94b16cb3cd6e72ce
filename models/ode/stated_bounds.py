"""Constants that a flow states by hand, against what its field and its map do to real states."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..._errors import ContractBroken
from .block import ODEBlock, ode_blocks
from .lipschitz import NoCertificate
from .spread import evenly_spread
from .statement import stated_constants, stated_solver_bound

TOLERANCE = 1e-4
"""Relative; float32 rounds differences of nearby states."""
STATES = 512
"""States that are compared, spread over all of them."""
OFFSETS = (1e-2, 1.0, 10.0)
"""Sizes of random differences, in units of the states' root mean square."""


@torch.no_grad()
def check_stated_bounds(model: nn.Module, ask: Callable[[], object], *, of: str) -> None:
    """Compare the constants that each ODE block states by hand with pairs of states.

    These are ``bounds()["rho"]`` and an overridden ``solver_bound()``. With a rate rho every field satisfies
    <f(x) - f(y), x - y> <= -rho |x - y|^2, and with a bound L of the solver's map every pair satisfies
    |x(T) - y(T)| <= L |x(0) - y(0)|. Pairs are states that real images reach at the start of the flow, with
    each other and with random neighbours.

    Parameters
    ----------
    model
        In eval mode.
    ask
        One forward pass of `model`.
    of
        What the images are, for the error message.

    Raises
    ------
    ContractBroken
        When a pair contradicts a constant.
    """
    for block in ode_blocks(model):
        rho = stated_constants(block).get("rho", math.nan)
        bound = _solver_bound(block)
        if not (math.isfinite(rho) or math.isfinite(bound)):
            continue
        for x, y in _pairs(_inputs(block, ask)):
            moved = x - y
            length = moved.norm(dim=0)
            for field in block.fields() if math.isfinite(rho) else ():
                change = field(x) - field(y)
                excess = (change * moved).sum(0) + rho * length**2
                if bool((excess > TOLERANCE * (change.norm(dim=0) * length + abs(rho) * length**2)).any()):
                    rate = float(((change * moved).sum(0) / length.square().clamp_min(1e-30)).max())
                    raise ContractBroken(
                        f"the flow states a contraction rate of {rho:.3g}, but two states of {of} move "
                        f"{'apart' if rate > 0 else 'together only'} at a rate of {abs(rate):.3g}: "
                        "bounds() speaks of another field"
                    )
            if math.isfinite(bound):
                stretch = float(((block(x) - block(y)).norm(dim=0) / length.clamp_min(1e-30)).max())
                if stretch > bound * (1 + TOLERANCE):
                    raise ContractBroken(
                        f"the flow states a Lipschitz bound of {bound:.3g}, but moves two states of {of} "
                        f"apart by a factor of {stretch:.3g}: solver_bound() speaks of another flow"
                    )


def _solver_bound(block: ODEBlock) -> float:
    """A bound that a subclass states by hand; NaN where it follows from the matrices, or none is known."""
    if getattr(block.solver_bound, "__func__", None) is ODEBlock.solver_bound:
        return math.nan
    try:
        return stated_solver_bound(block)
    except NoCertificate:
        return math.nan


def _inputs(block: ODEBlock, ask: Callable[[], object]) -> Tensor | None:
    seen: list[Tensor] = []
    handle = block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    nfe = block.nfe
    try:
        ask()
    finally:
        handle.remove()
        block.nfe = nfe
    return seen[0] if seen else None


def _pairs(states: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """Pairs of states (n, M) that differ in every column."""
    if states is None or states.ndim != 2 or not states.numel():
        return []
    x = torch.unique(states, dim=1)
    x = x[:, evenly_spread(x.shape[1], STATES)]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=generator).to(x) * x.square().mean().sqrt().clamp_min(1e-6)
    others = [x + size * noise for size in OFFSETS]
    return [(x, y) for y in others] + ([(x, x.roll(1, 1))] if x.shape[1] > 1 else [])
