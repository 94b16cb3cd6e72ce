"""A field stated by its matrices, from which its values, compiled steps and bounds follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .lipschitz import TanhForm


@dataclass(frozen=True, kw_only=True)
class TanhField:
    """The field f(x) = A tanh(B x + b) + C x as differentiable tensors.

    A `MatrixField` states itself by one; calling it gives the derivative.

    Attributes
    ----------
    A
        Shape (n, n), or None for the identity.
    B
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

    A: Tensor | None = None
    B: Tensor
    b: Tensor
    C: Tensor | None = None

    def __call__(self, state: Tensor) -> Tensor:
        """Return the derivative at `state`, shape (n, M)."""
        activated = torch.tanh(torch.addmm(self.b, self.B, state))
        derivative = activated if self.A is None else self.A @ activated
        return derivative if self.C is None else derivative + self.C @ state

    def dense_A(self) -> Tensor:
        """Return A as a tensor, (n, n)."""
        return torch.eye(len(self.B)).to(self.B) if self.A is None else self.A

    def dense_C(self) -> Tensor:
        """Return C as a tensor, (n, n)."""
        return torch.zeros_like(self.B) if self.C is None else self.C

    def form(self) -> TanhForm:
        """Return the matrices without b, detached, in float64."""
        A, B, C = (matrix.detach().double() for matrix in (self.dense_A(), self.B, self.dense_C()))
        return TanhForm(A=A, B=B, C=C)


class MatrixField(nn.Module):
    """A layer of an `ODEBlock` that states its field once, as matrices.

    A subclass defines ``tanh_field``. Everything else follows from it: ``forward``, compiled steps, Lipschitz
    bounds, certificates. A field of another form is a plain `torch.nn.Module` with a ``forward`` alone, and
    torchdiffeq solves it.

    Examples
    --------
    >>> class Field(MatrixField):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.K = nn.Parameter(torch.eye(2))
    ...     def tanh_field(self):
    ...         return TanhField(B=self.K, b=torch.zeros(2, 1))
    >>> Field()(torch.zeros(2, 5)).shape
    torch.Size([2, 5])
    """

    def tanh_field(self, *args: Any, **kwargs: Any) -> TanhField:
        """Return the matrices of the field; the tensors of `ODEBlock.shared` are its keyword arguments."""
        raise NotImplementedError(f"{type(self).__name__} states no field: define tanh_field()")

    def forward(self, state: Tensor, *args: Tensor, **shared: Tensor) -> Tensor:
        """Return the derivative at `state`, shape (n, M), from ``tanh_field``: not to be overridden."""
        return self.tanh_field(*args, **shared)(state)
