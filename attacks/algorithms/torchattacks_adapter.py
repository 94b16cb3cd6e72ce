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

from ..core.best_images import BestImages
from ..core.beyond_doubt import broken_as_stored, broken_beyond_doubt
from ..core.frozen_model import frozen
from ..core.losses import margin
from ..core.memory import out_of_memory
from ..core.queried_model import QueriedModel
from ..core.seeds import seeded
from ..core.types import Model, Seed


class TrackedModel(nn.Module):
    """The model as torchattacks sees it: it notes the best image of each sample, and has no mode to switch.

    Parameters
    ----------
    best
        Of all N samples, by their margin in the precision of the images. With early stopping the model is
        asked about active samples only, those that are not `broken_beyond_doubt`.
    images, labels
        Of the n samples that this run attacks, unperturbed.
    rows
        Their numbers, (n,).

    Attributes
    ----------
    last
        Whether the next query is the last of all: then only breaks of samples in doubt are looked at twice.
    """

    def __init__(
        self, model: QueriedModel, best: BestImages, images: Tensor, labels: Tensor, rows: Tensor
    ) -> None:
        super().__init__()
        # in a tuple, so that no mode or parameter of the model can be reached
        self._state = (model, best, images)
        self._labels, self._rows, self.last = labels, rows, False
        self._anchor = nn.Parameter(best.images.new_empty(0), requires_grad=False)  # tells the device
        self._classes = 0

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, K) of the n samples in their original order; zeros for those that are not active."""
        model, best, _ = self._state
        everyone = torch.arange(len(images), device=images.device)
        active = everyone
        if best.early_stopping:
            active = best.active[self._rows].nonzero().flatten()
        if len(active) == len(everyone):
            logits = model.differentiable(images)
            self._keep(everyone, images, logits)
            return logits
        nothing = images.flatten(1)[:, :1].mul(0).expand(-1, self._classes)  # zeros with a gradient of zero
        if not len(active):
            return nothing
        logits = model.differentiable(images[active])
        self._keep(active, images[active], logits)
        return nothing.to(logits).index_copy(0, active, logits)

    @torch.no_grad()
    def _keep(self, part: Tensor, images: Tensor, logits: Tensor) -> None:
        model, best, clean = self._state
        self._classes, rows = logits.shape[1], self._rows[part]
        labels, sure = self._labels[part], None
        if best.early_stopping:
            doubtful = best.score[rows] > 0 if self.last else None
            sure = broken_beyond_doubt(model, images, logits, clean[part], labels, doubtful)
        best.offer(rows, images, margin(logits, labels), sure=sure)

    def release(self) -> None:
        """Let go of all images: torchattacks' objects are cycles, and live until they are collected."""
        del self._state


def can_stop_early(images: Tensor) -> bool:
    """Whether to check after every query which samples are broken: on a CPU, which need not be waited for."""
    return images.device.type == "cpu"


def _run(
    make: Callable[[nn.Module], Attack],
    model: QueriedModel,
    tracked: TrackedModel,
    images: Tensor,
    labels: Tensor,
    seed: Seed,
    restart: int,
    final: bool,
) -> None:
    """One run of the attack, and one more after the first time that memory runs out for a gradient, or that
    it cannot be had for some sample.
    """
    try:
        with seeded(seed, restart=restart, device=images.device):
            with torch.enable_grad():
                last = make(tracked)(images, labels)
            tracked.last = final
            with torch.no_grad():
                tracked(last)
            return
    except Exception as error:
        split = model.largest_batch is not None and model.largest_batch < len(images)
        full = out_of_memory(error) and not split and len(images) > 1
        if not full and not model.retry(error):
            raise
    if full:  # outside the handler: the exception holds on to every tensor of the failed try
        model.halve_batch(len(images))
    tracked.last = False
    _run(make, model, tracked, images, labels, seed, restart, final)


def run_torchattacks(
    make: Callable[[nn.Module], Attack],
    model: Model,
    images: Tensor,
    labels: Tensor,
    seed: Seed,
    *,
    early_stopping: bool,
    restarts: int = 1,
) -> Tensor:
    """Run ``make(model)`` up to `restarts` times; the image of each sample's largest margin, (N, C, H, W).

    A sample that is broken beyond doubt takes no part in later restarts; a GPU is waited for twice between
    two, to see which may be and which are, and once at the end. With `early_stopping`, and on a CPU, it is
    attacked no further within a run either. Without, it is attacked to the end of the run: for images to
    train on or to score on another model.

    Raises
    ------
    NonFinite
        Pixels, logits or input gradients were NaN or infinite: their sign would pass for robustness.
    """
    queried = QueriedModel.of(model, deferred=True)
    queried.require_finite(images, "pixels are")
    best = BestImages(images, early_stopping=early_stopping and can_stop_early(images), dtype=images.dtype)
    rows = torch.arange(len(images), device=images.device)
    for restart in range(restarts):
        if restart:
            if not best.early_stopping:
                doubtful = rows[best.score[rows] > 0]
                found, clean = best.images[doubtful], images[doubtful]
                holds = broken_as_stored(queried, found, clean, labels[doubtful])
                best.stop(doubtful, holds)
                if early_stopping:
                    best.forget(doubtful, ~holds)
            rows = rows[~best.broken[rows]]
        if not len(rows):
            break
        x, y = images[rows], labels[rows]
        tracked = TrackedModel(queried, best, x, y, rows)
        with frozen(queried):
            _run(make, queried, tracked, x, y, seed, restart, restart + 1 == restarts)
        tracked.release()
    queried.raise_pending()
    return best.images
