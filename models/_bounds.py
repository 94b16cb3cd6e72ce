"""Sound Lipschitz bounds on tanh fields and on the solver steps that carry them.

For f(x) = A tanh(B x + b) + C x the Jacobian is A D B + C with D diagonal in [0, 1]^n. Norms and
logarithmic norms of matrices affine in D are convex in D, so their maximum over the box is attained at
one of its 2^n vertices: enumerating these is exact over the box.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_STATE = 10
"""Largest n whose 2^n vertices are enumerated."""

STEP_BOUNDS = {
    "euler": lambda e: e,
    "heun2": lambda e: (1 + e**2) / 2,
    "ssprk3": lambda e: 1 / 3 + 2 / 3 * e * (3 / 4 + e**2 / 4),
}
"""Lipschitz bound of one step from the Euler step's bound e, for methods that are convex combinations
of Euler steps (Shu, Osher, J. Comput. Phys. 77, 1988, eq. 2.16 and 2.18)."""


@dataclass(frozen=True, kw_only=True)
class TanhForm:
    """The matrices of f(x) = A tanh(B x + b) + C x, each (n, n), float64."""

    A: Tensor
    B: Tensor
    C: Tensor

    def jacobians(self) -> Tensor:
        """A D B + C at every vertex D of [0, 1]^n, shape (2^n, n, n).

        Raises
        ------
        ValueError
            When n exceeds `LARGEST_STATE`.
        """
        n = self.B.shape[0]
        if n > LARGEST_STATE:
            raise ValueError(f"a state of {n} channels has too many vertices; at most {LARGEST_STATE}")
        bits = torch.arange(2**n, device=self.B.device)[:, None] >> torch.arange(n, device=self.B.device) & 1
        return self.A @ (bits[:, :, None].to(self.B) * self.B) + self.C


def logarithmic_norm(form: TanhForm) -> float:
    """Largest mu_2 of the Jacobian, per unit of time: distances grow at most like exp(mu_2 t)."""
    jacobians = form.jacobians()
    return float(torch.linalg.eigvalsh((jacobians + jacobians.mT) / 2).amax())


def euler_bound(form: TanhForm, h: float) -> float:
    """Lipschitz constant of x + h f(x), exact over the box."""
    jacobians = form.jacobians()
    identity = torch.eye(jacobians.shape[-1]).to(jacobians)
    return float(torch.linalg.matrix_norm(identity + h * jacobians, ord=2).amax())


def lipschitz_constant(form: TanhForm) -> float:
    """Lipschitz constant of f itself, exact over the box."""
    return float(torch.linalg.matrix_norm(form.jacobians(), ord=2).amax())


def step_bound(form: TanhForm, h: float, method: str) -> float:
    """Lipschitz bound of one step of `method` with step size `h`.

    Convex combinations of Euler steps inherit the Euler step's bound. Any explicit Runge-Kutta step of
    order p = stages <= 4 is at most sum_{k <= p} (h L)^k / k! expansive for nonnegative tableaus, with L
    the Lipschitz constant of f; the smaller of the two is returned.

    Raises
    ------
    ValueError
        For a method of which no bound is known.
    """
    orders = {"euler": 1, "heun2": 2, "midpoint": 2, "heun3": 3, "ssprk3": 3, "rk4": 4}
    if method not in orders:
        raise ValueError(f"no Lipschitz bound is known for a step of {method}")
    scale, bound, term = h * lipschitz_constant(form), 1.0, 1.0
    for k in range(1, orders[method] + 1):
        term *= scale / k
        bound += term
    if method in STEP_BOUNDS:
        bound = min(bound, STEP_BOUNDS[method](euler_bound(form, h)))
    return bound
