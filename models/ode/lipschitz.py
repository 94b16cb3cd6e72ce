"""Sound l2 Lipschitz bounds of tanh fields, of their exact flow and of solver steps.

For f(x) = A tanh(B x + b) + C x the Jacobian is A D B + C with D diagonal in [0, 1]^n. Norms and
logarithmic norms are convex, and the Jacobian is affine in D, so their maxima over the box are attained
at its 2^n vertices: enumerating these is exact over the box. Bounds are computed in float64 and hold for
real arithmetic: the rounding of a float32 network is not part of a bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..._errors import RobustodeError

MAX_ENUMERATED_STATE = 10
"""Largest state dimension n whose 2^n vertices are enumerated."""

CONVEX_COMBINATIONS: Mapping[str, Callable[[float], float]] = {
    "euler": lambda e: e,
    "heun2": lambda e: (1 + e**2) / 2,
    "ssprk3": lambda e: 1 / 3 + 2 / 3 * e * (3 / 4 + e**2 / 4),
}
"""Lipschitz bound of a step, from the bound e of the Euler step it is a convex combination of (Shu,
Osher, J. Comput. Phys. 77, 1988, eq. 2.16 and 2.18): below 1 exactly when e is."""

NONNEGATIVE_TABLEAUS: Mapping[str, int] = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "ssprk3": 3}
"""Explicit methods whose order equals their stages and whose coefficients are all nonnegative."""


class NoCertificate(RobustodeError):
    """No Lipschitz bound of the model is known; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class LipschitzParts:
    """The parts of a network logits = W body(x) + bias, for an l2 certificate.

    A model returns it from a method ``lipschitz_parts()``. A sample whose logit of class k exceeds that of
    class j by m is certified against j within the l2 radius m / (|w_k - w_j| L), L the product of `body`.

    Attributes
    ----------
    body
        l2 Lipschitz bounds of the maps whose composition is the body, by name. The first takes pixels in
        [0, 1], so that the radius is in pixel units.
    head
        W, shape (K, D), float64, detached: K classes, D features.

    References
    ----------
    Tsuzuku, Sato, Sugiyama, "Lipschitz-margin training", NeurIPS 2018, arXiv 1802.04034, proposition 1, with
    the norm of the difference of two rows in place of sqrt(2) times that of the whole network.
    """

    body: Mapping[str, float]
    head: Tensor


def convolution_bound(weight: Tensor, height: int, width: int) -> float:
    """Return an upper bound of the l2 norm of a zero-padded convolution with stride 1.

    It is the norm of the circular convolution on images of size (H + k - 1, W + k - 1), computed exactly from
    the singular values of its transfer matrices. An image padded by zeros to that size does not wrap around,
    so the bound holds for the zero-padded convolution.

    Parameters
    ----------
    weight
        Kernel, shape (C_out, C_in, k, k), of a convolution with ``padding`` at most k - 1.
    height, width
        H and W of the input images, shape (C_in, H, W).

    Returns
    -------
    float
        The bound, dimensionless.

    References
    ----------
    Sedghi, Gupta, Long, "The singular values of convolutional layers", ICLR 2019, Theorem 6.
    """
    size = (height + weight.shape[-2] - 1, width + weight.shape[-1] - 1)
    transfer = torch.fft.fft2(weight.detach().double(), s=size).permute(2, 3, 0, 1)
    return float(torch.linalg.matrix_norm(transfer, ord=2).amax())


