"""The one place that talks to torchattacks, and works around what must not be trusted in it.

torchattacks 3.5.1: PGD returns its last iterate, has no restarts, draws from the global generator,
caches the device when built and switches the model's mode. So the model is handed over behind a
module of our own that keeps the best iterate and has no mode to switch; generators are forked.

Its attacks go on with every sample of the batch until their last step. On a CPU the module therefore answers
for a sample that is broken by itself, with logits that have no gradient, so that the sample stays where it is
and costs nothing more. On a GPU that would mean to wait for the device at every step: there a broken sample
goes on to the end of the run, and takes no part in the next one.

It draws the starts of a batch from one stream, so a batch cannot be divided without changing them. Where
memory runs out the attack begins again, and the model is asked about a part of the batch at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchattacks.attack import Attack

from ..core.frozen_model import frozen
from ..core.losses import hairline, margin
from ..core.memory import out_of_memory
from ..core.queried_model import QueriedModel
from ..core.seeds import seeded
from ..core.types import Model, Seed


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

    def __init__(self, model: Model, images: Tensor, labels: Tensor, *, stop: bool = False) -> None:
        """With `stop`, `model` is asked about standing samples only."""
        super().__init__()
        asked = QueriedModel.of(model, deferred=True)
        self._model = (asked,)  # in a tuple, so that no mode or parameter of it can be reached
        self._labels, self._stop = labels, stop
        self._anchor = nn.Parameter(images.new_empty(0), requires_grad=False)  # tells torchattacks the device
        self.images = images.clone()
        self.margin = images.new_full((len(images),), -torch.inf)
        self.standing = torch.ones(len(images), dtype=torch.bool, device=images.device)
        self._classes = 0

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of the N samples in their original order; zeros for those it stopped working on."""
        (model,) = self._model
        if not self._stop or bool(self.standing.all()):
            logits = model.differentiable(images)
            self._keep(slice(None), images, logits)
            return logits
        rows = self.standing.nonzero().flatten()
        nothing = images.flatten(1)[:, :1].mul(0).expand(-1, self._classes)  # zeros with a gradient of zero
        if not len(rows):
            return nothing
        logits = model.differentiable(images[rows])
        self._keep(rows, images[rows], logits)
        return nothing.to(logits).index_copy(0, rows, logits)

    @torch.no_grad()
    def _keep(self, rows: Tensor | slice, images: Tensor, logits: Tensor) -> None:
        self._classes = logits.shape[1]
        exact = margin(logits, self._labels[rows])
        found = exact.to(self.margin)
        better = found > self.margin[rows]
        self.margin[rows] = torch.where(better, found, self.margin[rows])
        self.images[rows] = torch.where(better.view(-1, 1, 1, 1), images.detach(), self.images[rows])
        self.standing[rows] &= exact <= hairline(logits)


def lets_go_at_once(images: Tensor) -> bool:
    """Whether an attack may look at what is broken after every query: where nobody has to wait for it."""
    return images.device.type == "cpu"


def _run(
    make: Callable[[nn.Module], Attack],
    model: QueriedModel,
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
        split = model.largest_batch is not None and model.largest_batch < len(images)
        if split or len(images) == 1 or not out_of_memory(error):
            raise
        full = True
    if full:  # outside the handler: the exception holds on to every tensor of the failed try
        model.halve_batch(len(images))
        _run(make, model, tracker, images, labels, seed, restart)


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
    asked = QueriedModel.of(model, deferred=True)
    asked.require_finite(images, "pixels are")
    best = images.clone()
    reached = images.new_full((len(images),), -torch.inf)
    active = torch.arange(len(images), device=images.device)
    for restart in range(restarts):
        at_once = stop and lets_go_at_once(images)
        tracker = BestIterate(asked, images[active], labels[active], stop=at_once)
        with frozen(asked):
            _run(make, asked, tracker, images[active], labels[active], seed, restart)
        better = tracker.margin > reached[active]
        best[active] = torch.where(better.view(-1, 1, 1, 1), tracker.images, best[active])
        reached[active] = torch.where(better, tracker.margin, reached[active])
        tracker.images = images[:0]  # torchattacks' objects are cycles: they keep it until they are collected
        if restart + 1 == restarts:
            break
        active = active[tracker.margin <= 0]
        if not len(active):
            break
    asked.raise_pending()
    return best
