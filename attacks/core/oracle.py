"""What an attack asks a model for: logits, the slope of a loss, and that slope in double precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from ..._errors import NonFinite, TimeLimitExceeded
from .double_precision import in_double
from .memory import Parts
from .types import Model

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``loss(logits, rows)``: logits (n, K) of the samples `rows` (n,) to values (n,) that an attack raises."""


def points(gradient: Tensor) -> Tensor:
    """Which samples' gradient (n, C, H, W) is not exactly zero, bool (n,)."""
    return (gradient != 0).flatten(1).any(1)


def demand_finite(values: Tensor, what: str) -> None:
    """Raise `NonFinite` where some of the samples' `values` (n, ...) are NaN or infinite."""
    if not bool(values.isfinite().all()):
        broken = ~values.isfinite().flatten(1).all(1)
        raise NonFinite(f"{what} NaN or infinite for {int(broken.sum())} of {len(broken)} samples")


class Queries:
    """A model under questions, in parts where memory does not hold a whole batch.

    Raises
    ------
    NonFinite
        Logits or an input gradient are NaN or infinite.
    """

    def __init__(self, model: Model) -> None:
        self._model, self._parts = model, Parts()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, K) at `x` (n, C, H, W); no graph is built."""
        with torch.no_grad():
            (logits,) = self._parts(lambda part: (self._model(part),), x)
        demand_finite(logits, "logits are")
        return logits

    def slope(self, rows: Tensor, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (n, K) at `x` (n, C, H, W), values (n,) of `loss`, and its gradient of the shape of `x`."""

        def part(x: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                x = x.detach().requires_grad_(True)
                logits = self._model(x)
                value = loss(logits, rows)
                (gradient,) = torch.autograd.grad(value.sum(), x)
            return logits.detach(), value.detach(), gradient

        logits, value, gradient = self._parts(part, x, rows)
        demand_finite(logits, "logits are")
        demand_finite(gradient, "the input gradient is")
        return logits, value, gradient

    def slope_in_double(self, rows: Tensor, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor] | None:
        """Values of `loss` and its gradient, both float64; None where the model fails in double precision."""
        try:
            with in_double(self._model):
                _, value, gradient = self.slope(rows, x.double(), loss)
        except TimeLimitExceeded:
            raise
        except Exception:  # whatever it is, the same query in the model's own precision shows it again
            return None
        return value.double(), gradient
