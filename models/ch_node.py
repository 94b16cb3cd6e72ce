"""CH-NODE: x' = (J - gamma I) grad H(x), contractive by the choice of one scalar, gamma.

H(x) = 1^T log cosh(K^T x + b) + kappa^2/2 |x|^2, whose Hessian lies between c1 I and c2 I with
c1 = kappa^2 and c2 = kappa^2 + max_j sigma_max(K_j)^2. With m = (c1 + c2)/2, d = (c2 - c1)/2, a = d/m,
the flow contracts in the Euclidean norm at rate rho = gamma m - d sqrt(1 + gamma^2), positive exactly
when gamma > a / sqrt(1 - a^2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .._errors import InvalidArgument
from .h_node import EnergyLayer
from .ode.block import ODEBlock
from .ode.lipschitz import contractive_step_limit
from .ode.solver import Solver, SolverFailure, Steps
from .ode.tanh_field import TanhField
from .pixel_network import PixelNetwork
from .registry import register_model

MAX_CONTRACTIVE_STEPS = 10_000
"""Solver steps beyond which a contractive grid is refused."""

_GAMMA_FLOOR = 1e-3
"""Threshold used for gamma when K vanishes, where the formula's own threshold is 0."""


def contraction_threshold(sigma: Tensor, kappa: float) -> Tensor:
    """The value a / sqrt(1 - a^2) that gamma must exceed, from sigma_max(K) and kappa.

    Equal to (c2 - c1) / (2 sqrt(c1 c2)), written here as sigma/(2 kappa) * sigma/hypot(sigma, kappa):
    no difference of nearly equal numbers, no root of a negative one, so it is finite for every finite K.

    References
    ----------
    Zakwan, Xu, Ferrari-Trecate, arXiv 2203.11805, Theorem 1.
    """
    return sigma / (2 * kappa) * (sigma / torch.hypot(sigma, torch.full_like(sigma, kappa)))


def contraction_rate(gamma: float, c1: float, c2: float) -> float:
    """rho = gamma m - d sqrt(1 + gamma^2), per unit of time; positive means contractive.

    The same number as ((gamma m)^2 - d^2 (1 + gamma^2)) / (gamma m + d sqrt(1 + gamma^2)), which is
    how it is computed, since the two terms nearly cancel.
    """
    m, d = (c1 + c2) / 2, (c2 - c1) / 2
    return (gamma**2 * c1 * c2 - d**2) / (gamma * m + d * math.hypot(1, gamma))


class ContractiveLayer(EnergyLayer):
    """f(x) = (J - gamma I)(K tanh(K^T x + b) + kappa^2 x)."""

    def __init__(self, width: int, *, kappa: float, gain: float = 1.0, offset: float = 0.0) -> None:
        super().__init__(width, gain=gain, offset=offset)
        self.kappa = kappa

    def tanh_field(self, gamma: Tensor) -> TanhField:
        """A = (J - gamma I) K, B = K^T, C = kappa^2 (J - gamma I)."""
        F = self.J - gamma * torch.eye(len(self.J)).to(self.J)
        return TanhField(A=F @ self.K, B=self.K.T, b=self.b, C=self.kappa**2 * F)

    def energy(self, state: Tensor) -> Tensor:
        """H at `state` (n, M), shape (M,); it decreases along the flow."""
        return super().energy(state) + 0.5 * self.kappa**2 * state.square().sum(0)


class ContractiveFlow(ODEBlock):
    """The flow of contractive layers, with one gamma for all of them, computed at every forward pass.

    Parameters
    ----------
    layers
        All layers in time: c2 is the largest over them.
    kappa
        c1 = kappa^2, the curvature that the quadratic term adds to H.
    margin
        gamma = (1 + margin) * threshold, so rho > 0 by construction.
    final_time, solver
        As in `ODEBlock`.
    """

    def __init__(
        self,
        layers: Sequence[ContractiveLayer],
        *,
        kappa: float,
        margin: float,
        final_time: float,
        solver: Solver,
    ) -> None:
        super().__init__(layers, final_time=final_time, solver=solver)
        if not (kappa > 0 and margin > 0):
            raise InvalidArgument(f"kappa and margin must be positive, not {kappa} and {margin}")
        self.kappa, self.margin = kappa, margin

    def sigma(self) -> Tensor:
        """Largest singular value of any K_j, a scalar."""
        weights = [cast(Tensor, layer.K) for layer in self.layers]
        largest: Tensor = torch.linalg.matrix_norm(torch.stack(weights), ord=2).max()
        return largest

    def gamma(self) -> Tensor:
        """Return the gamma of the current parameters, a differentiable scalar."""
        return (1 + self.margin) * contraction_threshold(self.sigma(), self.kappa).clamp_min(_GAMMA_FLOOR)

    def bounds(self) -> dict[str, float]:
        """gamma, c1, c2 and the rate rho (per unit of time) of the exact flow."""
        with torch.no_grad():
            gamma, sigma = float(self.gamma()), float(self.sigma())
        c1 = self.kappa**2
        c2 = c1 + sigma**2
        return {"gamma": gamma, "c1": c1, "c2": c2, "rho": contraction_rate(gamma, c1, c2)}

    def shared(self) -> dict[str, Tensor]:
        """Return the gamma of the current parameters."""
        return {"gamma": self.gamma()}

    def steps_per_layer(self) -> int:
        """Return the steps in each part of [0, T]; for ``"contractive"`` the fewest with a bound below 1.

        Raises
        ------
        SolverFailure
            When that takes more than `MAX_CONTRACTIVE_STEPS`: the field is too stiff for an explicit method.
        """
        if self.solver.steps != "contractive":
            return super().steps_per_layer()
        known = self.bounds()
        limit = contractive_step_limit(known["gamma"], known["c1"], known["c2"], known["rho"])
        if self.final_time > limit * MAX_CONTRACTIVE_STEPS:
            raise SolverFailure(
                f"a contractive grid would need over {MAX_CONTRACTIVE_STEPS:,} steps: raise kappa or margin"
            )
        return math.floor(self.final_time / len(self.layers) / limit) + 1


@register_model(
    "ch-node",
    summary="x' = (J - gamma I) grad H(x) with H = 1^T log cosh(K^T x + b) + kappa^2/2 |x|^2",
    reference="Zakwan, Xu, Ferrari-Trecate, IEEE Control Systems Letters 2022, arXiv 2203.11805",
    recipe={"weight_decay": 2e-4},
    claims=frozenset({"fixed_step", "contractive"}),
)
def build(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    width: int = 8,
    layers: int = 4,
    final_time: float = 1.0,
    method: str = "heun2",
    steps: Steps = 8,
    kappa: float = 0.55,
    margin: float = 0.05,
    gain: float = 0.5,
    offset: float = 0.0,
    smoothing: float = 1e-3,
) -> nn.Module:
    """Build a CH-NODE.

    Parameters
    ----------
    input_shape, num_classes, width, layers, final_time, method, steps, smoothing
        As in `h_node.build`.
    kappa
        The quadratic term M = kappa I; c1 = kappa^2.
    margin
        gamma is (1 + margin) times the contraction threshold.
    gain, offset
        Initial size of K, small enough for the solver's grid to resolve the flow from the start, and of b.
    """
    blocks = [ContractiveLayer(width, kappa=kappa, gain=gain, offset=offset) for _ in range(layers)]
    solver = Solver(method=method, steps=steps)
    flow = ContractiveFlow(blocks, kappa=kappa, margin=margin, final_time=final_time, solver=solver)
    return PixelNetwork(input_shape, num_classes, flow, width=width, smoothing=smoothing)
