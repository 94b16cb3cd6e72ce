"""The one place that talks to torchattacks, and works around what must not be trusted in it.

torchattacks 3.5.1: PGD returns its last iterate, has no restarts, draws from the global generator,
caches the device when built and switches the model's mode. So the model is handed over behind a
module of our own that keeps the best iterate and has no mode to switch; generators are forked.

It draws the starts of a batch from one stream, so a batch cannot be divided without changing them. Where
memory runs out the attack begins again, and `InParts` asks the model about a part of the batch at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchattacks.attack import Attack

from .._errors import NonFinite
from ._frozen import frozen
from ._memory import Parts, out_of_memory
from ._seeds import seeded
from ._types import Model, Seed


class InParts(torch.autograd.Function):
    """The model asked in parts; for the gradient it is asked again, so that one part's graph is held."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, model: Model, parts: Parts) -> Tensor:
        """Logits (N, K) of `images`, without a graph."""
        ctx.save_for_backward(images)
        ctx.model, ctx.parts = model, parts
        (logits,) = parts(lambda x: (model(x),), images)
        return logits

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient by the images, from that by the logits."""

        def part(x: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                x = x.detach().requires_grad_(True)
                return torch.autograd.grad(ctx.model(x), x, gradient)

        (gradient,) = ctx.parts(part, *ctx.saved_tensors, *gradients)
        return gradient, None, None


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

    def __init__(self, model: Model, images: Tensor, labels: Tensor, parts: Parts | None = None) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, so that no mode or parameter of it can be reached
        self._labels, self._parts = labels, parts or Parts()
        self._anchor = nn.Parameter(images.new_empty(0), requires_grad=False)  # tells torchattacks the device
        self._finite = images.isfinite().all()
        self.images = images.clone()
        self.margin = images.new_full((len(images),), -torch.inf)

    @property
    def parts(self) -> Parts:
        """How many samples at a time the model is asked about."""
        return self._parts

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of the N samples in their original order."""
        logits = self._ask(images)
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

    def _ask(self, images: Tensor) -> Tensor:
        (model,) = self._model
        if not images.requires_grad:
            return self._parts(lambda x: (model(x),), images)[0]
        if self._parts.size is None or len(images) <= self._parts.size:
            return model(images)
        logits: Tensor = InParts.apply(images, model, self._parts)  # type: ignore[no-untyped-call]
        return logits

    def _see(self, gradient: Tensor) -> None:
        self._finite &= gradient.isfinite().all()

    @property
    def finite(self) -> Tensor:
        """Whether all pixels, logits and input gradients were, a scalar that nobody has waited for."""
        return self._finite


def _run(
    make: Callable[[nn.Module], Attack],
    tracker: BestIterate,
    images: Tensor,
    labels: Tensor,
    seed: Seed,
    restart: int,
) -> None:
    """One run of the attack, and one more after the first time that memory runs out for a gradient."""
    full = False
    try:
        with seeded(seed, restart=restart, device=images.device):
            with torch.enable_grad():
                last = make(tracker)(images, labels)
            with torch.no_grad():
                tracker(last)
    except (MemoryError, RuntimeError) as error:
        if tracker.parts.size is not None or len(images) == 1 or not out_of_memory(error):
            raise
        full = True
    if full:  # outside the handler: the exception holds on to every tensor of the failed try
        tracker.parts.halve(len(images))
        _run(make, tracker, images, labels, seed, restart)


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
        Pixels, logits or input gradients were NaN or infinite: their sign would pass for robustness.
    """
    parts = Parts()
    best = images.clone()
    finite = torch.ones((), dtype=torch.bool, device=images.device)
    margin = images.new_full((len(images),), -torch.inf)
    active = torch.arange(len(images), device=images.device)
    for restart in range(restarts):
        tracker = BestIterate(model, images[active], labels[active], parts)
        with frozen(model):
            _run(make, tracker, images[active], labels[active], seed, restart)
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
        raise NonFinite("pixels, logits or the input gradient are NaN or infinite")
    return best
