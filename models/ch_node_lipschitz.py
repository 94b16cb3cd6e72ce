"""CH-NODE built for certification: every part is 1-Lipschitz after normalisation, trained for large margins.

The field is that of CH-NODE, x' = (J - gamma I) grad H(x), with a piecewise quadratic energy:
H(x) = 1/2 |relu(K^T x + b)|^2 + kappa^2/2 |x|^2. Its Hessian K D K^T + kappa^2 I, D in {0, 1}^n, lies
between c1 = kappa^2 and c2 = kappa^2 + sigma_max(K)^2, so the rate, the threshold of gamma and the bound of
an Euler step are those of CH-NODE. Unlike tanh, which shrinks most directions a little, relu leaves half of
them unchanged and, at the largest contractive step with K orthogonal, nearly reflects the others: distances
are almost preserved, as in the convex potential layers that this flow approaches as gamma grows.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import orthogonal

from .._errors import InvalidArgument
from .ch_node import contraction_rate
from .ode.block import ODEBlock
from .ode.lipschitz import LipschitzParts, NoCertificate, contractive_euler_bound, contractive_step_limit
from .ode.solver import Solver
from .ode.statement import stated_solver_bound
from .pixel_network import Normalise
from .registry import register_model

STEP_FRACTION = 0.999
"""Fraction of the largest contractive step that is used, so that rounding cannot exceed the limit."""


class OrthogonalLayer(nn.Module):
    """f(x) = (J - gamma I)(K relu(K^T x + b) + kappa^2 x) with K orthogonal (a Cayley transform)."""

    def __init__(self, width: int, *, kappa: float, gamma: float) -> None:
        super().__init__()
        linear = orthogonal(nn.Linear(width, width), orthogonal_map="cayley")
        self.linear = cast(nn.Linear, linear)  # its weight is K^T
        nn.init.zeros_(self.linear.bias)
        self.kappa, self.gamma = kappa, gamma

    def forward(self, state: Tensor) -> Tensor:
        """Derivative at `state`, shape (n, M)."""
        K_transposed = self.linear.weight
        slopes = F.relu(torch.addmm(self.linear.bias[:, None], K_transposed, state))
        gradient = K_transposed.T @ slopes + self.kappa**2 * state
        upper, lower = gradient.chunk(2)
        return torch.cat([-lower, upper]) - self.gamma * gradient

    def energy(self, state: Tensor) -> Tensor:
        """H at `state` (n, M), shape (M,); it decreases along the flow."""
        slopes = F.relu(torch.addmm(self.linear.bias[:, None], self.linear.weight, state))
        return 0.5 * slopes.square().sum(0) + 0.5 * self.kappa**2 * state.square().sum(0)


class OrthogonalFlow(ODEBlock):
    """One Euler step per layer, all of one size: the largest for which the bound of a step is below 1."""

    def __init__(self, width: int, layers: int, *, kappa: float, margin: float) -> None:
        if not (kappa > 0 and margin > 0):
            raise InvalidArgument(f"kappa and margin must be positive, not {kappa} and {margin}")
        c1, c2 = kappa**2, kappa**2 + 1
        gamma = (1 + margin) * (c2 - c1) / (2 * math.sqrt(c1 * c2))
        h = STEP_FRACTION * contractive_step_limit(gamma, c1, c2, contraction_rate(gamma, c1, c2))
        blocks = [OrthogonalLayer(width, kappa=kappa, gamma=gamma) for _ in range(layers)]
        super().__init__(blocks, final_time=layers * h, solver=Solver(method="euler", steps=layers))
        self.kappa, self.gamma = kappa, gamma

    @property
    def h(self) -> float:
        """The size of a step, in the model's own time."""
        return self.final_time / len(self.layers) / self.steps_per_layer()

    @torch.no_grad()
    def bounds(self) -> dict[str, float]:
        """gamma, c1, c2 and the rate rho (per unit of time) of the exact flow, from the K that run."""
        norms = [float(torch.linalg.matrix_norm(K, ord=2)) for K in self._weights()]
        c1 = self.kappa**2
        c2 = c1 + max(norms) ** 2
        return {"gamma": self.gamma, "c1": c1, "c2": c2, "rho": contraction_rate(self.gamma, c1, c2)}

    def solver_bound(self) -> float:
        """Product of the bounds of the Euler steps, each from its own K.

        Raises
        ------
        NoCertificate
            For another method.
        """
        if self.solver.method != "euler":
            raise NoCertificate(f"no Lipschitz bound is known for a step of {self.solver.method}")
        c1 = self.kappa**2
        squares = [float(torch.linalg.matrix_norm(K, ord=2)) ** 2 for K in self._weights()]
        bounds = [contractive_euler_bound(self.h, self.gamma, c1, c1 + square) for square in squares]
        return math.prod(bounds) ** self.steps_per_layer()

    def _weights(self) -> list[Tensor]:
        return [cast(OrthogonalLayer, layer).linear.weight.detach().double() for layer in self.layers]


