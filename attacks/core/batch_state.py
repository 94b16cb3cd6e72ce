"""The samples under attack: who is still classified correctly, and every sample's best image so far."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .best_images import BestImages
from .frozen_model import frozen
from .losses import margin, nonzero_gradient, rounding, wrong_classes
from .queried_model import QueriedModel
from .seeds import per_sample, seeded
from .types import Loss, Model, Seed


@contextmanager
def under_attack(
    model: Model, images: Tensor, labels: Tensor, seed: Seed, *, early_stopping: bool = True
) -> Iterator[Survivors]:
    """The samples of a batch, all of them to be broken: images (N, C, H, W) in [0, 1], labels (N,).

    In the block the model is `frozen` and torch's generators are forked, for a model that draws from them.
    `early_stopping` is that of `Survivors`.
    """
    with frozen(model), seeded(seed, restart=0, device=images.device):
        yield Survivors(model, images, labels, seed, early_stopping=early_stopping)


class Survivors:
    """A batch under attack, handed from one stage to the next.

    Every query is looked at: the image of the largest margin is kept per sample, and a sample that is broken
    takes no part in later queries. All of it is per sample, so that no result depends on the batch.

    Attributes
    ----------
    images, labels, seeds
        The N samples as they were given, and one seed for each.
    logits
        Of the images as they are, (N, K); a sample that is wrong already is left alone.
    blind
        Samples whose input gradient was exactly zero whenever it was asked for, bool (N,).
    still
        Samples the logit of whose class was exactly the same in every answer, bool (N,): it is rounded or
        saturated, and gradients show what moves the other logits alone.
    fine
        Samples whose gradients are taken in double precision, bool (N,); see `refine`.

    Notes
    -----
    A sample is broken here once its margin is positive by more than rounding: the harness predicts it again
    in a batch of another size, where the last digits of its logits differ. Closer ones are searched on.

    Raises
    ------
    NonFinite
        The images, or a query's logits or input gradient, are NaN or infinite: comparisons with NaN are
        false and the sign of NaN passes for 0, so that either would score as robust.
    """

    def __init__(
        self, model: Model, images: Tensor, labels: Tensor, seed: Seed, *, early_stopping: bool = True
    ) -> None:
        self._model = QueriedModel.of(model)
        self.images, self.labels = images.detach(), labels
        self.seeds = per_sample(seed, len(images))
        self._best = BestImages(self.images, early_stopping=early_stopping)
        self.blind = torch.ones_like(self.standing)
        self.still = torch.ones_like(self.standing)
        self.fine = torch.zeros_like(self.standing)
        self._refined = False
        self._first: Tensor | None = None
        self._model.require_finite(self.images, "pixels are")
        self._model.raise_pending()
        self.logits = self._look(self.rows, self.images, None)[0] if len(images) else images.new_empty(0, 1)

    @property
    def best(self) -> Tensor:
        """Best images so far, (N, C, H, W)."""
        return self._best.images

    @property
    def margin(self) -> Tensor:
        """Their margins max_{k != y} z_k - z_y, float64 (N,)."""
        return self._best.score

    @property
    def standing(self) -> Tensor:
        """Which samples are not broken yet, bool (N,)."""
        return self._best.active

    @property
    def rows(self) -> Tensor:
        """Numbers of the samples that are not broken yet, (n,)."""
        return self.standing.nonzero().flatten()

    def seeds_of(self, rows: Tensor) -> list[int]:
        """The seeds of the samples `rows`."""
        return [self.seeds[row] for row in rows.tolist()]

    def target(self, rank: int) -> Tensor:
        """The class of the `rank`-th largest logit of the unperturbed image among the wrong ones, (N,)."""
        return wrong_classes(self.logits, self.labels)[:, rank - 1]

    def ask(self, rows: Tensor, x: Tensor, inside: Tensor | None = None) -> Tensor:
        """Margins, float64 (n,), of the samples `rows` perturbed to `x` (n, C, H, W); no graph is built.

        `inside`, bool (n,), tells which of `x` keep the budget, if not all do: only these are kept.
        """
        return self._look(rows, x, inside)[1]

    def read(self, rows: Tensor, x: Tensor, inside: Tensor | None = None) -> Tensor:
        """Logits (n, K) of the samples `rows` perturbed to `x`, which is kept as in `ask`."""
        return self._look(rows, x, inside)[0]

    def probe(self, rows: Tensor, x: Tensor) -> Tensor:
        """Margins as `ask` gives them, of images that are not to be kept."""
        return margin(self._logits(x), self.labels[rows])

    def ascend(
        self, rows: Tensor, x: Tensor, loss: Loss, inside: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Values, float64 (n,), of `loss` at `x` (n, C, H, W) and a gradient there; `x` is kept as in `ask`.

        The gradient of a `fine` sample is scaled to a largest entry of 1, and costs a forward pass more.
        """
        if not self._refined:
            return self._ascend(rows, x, loss, inside)
        value, gradient = torch.zeros_like(self.margin[rows]), torch.zeros_like(x)
        fine = self.fine[rows]
        for mask, ascend in ((fine, self._ascend_finely), (~fine, self._ascend)):
            if bool(mask.any()):
                within = None if inside is None else inside[mask]
                value[mask], gradient[mask] = ascend(rows[mask], x[mask], loss, within)
        return value, gradient

    def refine(self) -> None:
        """From here on take the gradients of saturated samples in double precision.

        They stand `still`, and their own logit has a slope at the unperturbed image in double precision and
        none in single: two queries forwards and backwards of each that stands still. What counts remains what
        the model answers in its own precision. A model that fails in double precision is left as it is.
        """
        rows = (self.still & self.standing).nonzero().flatten()
        if not len(rows):
            return

        def own(logits: Tensor, rows: Tensor) -> Tensor:
            return logits.gather(1, self.labels[rows][:, None])[:, 0]

        x = self.images[rows]
        seen = nonzero_gradient(self._slope(rows, x, own)[2])
        finer = self._finer(rows, x, own)
        if finer is not None:
            self.fine[rows] = nonzero_gradient(finer[1]) & ~seen
            self._refined = bool(self.fine.any())

    def finely(self, rows: Tensor) -> bool:
        """Whether the samples `rows`, of one sort, are `fine`: a loss is asked about the two sorts apart."""
        return self._refined and bool(self.fine[rows].any())

    def _ascend(self, rows: Tensor, x: Tensor, loss: Loss, inside: Tensor | None) -> tuple[Tensor, Tensor]:
        logits, value, gradient = self._slope(rows, x, loss)
        self._keep(rows, x, logits, inside)
        return value.double(), gradient

    def _ascend_finely(
        self, rows: Tensor, x: Tensor, loss: Loss, inside: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        finer = self._finer(rows, x, loss)
        if finer is None:
            self.fine[rows] = False
            return self._ascend(rows, x, loss, inside)
        self._look(rows, x, inside)
        value, gradient = finer
        largest = gradient.abs().amax((1, 2, 3), keepdim=True)
        return value, (gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)).to(x)

    def _slope(self, rows: Tensor, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        logits, value, gradient = self._model.gradient(rows, x, loss)
        self._model.raise_pending()
        self.blind[rows] &= ~nonzero_gradient(gradient)
        return logits, value, gradient

    def _finer(self, rows: Tensor, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor] | None:
        finer = self._model.gradient_in_double(rows, x, loss)
        if finer is not None:
            self.blind[rows] &= ~nonzero_gradient(finer[1])
        return finer

    def _look(self, rows: Tensor, x: Tensor, inside: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = self._logits(x)
        return logits, self._keep(rows, x, logits, inside)

    def _logits(self, x: Tensor) -> Tensor:
        logits = self._model.logits(x)
        self._model.raise_pending()
        return logits

    def _keep(self, rows: Tensor, x: Tensor, logits: Tensor, inside: Tensor | None) -> Tensor:
        found = margin(logits, self.labels[rows])
        own = logits.gather(1, self.labels[rows][:, None])[:, 0]
        if self._first is None:
            self._first = own.clone()
        self.still[rows] &= own == self._first[rows]
        better = self._best.offer(rows, x, found, inside)
        self._best.stop(rows, better & (found > rounding(logits)))
        return found
