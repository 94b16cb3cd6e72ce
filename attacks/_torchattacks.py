"""The one place that talks to torchattacks, and works around what must not be trusted in it.

torchattacks 3.5.1: PGD returns its last iterate, has no restarts, draws from the global generator,
caches the device when built and switches the model's mode. So the model is handed over behind a
module of our own that keeps the best iterate and has no mode to switch; generators are forked.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchattacks.attack import Attack

from .._errors import NonFinite
from ._seeds import seeded
from .registry import Model, Seed


class BestIterate(nn.Module):
    """A model that remembers, per sample, the image of the largest margin it was asked about.

    The margin is max_{k != y} z_k - z_y: positive exactly when the sample is broken.

    Attributes
    ----------
    images
        Best images so far, (N, C, H, W).
    margin
        Their margins, (N,); -inf before the first query.
    """

    def __init__(self, model: Model, images: Tensor, labels: Tensor) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, so that no mode or parameter of it can be reached
        self._labels = labels
        self._anchor = nn.Parameter(images.new_empty(0), requires_grad=False)  # tells torchattacks the device
        self._finite = torch.ones((), dtype=torch.bool, device=images.device)
        self.images = images.clone()
        self.margin = images.new_full((len(images),), -torch.inf)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of the N samples in their original order."""
        logits = self._model[0](images)
        if images.requires_grad:
            images.register_hook(self._see)
        with torch.no_grad():
            self._finite &= logits.isfinite().all()
            true = logits.gather(1, self._labels[:, None])
            others = logits.scatter(1, self._labels[:, None], -torch.inf).amax(1)
            margin = (others - true[:, 0]).to(self.margin)
            better = margin > self.margin
            self.margin = torch.where(better, margin, self.margin)
            self.images = torch.where(better.view(-1, 1, 1, 1), images.detach(), self.images)
        return logits

    def _see(self, gradient: Tensor) -> None:
        self._finite &= gradient.isfinite().all()

    @property
    def finite(self) -> Tensor:
        """Whether all logits and input gradients were, a scalar that nobody has waited for."""
        return self._finite


def strongest(
    make: Callable[[nn.Module], Attack],
    model: Model,
    images: Tensor,
    labels: Tensor,
    seed: Seed,
    *,
    restarts: int = 1,
) -> Tensor:
    """Run ``make(model)`` up to `restarts` times and return every sample's best iterate.

    A sample that is broken takes no part in later restarts. A GPU is waited for once between two restarts, to
    see which those are, and once at the end.

    Raises
    ------
    NonFinite
        Logits or input gradients were NaN or infinite: their sign would pass for robustness.
    """
    best = images.clone()
    finite = torch.ones((), dtype=torch.bool, device=images.device)
    margin = images.new_full((len(images),), -torch.inf)
    active = torch.arange(len(images), device=images.device)
    for restart in range(restarts):
        tracker = BestIterate(model, images[active], labels[active])
        attack = make(tracker)
        with seeded(seed, restart=restart, device=images.device):
            last = attack(images[active], labels[active])
        with torch.no_grad():
            tracker(last)
        finite &= tracker.finite
        better = tracker.margin > margin[active]
        best[active] = torch.where(better.view(-1, 1, 1, 1), tracker.images, best[active])
        margin[active] = torch.where(better, tracker.margin, margin[active])
        tracker.images = images[:0]  # torchattacks' objects are cycles: they keep it until they are collected
        if restart + 1 == restarts:
            break
        active = torch.nonzero(margin <= 0).flatten()
        if not len(active):
            break
    if not bool(finite):
        raise NonFinite("logits or the input gradient are NaN or infinite")
    return best
