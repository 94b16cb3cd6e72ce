"""Vanilla neural ODE: x' = tanh(K x + b), solved on a fixed grid or by an adaptive method."""

from __future__ import annotations

from torch import nn

from .ode.block import ODEBlock
from .ode.solver import Solver, Steps
from .ode.tanh_field import TanhField
from .pixel_network import ChannelLayer, PixelNetwork
from .registry import register_model

PAPER = "Chen, Rubanova, Bettencourt, Duvenaud, NeurIPS 2018, arXiv 1806.07366"


class TanhLayer(ChannelLayer):
    """f(x) = tanh(K x + b)."""

    def tanh_field(self) -> TanhField:
        """B = K."""
        return TanhField(B=self.K, b=self.b)


@register_model(
    "node",
    summary="x' = tanh(K x + b), solved on a fixed grid",
    reference=PAPER,
    recipe={"weight_decay": 2e-4},
    claims=frozenset({"fixed_step"}),
)
def build(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    width: int = 8,
    layers: int = 4,
    final_time: float = 2.0,
    method: str = "heun2",
    steps: Steps = 8,
    rtol: float = 1e-3,
    atol: float = 1e-3,
    gain: float = 1.0,
    offset: float = 0.0,
    smoothing: float = 1e-3,
) -> nn.Module:
    """Build a vanilla NODE with weights constant over each of `layers` parts of [0, `final_time`].

    Hyperparameters as in `h_node.build`; `rtol` and `atol` are those of an adaptive method.
    """
    fields = [TanhLayer(width, gain=gain, offset=offset) for _ in range(layers)]
    solver = Solver(method=method, steps=steps, rtol=rtol, atol=atol)
    flow = ODEBlock(fields, final_time=final_time, solver=solver)
    return PixelNetwork(input_shape, num_classes, flow, width=width, smoothing=smoothing)