@dataclass(frozen=True, kw_only=True)
class TanhForm:
    """The matrices of f(x) = A tanh(B x + b) + C x, each (n, n), float64."""

    A: Tensor
    B: Tensor
    C: Tensor

    def jacobians(self) -> Tensor:
        """Return A D B + C at every vertex D of [0, 1]^n, shape (2^n, n, n).

        Raises
        ------
        ValueError
            When n exceeds `MAX_ENUMERATED_STATE`.
        """
        n = self.B.shape[0]
        if n > MAX_ENUMERATED_STATE:
            raise ValueError(f"a state of {n} channels has too many vertices: at most {MAX_ENUMERATED_STATE}")
        vertices = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * n).reshape(
            -1, n, 1
        )
        return self.A @ (vertices.to(self.B) * self.B) + self.C

    def lipschitz(self) -> float:
        """Return the Lipschitz constant of f, per unit of time; exact over the box."""
        return float(torch.linalg.matrix_norm(self.jacobians(), ord=2).amax())

    def logarithmic_norm(self) -> float:
        """Return the Jacobian's largest mu_2: distances along the exact flow grow by at most exp(mu_2 t)."""
        jacobians = self.jacobians()
        return float(torch.linalg.eigvalsh((jacobians + jacobians.mT) / 2).amax())

    def euler_bound(self, h: float) -> float:
        """Return the Lipschitz constant of one Euler step x + h f(x); exact over the box."""
        jacobians = self.jacobians()
        identity = torch.eye(jacobians.shape[-1]).to(jacobians)
        return float(torch.linalg.matrix_norm(identity + h * jacobians, ord=2).amax())

    def step_bound(self, h: float, method: str) -> float:
        """Return a Lipschitz bound of one step of `method` with step size `h`.

        The smaller of two: that of a convex combination of Euler steps, and sum_{k <= p} (h L)^k / k!
        for an explicit method of p stages, order p and nonnegative coefficients, L = `lipschitz`.

        Raises
        ------
        ValueError
            For a method of which neither is known.
        """
        bounds = []
        if method in CONVEX_COMBINATIONS:
            bounds.append(CONVEX_COMBINATIONS[method](self.euler_bound(h)))
        if method in NONNEGATIVE_TABLEAUS:
            growth = h * self.lipschitz()
            bounds.append(sum(growth**k / math.factorial(k) for k in range(NONNEGATIVE_TABLEAUS[method] + 1)))
        if not bounds:
            raise ValueError(f"no Lipschitz bound is known for a step of {method}")
        return min(bounds)


def flow_bounds(
    forms: Sequence[TanhForm], *, final_time: float, method: str, steps: int | None
) -> dict[str, float]:
    """Return l2 Lipschitz bounds of a flow through `forms` over equal parts of [0, `final_time`].

    Parameters
    ----------
    forms
        One for each part of [0, T].
    final_time
        T, in the model's own time.
    method, steps
        The solver's method and its steps in each part; `steps` is None where no bound of a step is known.

    Returns
    -------
    dict
        ``exact_flow`` and, with `steps`, ``solver`` and ``worst_step``: see `ODEBlock.lipschitz_bounds`.
    """
    duration = final_time / len(forms)
    bounds = {"exact_flow": _exp(sum(duration * form.logarithmic_norm() for form in forms))}
    if steps is not None:
        each = [form.step_bound(duration / steps, method) for form in forms]
        bounds |= {"solver": _exp(steps * sum(map(math.log, each))), "worst_step": max(each)}
    return bounds


def _exp(exponent: float) -> float:
    return math.exp(exponent) if exponent < 700 else math.inf


def contractive_euler_bound(h: float, gamma: float, c1: float, c2: float) -> float:
    """Return a Lipschitz bound of an Euler step of x' = (J - gamma I) grad H, c1 I <= Hessian <= c2 I.

    sqrt((1 - h gamma m)^2 + (h m)^2) + h d sqrt(1 + gamma^2), with m = (c1 + c2)/2, d = (c2 - c1)/2:
    the step is normal with eigenvalues 1 - h m gamma +- i h m about the Hessian's midpoint, and the rest
    of the Hessian has norm at most d.
    """
    m, d = (c1 + c2) / 2, (c2 - c1) / 2
    return math.hypot(1 - h * gamma * m, h * m) + h * d * math.hypot(1, gamma)


def contractive_step_limit(gamma: float, c1: float, c2: float, rho: float) -> float:
    """Return the step size below which `contractive_euler_bound` is less than 1.

    It is 2 rho / ((1 + gamma^2) c1 c2), in the model's own time.

    With s = d sqrt(1 + gamma^2) the bound is below 1 when (1 - h gamma m)^2 + (h m)^2 < (1 - h s)^2,
    that is h ((1 + gamma^2) m^2 - s^2) < 2 (gamma m - s) = 2 rho.
    """
    return 2 * rho / ((1 + gamma**2) * c1 * c2)
