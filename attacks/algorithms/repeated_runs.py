"""Runs of an attack that asks about whole batches of images: the best image of each sample, over restarts.

The attack is any function ``attack(model, images, labels)`` that returns its last images: FGSM and PGD, or
an attack of another library. It draws from torch's generators, which are seeded and forked here, and is
handed the model behind a module that keeps the best image that was asked about and has no mode to switch.

It goes on with every sample of the batch until its last step. On a CPU the module therefore answers for a
sample that is broken by itself, with logits that have no gradient, so that the sample stays where it is and
costs nothing more. On a GPU that would mean to wait for the device at every step: there a broken sample goes
on to the end of the run, and takes no part in the next one.

The starts of a batch are drawn from one stream, so a batch cannot be divided without changing them. Where
memory runs out the attack begins again, and the model is asked about a part of the batch at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ..core.best_images import BestImages
from ..core.beyond_doubt import broken_as_stored, broken_beyond_doubt
from ..core.frozen_model import frozen
from ..core.losses import margin
from ..core.memory import out_of_memory
from ..core.norms import BUDGET_TOLERANCE, violation
from ..core.queried_model import QueriedModel
from ..core.seeds import seeded
from ..core.types import Model, Norm, Seed

Attack: TypeAlias = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""``attack(model, images, labels)`` asks the model about perturbed images (n, C, H, W), and returns the last.

The model answers logits (n, K) for n images, in the order in which the attack was handed its samples.
"""


class TrackedModel(nn.Module):
    """The model as an attack sees it: it notes the best image of each sample, and has no mode to switch.

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
    budget
        Radius and norm within which an image counts, for an attack that may ask about others: transformed
        ones, fewer or more than it was handed. None for one that keeps to its samples and its budget.
    """

    def __init__(
        self,
        model: QueriedModel,
        best: BestImages,
        images: Tensor,
        labels: Tensor,
        rows: Tensor,
        budget: tuple[float, Norm] | None = None,
    ) -> None:
        super().__init__()
        # in a tuple, so that no mode or parameter of the model can be reached
        self._state = (model, best, images)
        self._labels, self._rows, self.last, self.budget = labels, rows, False, budget
        self._anchor = nn.Parameter(best.images.new_empty(0), requires_grad=False)  # tells the device
        self._classes = 0

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, K) of the n samples in their original order; zeros for those that are not active."""
        model, best, clean = self._state
        if self.budget is not None and images.shape != clean.shape:
            return model.differentiable(images)
        if self.budget is not None:  # NaN where it divided by a gradient that is zero
            images = torch.where(images.isfinite().flatten(1).all(1).view(-1, 1, 1, 1), images, clean)
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
        labels, sure, inside = self._labels[part], None, None
        if self.budget is not None:
            radius, norm = self.budget
            excess = violation(images, clean[part], radius, norm)
            inside = excess <= BUDGET_TOLERANCE * max(1.0, radius)
        if best.early_stopping:
            doubtful = best.score[rows] > 0 if self.last else None
            sure = broken_beyond_doubt(model, images, logits, clean[part], labels, doubtful)
        best.offer(rows, images.to(clean), margin(logits, labels), inside, sure)

    def release(self) -> None:
        """Let go of all images: an attack that is an object may live on until it is collected."""
        del self._state


def can_stop_early(images: Tensor) -> bool:
    """Whether to check after every query which samples are broken: on a CPU, which need not be waited for."""
    return images.device.type == "cpu"


def _run(
    attack: Attack,
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
                last = attack(tracked, images, labels)
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
    _run(attack, model, tracked, images, labels, seed, restart, final)


def run_repeatedly(
    attack: Attack,
    model: Model,
    images: Tensor,
    labels: Tensor,
    seed: Seed,
    *,
    early_stopping: bool,
    restarts: int = 1,
    budget: tuple[float, Norm] | None = None,
) -> Tensor:
    """Run `attack` up to `restarts` times; the image of each sample's largest margin, (N, C, H, W).

    A sample that is broken beyond doubt takes no part in later restarts; a GPU is waited for twice between
    two, to see which may be and which are, and once at the end. With `early_stopping`, and on a CPU, it is
    attacked no further within a run either. Without, it is attacked to the end of the run: for images to
    train on or to score on another model. `budget` is that of `TrackedModel`.

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
        tracked = TrackedModel(queried, best, x, y, rows, budget)
        with frozen(queried):
            _run(attack, queried, tracked, x, y, seed, restart, restart + 1 == restarts)
        tracked.release()
    queried.raise_pending()
    return best.images
