"""A model's ODE blocks alone, on the very states that the model feeds them: forward, and with gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...attacks.core.model_call import call_model
from ...models import ODEBlock, ode_blocks
from .clock import without_graph
from .device_peaks import device_rates
from .flop_count import flow_work
from .roofline import Work


@dataclass(frozen=True, kw_only=True)
class FlowCall:
    """One call of an ODE block within the model's forward pass, and the state it was given."""

    flow: ODEBlock
    state: Tensor


@torch.no_grad()
def flow_calls(model: nn.Module, images: Tensor, num_classes: int) -> list[FlowCall]:
    """The calls of ODE blocks while `model` classifies `images`, in order; inner blocks belong to the outer.

    The blocks are watched by hooks that are removed before this returns, and their layers are left alone,
    since a hook there would switch off the compiled path. A block that is called with more than its state,
    or not as a module, is not seen.
    """
    blocks = ode_blocks(model)
    inner = {module for block in blocks for module in block.modules() if module is not block}
    calls: list[FlowCall] = []

    def watch(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*args, *kwargs.values()]
        if len(given) == 1 and isinstance(given[0], Tensor):
            calls.append(FlowCall(flow=block, state=given[0].detach().clone()))

    handles = [
        block.register_forward_pre_hook(watch, with_kwargs=True) for block in blocks if block not in inner
    ]
    try:
        call_model(model, images, num_classes)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def forwards(calls: Sequence[FlowCall]) -> Callable[[], object]:
    """A call that carries each state through its flow once, without a graph."""
    return without_graph(lambda: [call.flow(call.state) for call in calls])


def forwards_and_backwards(calls: Sequence[FlowCall]) -> Callable[[], object]:
    """A call that does the same, then finds gradients to states and to all parameters that require one."""
    asked = []
    for call in calls:
        state = call.state.clone().requires_grad_(True)
        wanted = [state, *(p for p in call.flow.parameters() if p.requires_grad)]
        asked.append((call.flow, state, wanted, torch.ones_like(state)))

    def run() -> None:
        for flow, state, wanted, gradient in asked:
            torch.autograd.grad(flow(state), wanted, gradient, allow_unused=True)

    return run


def floor_measures(
    calls: Sequence[FlowCall], device: torch.device, *, gradient: bool, median: float
) -> dict[str, float]:
    """Measures of a flow's roofline: its work, the device's rates, the least seconds and the efficiency.

    `median` is the measured time in seconds; ``achieved`` is the roofline efficiency, the least over it.
    """
    work = sum((flow_work(call.flow, call.state, gradient=gradient) for call in calls), Work())
    rates = device_rates(device)
    floor = rates.floor(work)
    return {
        "operations": float(work.operations),
        "bytes": float(work.bytes),
        "copy_bandwidth": rates.copy_bandwidth,
        "arithmetic_rate": rates.arithmetic_rate,
        "floor_seconds": floor,
        "achieved": floor / median,
    }
