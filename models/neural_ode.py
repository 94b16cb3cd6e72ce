"""Vanilla neural ODE: x' = tanh(K x + b), solved on a fixed grid or by an adaptive method."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._bounds import TanhForm
from ._ode import ODEBlock, Solver, Steps
from ._stem import ChannelLayer, PixelNetwork
from .registry import register_model

_PAPER = "Chen, Rubanova, Bettencourt, Duvenaud, NeurIPS 2018, arXiv 1806.07366"


class TanhLayer(ChannelLayer):
    """f(x) = tanh(K x + b)."""

    def tanh_form(self) -> TanhForm:
        """A = I, B = K, C = 0."""
        K, identity = self.weights()
        return TanhForm(A=identity, B=K, C=0 * identity)

    def forward(self, state: Tensor) -> Tensor:
        """Derivative at `state`, shape (n, M)."""
        return torch.tanh(torch.addmm(self.b, self.K, state))


@register_model(
    "node-dopri5",
    summary="x' = tanh(K x + b), solved by adaptive Dormand-Prince 5(4)",
    reference=_PAPER,
    hyperparameters={"method": "dopri5"},
    recipe={"weight_decay": 2e-4},
    expected_failures={
        "batch_independent": "the adaptive solver accepts a step by one error norm over the whole batch, "
        "so a sample's logits depend on its batch-mates",
    },
)
@register_model(
    "node",
    summary="x' = tanh(K x + b), solved on a fixed grid",
    reference=_PAPER,
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
    smoothing: float = 1e-3,
) -> nn.Module:
    """Build a vanilla NODE with weights constant over each of `layers` parts of [0, `final_time`]."""
    fields = [TanhLayer(width) for _ in range(layers)]
    solver = Solver(method=method, steps=steps, rtol=rtol, atol=atol)
    flow = ODEBlock(fields, final_time=final_time, solver=solver)
    return PixelNetwork(input_shape, num_classes, flow, width=width, smoothing=smoothing)
