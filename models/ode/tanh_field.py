"""The one definition of a tanh layer's dynamics that bounds and the fast path read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .lipschitz import TanhForm


@dataclass(frozen=True, kw_only=True)
class TanhField:
    """f(x) = A tanh(B x + b) + C x, as tensors that gradients flow through.

    A layer returns it from ``tanh_field(**shared)``; its own ``forward`` stays the reference.

    Attributes
    ----------
    A, B, C
        Shape (n, n); C is None where the field has no linear part.
    b
        Shape (n, 1).
    """

    A: Tensor
    B: Tensor
    b: Tensor
    C: Tensor | None = None

    def __call__(self, state: Tensor) -> Tensor:
        """Derivative at `state`, shape (n, M)."""
        derivative = self.A @ torch.tanh(torch.addmm(self.b, self.B, state))
        return derivative if self.C is None else derivative + self.C @ state

    def form(self) -> TanhForm:
        """The matrices alone, detached, in float64."""
        A, B = self.A.detach().double(), self.B.detach().double()
        C = torch.zeros_like(A) if self.C is None else self.C.detach().double()
        return TanhForm(A=A, B=B, C=C)


def defines_tanh_field(layer: object) -> bool:
    """Whether `layer` has a ``tanh_field`` that belongs to its ``forward``: both from the same class.

    A subclass that changes ``forward`` alone is not taken at its parent's word.
    """
    if "forward" in vars(layer) or "tanh_field" in vars(layer):
        return False
    for ancestor in type(layer).__mro__:
        names = vars(ancestor)
        if "forward" in names or "tanh_field" in names:
            return "forward" in names and "tanh_field" in names
    return False
