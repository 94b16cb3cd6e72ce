"""CH-NODE as published: gamma set from K after every optimiser step, forward Euler with h = 0.5.

The field is that of `ch_node`, and its exact flow contracts. The network itself does not: with kappa = 0.02
gamma is in the hundreds, and h times the stiffest rate of the field is in the thousands, far outside the
stability region of forward Euler. The model is unchanged from the publication, so that it can be measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .ch_node import ContractiveLayer, contraction_rate
from .ode.block import ODEBlock
from .ode.solver import Solver
from .pixel_network import PixelNetwork
from .registry import register_model

EPSILON = 1e-6
"""Keeps the root in gamma away from 0; gamma is NaN where 1 - a^2 is smaller than this."""


class ScheduledFlow(ODEBlock):
    """The flow of contractive layers under a gamma that training sets; 0 until the first step.

    Attributes
    ----------
    gamma
        Buffer, a scalar: part of the weights, and no gradient flows through it.
    """

    gamma: Tensor

    def __init__(
        self, layers: Sequence[ContractiveLayer], *, kappa: float, final_time: float, solver: Solver
    ) -> None:
        super().__init__(layers, final_time=final_time, solver=solver)
        self.kappa = kappa
        self.register_buffer("gamma", torch.zeros(()))

    def curvatures(self) -> tuple[float, float]:
        """c1 and c2, between which the Hessian of H lies."""
        weights = torch.stack([cast(Tensor, layer.K).detach().double() for layer in self.layers])
        c1 = self.kappa**2
        return c1, c1 + float(torch.linalg.matrix_norm(weights, ord=2).max()) ** 2

    @torch.no_grad()
    def update_gamma(self) -> None:
        """gamma = 1 / sqrt(1 - a^2 - 1e-6), a = (c2 - c1) / (c2 + c1); NaN when c2 / c1 exceeds 4e6.

        References
        ----------
        Zakwan, Xu, Ferrari-Trecate, arXiv 2203.11805, Theorem 1 and the authors' code.
        """
        c1, c2 = self.curvatures()
        rest = 1 - ((c2 - c1) / (c2 + c1)) ** 2 - EPSILON
        self.gamma.fill_(1 / math.sqrt(rest) if rest > 0 else math.nan)

    def shared(self) -> dict[str, Tensor]:
        """The gamma of the last optimiser step."""
        return {"gamma": self.gamma}

    def bounds(self) -> dict[str, float]:
        """gamma, c1, c2 and the rate rho (per unit of time) of the exact flow."""
        gamma, (c1, c2) = float(self.gamma), self.curvatures()
        return {"gamma": gamma, "c1": c1, "c2": c2, "rho": contraction_rate(gamma, c1, c2)}


class ScheduledNetwork(PixelNetwork):
    """A pixel network whose flow's gamma follows the optimiser."""

    def after_step(self) -> None:
        """Set gamma from the new K; training calls it after every step of the optimiser."""
        cast(ScheduledFlow, self.flow).update_gamma()


@register_model(
    "ch-node-euler",
    summary="CH-NODE as published: forward Euler with h = 0.5, gamma set from K after every training step",
    reference="Zakwan, Xu, Ferrari-Trecate, IEEE Control Systems Letters 2022, arXiv 2203.11805",
    recipe={"weight_decay": 2e-4},
    claims=frozenset({"fixed_step"}),
)
def build(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    width: int = 8,
    layers: int = 4,
    step: float = 0.5,
    kappa: float = 0.02,
    gain: float = 8**0.5,
    offset: float = 1.0,
    smoothing: float = 1e-3,
) -> nn.Module:
    """Build the published CH-NODE; `gain` sqrt(8) draws the entries of K from N(0, 1) at width 8.

    Parameters
    ----------
    step
        h, units of the model's time per layer; each layer is one forward-Euler step.
    kappa, gain, offset, smoothing
        As in `ch_node.build`.
    """
    blocks = [ContractiveLayer(width, kappa=kappa, gain=gain, offset=offset) for _ in range(layers)]
    solver = Solver(method="euler", steps=layers)
    flow = ScheduledFlow(blocks, kappa=kappa, final_time=step * layers, solver=solver)
    return ScheduledNetwork(input_shape, num_classes, flow, width=width, smoothing=smoothing)
