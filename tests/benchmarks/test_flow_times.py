"""The ODE block alone, on the state that a batch of MNIST images gives it."""

from __future__ import annotations

import pytest
import torch
from robustode.bench.throughput.flop_count import flow_work
from timed import EAGER, EVERY, FIXED_GRID, LOOP, build, eager, loop, state_of
from torch import Tensor

architecture = pytest.mark.parametrize("name", EVERY)
BASELINES = [(name, EAGER) for name in EVERY] + [(name, LOOP) for name in FIXED_GRID]
"""Nobody writes an adaptive solver as a loop by hand."""
against_baselines = pytest.mark.parametrize(("name", "kind"), BASELINES)
PIXELWISE = 8
"""Channels of the flows that see every pixel on its own: the size that the goal speaks of."""


@pytest.mark.benchmark(group="flow forward")
@against_baselines
def test_forward(against, device, scale, name, kind):
    flow, state = of(name, scale.batch, device)
    with torch.no_grad():
        ours = lambda: flow(state)  # noqa: E731
        theirs = eager(ours) if kind == EAGER else lambda: loop(flow)(state)
        same(ours(), theirs())
        against(ours, theirs, what=name, name=kind, batch=scale.batch)


@pytest.mark.benchmark(group="flow forward and backward")
@against_baselines
def test_forward_and_backward(against, device, scale, name, kind):
    flow, state = of(name, scale.batch, device)
    weights = list(flow.parameters())

    def gradients(solve) -> tuple[Tensor, ...]:
        x = state.clone().requires_grad_()
        final = solve(x)
        return torch.autograd.grad(final, [x, *weights], torch.ones_like(final))

    ours = lambda: gradients(flow)  # noqa: E731
    theirs = eager(ours) if kind == EAGER else lambda: gradients(loop(flow))
    for one, other in zip(ours(), theirs(), strict=True):
        same(one, other)
    goal = None
    if kind == EAGER and len(state) == PIXELWISE:
        goal = "ratio >= 3" if device.type == "cpu" else "ratio >= 10"
    against(ours, theirs, what=name, name=kind, batch=scale.batch, goal=goal)


@pytest.mark.benchmark(group="flow forward and backward, against its time floor")
@architecture
def test_floor(against, device, scale, name):
    """By bytes and bandwidth alone, as the goal speaks of it; a page has the floor by operations too."""
    flow, state = of(name, scale.batch, device)
    weights, x = list(flow.parameters()), state.clone().requires_grad_()
    moved = flow_work(flow, state, gradient=True).bytes

    def ours() -> None:
        final = flow(x)
        torch.autograd.grad(final, [x, *weights], torch.ones_like(final))

    source = torch.empty(moved // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    goal = "ratio >= 0.5" if device.type == "cuda" and len(state) == PIXELWISE else None
    name_of = "copying the fewest bytes that must move"
    against(ours, lambda: target.copy_(source), what=name, name=name_of, batch=scale.batch, goal=goal)


def of(name: str, batch: int, device: torch.device):
    model = build(name, device)
    return model.flow, state_of(model, batch, device)


def same(one: Tensor, other: Tensor) -> None:
    """Equal up to rounding at the size of the whole: sums over 78,400 columns in another order."""
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * (1 + float(other.abs().max())))
