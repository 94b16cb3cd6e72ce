"""The one place that talks to torchattacks, and works around what must not be trusted in it.

torchattacks 3.5.1: PGD returns its last iterate, has no restarts, draws from the global generator,
caches the device when built and switches the model's mode. So the model is handed over behind a
module of our own that keeps the best iterate and has no mode to switch; generators are forked.

Its attacks go on with every sample of the batch until their last step. On a CPU the module therefore answers
for a sample that is broken by itself, with logits that have no gradient, so that the sample stays where it is
and costs nothing more. On a GPU that would mean to wait for the device at every step: there a broken sample
goes on to the end of the run, and takes no part in the next one.

It draws the starts of a batch from one stream, so a batch cannot be divided without changing them. Where
memory runs out the attack begins again, and `InParts` asks the model about a part of the batch at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchattacks.attack import Attack

from ..._errors import NonFinite
from ..core.frozen_model import frozen
from ..core.losses import hairline, margin
from ..core.memory import Parts, out_of_memory
from ..core.seeds import seeded
from ..core.types import Model, Seed


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

    Attributes
    ----------
    images
        Best images so far, (N, C, H, W).
    margin
        Their margins max_{k != y} z_k - z_y, (N,), in the images' precision; -inf before the first query.
    standing
        Which samples are not broken yet by more than a `hairline`, bool (N,).
    """

    def __init__(
        self, model: Model, images: Tensor, labels: Tensor, parts: Parts | None = None, *, stop: bool = False
    ) -> None:
        """With `stop`, `model` is asked about standing samples only."""
        super().__init__()
        self._model = (model,)  # in a tuple, so that no mode or parameter of it can be reached
        self._labels, self._parts, self._stop = labels, parts or Parts(), stop
        self._anchor = nn.Parameter(images.new_empty(0), requires_grad=False)  # tells torchattacks the device
        self._finite = images.isfinite().all()
        self.images = images.clone()
        self.margin = images.new_full((len(images),), -torch.inf)
        self.standing = torch.ones(len(images), dtype=torch.bool, device=images.device)
        self._classes = 0

    @property
    def parts(self) -> Parts:
        """How many samples at a time the model is asked about."""
        return self._parts

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of the N samples in their original order; zeros for those it stopped working on."""
        if not self._stop or bool(self.standing.all()):
            logits = self._ask(images)
            self._keep(slice(None), images, logits)
            return logits
        rows = self.standing.nonzero().flatten()
        nothing = images.flatten(1)[:, :1].mul(0).expand(-1, self._classes)  # zeros with a gradient of zero
        if not len(rows):
            return nothing
        logits = self._ask(images[rows])
        self._keep(rows, images[rows], logits)
        return nothing.to(logits).index_copy(0, rows, logits)

    @torch.no_grad()
    def _keep(self, rows: Tensor | slice, images: Tensor, logits: Tensor) -> None:
        self._classes = logits.shape[1]
        self._finite &= logits.isfinite().all()
        exact = margin(logits, self._labels[rows])
        found = exact.to(self.margin)
        better = found > self.margin[rows]
        self.margin[rows] = torch.where(better, found, self.margin[rows])
        self.images[rows] = torch.where(better.view(-1, 1, 1, 1), images.detach(), self.images[rows])
        self.standing[rows] &= exact <= hairline(logits)

    def _ask(self, images: Tensor) -> Tensor:
        (model,) = self._model
        if not images.requires_grad:
            return self._parts(lambda x: (model(x),), images)[0]
        images.register_hook(self._see)
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


def lets_go_at_once(images: Tensor) -> bool:
    """Whether an attack may look at what is broken after every query: where nobody has to wait for it."""
    return images.device.type == "cpu"


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
    stop: bool,
    restarts: int = 1,
) -> Tensor:
    """Run ``make(model)`` up to `restarts` times and return every sample's best iterate.

    A sample that is broken takes no part in later restarts; a GPU is waited for once between two, to see
    which those are, and once at the end. With `stop`, and on a CPU, a sample is let go within a run already.
    Without it, it is pushed on to the end of the run, as an attack asks for whose images are meant for
    training or for another model.

    Raises
    ------
    NonFinite
        Pixels, logits or input gradients were NaN or infinite: their sign would pass for robustness.
    """
    parts = Parts()
    best = images.clone()
    finite = torch.ones((), dtype=torch.bool, device=images.device)
    reached = images.new_full((len(images),), -torch.inf)
    active = torch.arange(len(images), device=images.device)
    for restart in range(restarts):
        at_once = stop and lets_go_at_once(images)
        tracker = BestIterate(model, images[active], labels[active], parts, stop=at_once)
        with frozen(model):
            _run(make, tracker, images[active], labels[active], seed, restart)
        finite &= tracker.finite
        better = tracker.margin > reached[active]
        best[active] = torch.where(better.view(-1, 1, 1, 1), tracker.images, best[active])
        reached[active] = torch.where(better, tracker.margin, reached[active])
        tracker.images = images[:0]  # torchattacks' objects are cycles: they keep it until they are collected
        if restart + 1 == restarts:
            break
        active = active[tracker.margin <= 0]
        if not len(active):
            break
    if not bool(finite):
        raise NonFinite("pixels, logits or the input gradient are NaN or infinite")
    return best
