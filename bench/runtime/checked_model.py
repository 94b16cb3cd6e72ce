"""The model as the harness asks it: `SampleAnswers` that count the evaluations of ODE fields too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...attacks.core.frozen_model import frozen
from ...attacks.core.losses import answered
from ...attacks.core.sample_answers import SampleAnswers
from ..solvers.evaluations import evaluations_times_images
from ..solvers.observe import count_nfe, is_compiled, solvers_seen
from ..solvers.recording import Observer


class CheckedModel(SampleAnswers):
    """See `SampleAnswers`. The field evaluations are counted here, since attacks know nothing of models.

    They are counted where solvers are called, whatever the model says of itself. In a model that is compiled
    no call can be seen; it is asked once more, not compiled, and what that takes is taken to be its cost.
    """

    model: nn.Module
    num_classes: int
    _evaluations: int | None = None
    _looked: bool = False
    _nfe: int | None = None
    _compiled: bool | None = None

    def ask(self, images: Tensor) -> Tensor:
        """Logits (N, K) of `images` (N, C, H, W) in one batch."""
        if self._compiled is None:
            self._compiled = is_compiled(self.model)
        if self._compiled:
            logits = super().ask(images)
            if not self._looked:  # at images that have an answer
                self._looked, self._nfe = True, count_nfe(self.model, images)
            self._evaluations = None if self._nfe is None else self._nfe * len(images)
            return logits
        observer = Observer()
        with solvers_seen(observer):
            logits = super().ask(images)
        self._evaluations = evaluations_times_images(observer.solves, len(images))
        return logits

    def field_evaluations(self) -> int | None:
        """Field evaluations of the last forward pass times its samples; None where no solver was seen."""
        return self._evaluations


def answered_rows(
    model: nn.Module, images: Tensor, num_classes: int, batch_size: int | None = None
) -> Tensor:
    """The rows (k,) of `images` (N, C, H, W) for which `model` gives an answer, asked in batches.

    Raises
    ------
    ModelFailure, NonFinite
        It gives none for any of them.
    """
    asked = CheckedModel(model, num_classes, per_sample=True)
    with frozen(model), torch.no_grad():
        found = [answered(asked(part)) for part in images.split(batch_size or max(1, len(images)))]
    return torch.cat(found).nonzero().flatten()
