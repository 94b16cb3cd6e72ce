"""A tanh layer's field as matrices, from which bounds and compiled steps are computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .lipschitz import TanhForm


@dataclass(frozen=True, kw_only=True)
class TanhField:
    """The field f(x) = A tanh(B x + b) + C x as differentiable tensors.

    A layer of an `ODEBlock` returns it from a method ``tanh_field()``; with it the block uses compiled steps
    and knows Lipschitz bounds. The layer's own ``forward`` remains the reference that `robustode check`
    compares it with.

    Attributes
    ----------
    A, B
        Shape (n, n).
    b
        Shape (n, 1).
    C
        Shape (n, n), or None for a field without a linear part.

    Examples
    --------
    >>> K = torch.eye(2)
    >>> field = TanhField(A=K.T, B=K, b=torch.zeros(2, 1))
    >>> field(torch.zeros(2, 5)).shape
    torch.Size([2, 5])
    """

    A: Tensor
    B: Tensor
    b: Tensor
    C: Tensor | None = None

    def __call__(self, state: Tensor) -> Tensor:
        """Return the derivative at `state`, shape (n, M)."""
        derivative = self.A @ torch.tanh(torch.addmm(self.b, self.B, state))
        return derivative if self.C is None else derivative + self.C @ state

    def form(self) -> TanhForm:
        """Return the matrices without b, detached, in float64."""
        A, B = self.A.detach().double(), self.B.detach().double()
        C = torch.zeros_like(A) if self.C is None else self.C.detach().double()
        return TanhForm(A=A, B=B, C=C)


def defines_tanh_field(layer: object) -> bool:
    """Whether one class defines both ``tanh_field`` and ``forward`` of `layer`.

    A subclass that overrides only one of them may contradict the other, so its ``tanh_field`` is not used.
    """
    if "forward" in vars(layer) or "tanh_field" in vars(layer):
        return False
    for ancestor in type(layer).__mro__:
        names = vars(ancestor)
        if "forward" in names or "tanh_field" in names:
            return "forward" in names and "tanh_field" in names
    return False