class LipschitzNetwork(nn.Module):
    """normalise -> the lowest cosine frequencies -> flow of the whole image -> orthogonal head.

    The flow sees the state as (n, N), one column for every sample, n = C bands^2.
    """

    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        bands: int,
        layers: int,
        kappa: float,
        margin: float,
        radius: float,
        temperature: float,
    ) -> None:
        super().__init__()
        channels, height, breadth = input_shape
        width = channels * bands**2
        if width % 2 or not 0 < bands <= min(height, breadth):
            raise InvalidArgument(
                f"bands must be from 1 to {min(height, breadth)}, with an even state: not {bands} bands"
            )
        self.normalise = Normalise(channels)
        self.register_buffer("rows", cosine_basis(bands, height), persistent=False)
        self.register_buffer("columns", cosine_basis(bands, breadth), persistent=False)
        self.flow = OrthogonalFlow(width, layers, kappa=kappa, margin=margin)
        self.head = cast(nn.Linear, orthogonal(nn.Linear(width, num_classes)))
        self.radius, self.temperature = radius, temperature

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) in [0, 1] to logits (N, num_classes)."""
        frequencies = self.rows @ self.normalise(images) @ self.columns.T
        logits: Tensor = self.head(self.flow(frequencies.flatten(1).T).T)
        return logits

    def lipschitz_parts(self) -> LipschitzParts:
        """Bounds for an l2 certificate: normalisation and cosine transform together, then the flow."""
        sides = [
            float(torch.linalg.matrix_norm(basis.double(), ord=2)) for basis in (self.rows, self.columns)
        ]
        stem = math.prod(sides) / float(self.normalise.std.min())
        bounds = {"stem": stem, "flow": stated_solver_bound(self.flow)}
        return LipschitzParts(body=bounds, head=self.head.weight.detach().double())

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy after every other logit is raised by what a perturbation of `radius` could raise it.

        References
        ----------
        Tsuzuku, Sato, Sugiyama, "Lipschitz-margin training", NeurIPS 2018, algorithm 1; Leino, Wang,
        Fredrikson, "Globally-robust neural networks", ICML 2021.
        """
        head = self.head.weight
        reach = self.radius / float(self.normalise.std.min()) * torch.cdist(head[labels], head)
        # cdist has no gradient at distance 0: the label's own entry is left out.
        reach = reach.masked_fill(F.one_hot(labels, len(head)).bool(), 0.0)
        return F.cross_entropy(self.temperature * (logits + reach), labels)


def cosine_basis(bands: int, length: int) -> Tensor:
    """The first `bands` rows of the orthonormal cosine transform (DCT-II), shape (bands, length)."""
    k, j = torch.arange(bands)[:, None], torch.arange(length)[None, :]
    basis = torch.cos(math.pi * (j + 0.5) * k / length) * math.sqrt(2 / length)
    basis[0] /= math.sqrt(2)
    return basis


@register_model(
    "ch-node-lipschitz",
    summary="CH-NODE with orthogonal K, H = 1/2 |relu(K^T x + b)|^2 + kappa^2/2 |x|^2, trained for margins",
    reference="Zakwan, Xu, Ferrari-Trecate, arXiv 2203.11805; Meunier, Delattre, Araujo, Allauzen, "
    "ICML 2022, arXiv 2110.12690; Tsuzuku, Sato, Sugiyama, NeurIPS 2018, arXiv 1802.04034",
    # torch's Householder parametrisation of the head keeps its signs as whole numbers: decay would zero them.
    recipe={"weight_decay": 0.0},
    claims=frozenset({"fixed_step", "contractive"}),
    expected_failures={
        "solver-sensitivity": "its Euler steps, as long as contraction allows, are part of the network: the "
        "certificate bounds these steps, and nothing is taken from the exact flow",
    },
)
def build(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    bands: int | None = None,
    layers: int = 4,
    kappa: float = 0.05,
    margin: float = 6.0,
    radius: float = 1.5,
    temperature: float = 3.0,
) -> nn.Module:
    """Build a CH-NODE whose Lipschitz bound is that of its normalisation.

    Parameters
    ----------
    input_shape, num_classes
        (C, H, W), and the number of logits.
    bands
        Cosine frequencies used along each side of the image; None for 16, or all if the image has fewer.
    layers
        Euler steps, each with its own K and b.
    kappa, margin
        c1 = kappa^2; gamma is (1 + margin) times its threshold.
    radius
        l2 norm, in pixel units, of the perturbation against which the loss requires a margin.
    temperature
        Factor of the logits inside the loss.
    """
    bands = min(16, *input_shape[1:]) if bands is None else bands
    return LipschitzNetwork(
        input_shape,
        num_classes,
        bands=bands,
        layers=layers,
        kappa=kappa,
        margin=margin,
        radius=radius,
        temperature=temperature,
    )
