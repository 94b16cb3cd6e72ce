"""ResNet: x_{j+1} = x_j + h tanh(K_j^T x_j + b_j), one forward-Euler step per layer."""

from __future__ import annotations

from torch import nn

from .ode.block import ODEBlock
from .ode.solver import Solver
from .ode.tanh_field import TanhField
from .pixel_network import ChannelLayer, PixelNetwork
from .registry import register_model


class ResNetLayer(ChannelLayer):
    """f(x) = tanh(K^T x + b)."""

    def tanh_field(self) -> TanhField:
        """B = K^T."""
        return TanhField(B=self.K.T, b=self.b)


@register_model(
    "resnet",
    summary="x' = tanh(K^T x + b), one forward-Euler step per layer",
    reference="He, Zhang, Ren, Sun, CVPR 2016; Haber, Ruthotto, Inverse Problems 34, 2017, arXiv 1705.03341",
    recipe={"weight_decay": 2e-4},
    claims=frozenset({"fixed_step"}),
    expected_failures={"solver-sensitivity": "a discrete network: its layers are the steps of its solver"},
)
def build(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    width: int = 8,
    layers: int = 4,
    final_time: float = 2.0,
    gain: float = 1.0,
    offset: float = 0.0,
    smoothing: float = 1e-3,
) -> nn.Module:
    """Build a ResNet of `layers` residual blocks; hyperparameters as in `h_node.build`."""
    blocks = [ResNetLayer(width, gain=gain, offset=offset) for _ in range(layers)]
    flow = ODEBlock(blocks, final_time=final_time, solver=Solver(method="euler", steps=layers))
    return PixelNetwork(input_shape, num_classes, flow, width=width, smoothing=smoothing)
