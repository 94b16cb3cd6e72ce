"""The model as the harness asks it: a `QueriedModel` that counts the evaluations of ODE fields too."""

from __future__ import annotations

from torch import nn

from ...attacks.core.queried_model import QueriedModel
from ...models import count_nfe


class CheckedModel(QueriedModel):
    """See `QueriedModel`. The field evaluations are counted here, since attacks know nothing of models."""

    model: nn.Module
    num_classes: int

    def field_evaluations(self) -> int | None:
        """Field evaluations of the last forward pass; None for a model that does not count."""
        return count_nfe(self.model)
