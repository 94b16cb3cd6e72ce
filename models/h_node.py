"""H-NODE: x' = J grad H(x), H(x) = 1^T log cosh(K^T x + b), J skew-symmetric; H is conserved."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._errors import InvalidArgument
from .ode.block import ODEBlock
from .ode.solver import Solver, Steps
from .ode.tanh_field import TanhField
from .pixel_network import ChannelLayer, PixelNetwork
from .registry import register_model


def symplectic_matrix(width: int) -> Tensor:
    """J = [[0, -I], [I, 0]], shape (n, n): skew-symmetric and orthogonal.

    Raises
    ------
    InvalidArgument
        When n is odd.
    """
    if width < 2 or width % 2:
        raise InvalidArgument(f"a Hamiltonian state needs an even width of at least 2, not {width}")
    half = width // 2
    return torch.kron(torch.tensor([[0.0, -1.0], [1.0, 0.0]]), torch.eye(half))


def log_cosh(x: Tensor) -> Tensor:
    """log cosh x, elementwise, without overflow."""
    return x.abs() + F.softplus(-2 * x.abs()) - torch.log(x.new_tensor(2.0))


class EnergyLayer(ChannelLayer):
    """H(x) = 1^T log cosh(K^T x + b), and the skew-symmetric J beside it."""

    J: Tensor

    def __init__(self, width: int, *, gain: float = 1.0, offset: float = 0.0) -> None:
        super().__init__(width, gain=gain, offset=offset)
        self.register_buffer("J", symplectic_matrix(width), persistent=False)

    def energy(self, state: Tensor) -> Tensor:
        """H at `state` (n, M), shape (M,)."""
        return log_cosh(torch.addmm(self.b, self.K.T, state)).sum(0)


class HamiltonianLayer(EnergyLayer):
    """f(x) = J K tanh(K^T x + b)."""

    def tanh_field(self) -> TanhField:
        """A = J K, B = K^T."""
        return TanhField(A=self.J @ self.K, B=self.K.T, b=self.b)


@register_model(
    "h-node",
    summary="x' = J grad H(x) with H = 1^T log cosh(K^T x + b)",
    reference="Galimberti, Furieri, Xu, Ferrari-Trecate, 2021, arXiv 2105.13205",
    recipe={"weight_decay": 2e-4},
    claims=frozenset({"fixed_step", "hamiltonian"}),
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
    gain: float = 1.0,
    offset: float = 0.0,
    smoothing: float = 1e-3,
) -> nn.Module:
    """Build an H-NODE.

    Parameters
    ----------
    input_shape, num_classes
        (C, H, W), and the number of logits.
    width
        n, channels per pixel; even.
    layers
        Weights K_j, b_j are constant over each of this many equal parts of [0, T].
    final_time
        T.
    method, steps
        The solver and its steps over [0, T], a multiple of `layers`.
    gain, offset
        Initially K is drawn from N(0, gain^2 / width) and b from N(0, offset^2).
    smoothing
        Weight of the penalty on the change of K and b between layers.
    """
    fields = [HamiltonianLayer(width, gain=gain, offset=offset) for _ in range(layers)]
    flow = ODEBlock(fields, final_time=final_time, solver=Solver(method=method, steps=steps))
    return PixelNetwork(input_shape, num_classes, flow, width=width, smoothing=smoothing)
