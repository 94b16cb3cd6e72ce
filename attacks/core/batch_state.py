"""A batch under attack by AutoAttack, Square or SPSA: its queries, best images and active samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .best_images import BestImages
from .beyond_doubt import broken_beyond_doubt
from .frozen_model import frozen
from .losses import margin, nonzero_gradient, wrong_classes
from .queried_model import QueriedModel
from .seeds import per_sample, seeded
from .types import Loss, Model, Seed


@contextmanager
def under_attack(
    model: Model, images: Tensor, labels: Tensor, seed: Seed, *, early_stopping: bool = True
) -> Iterator[BatchState]:
    """The state of an attack on a batch: images (N, C, H, W) in [0, 1], labels int64 (N,).

    In the block the model is `frozen`, and torch's generators are forked for a model that draws from them.
    `early_stopping` is that of `BatchState`.
    """
    with frozen(model), seeded(seed, restart=0, device=images.device):
        yield BatchState(model, images, labels, seed, early_stopping=early_stopping)


class BatchState:
    """A batch under attack, handed from one stage to the next.

    Of all queried images that of the largest margin is stored for each sample, and a sample that is
    `broken_beyond_doubt` is not queried again. Everything is per sample, so that no result depends on the
    batch.

    Attributes
    ----------
    images, labels, seeds
        The N unperturbed samples, and one seed for each.
    logits
        Of the unperturbed images, (N, K). A sample that is misclassified as it is, is not attacked.
    zero_gradient
        Samples whose input gradient was exactly zero at every query, bool (N,).
    saturated
        Samples the logit of whose class was exactly the same at every query, bool (N,): it is rounded or
        saturated, and a gradient shows only what changes the other logits.
    use_float64
        Samples whose gradients are taken in double precision, bool (N,); see `switch_to_float64`.

    Raises
    ------
    NonFinite
        The images, or the logits or input gradient of a query, are NaN or infinite: comparisons with NaN are
        false and its sign is taken for 0, so that either would count as robust.
    """

    def __init__(
        self, model: Model, images: Tensor, labels: Tensor, seed: Seed, *, early_stopping: bool = True
    ) -> None:
        self._model = QueriedModel.of(model)
        self.images, self.labels = images.detach(), labels
        self.seeds = per_sample(seed, len(images))
        self._best = BestImages(self.images, early_stopping=early_stopping)
        self.zero_gradient = torch.ones_like(self.active)
        self.saturated = torch.ones_like(self.active)
        self.use_float64 = torch.zeros_like(self.active)
        self._some_float64 = False
        self._first: Tensor | None = None
        self._model.require_finite(self.images, "pixels are")
        self._model.raise_pending()
        self.logits = self._query(self.rows, self.images, None)[0] if len(images) else images.new_empty(0, 1)

    @property
    def best(self) -> Tensor:
        """Best images so far, (N, C, H, W)."""
        return self._best.images

    @property
    def margin(self) -> Tensor:
        """Their margins max_{k != y} z_k - z_y, float64 (N,)."""
        return self._best.score

    @property
    def active(self) -> Tensor:
        """Which samples are not broken beyond doubt yet, bool (N,)."""
        return self._best.active

    @property
    def rows(self) -> Tensor:
        """Numbers of the samples that are not broken yet, (n,)."""
        return self.active.nonzero().flatten()

    def seeds_of(self, rows: Tensor) -> list[int]:
        """The seeds of the samples `rows`."""
        return [self.seeds[row] for row in rows.tolist()]

    def target(self, rank: int) -> Tensor:
        """The class of the `rank`-th largest logit of the unperturbed image among the wrong ones, (N,)."""
        return wrong_classes(self.logits, self.labels)[:, rank - 1]

    def query_margins(self, rows: Tensor, x: Tensor, inside: Tensor | None = None) -> Tensor:
        """Margins, float64 (n,), of the samples `rows` perturbed to `x` (n, C, H, W); no graph is built.

        `inside`, bool (n,), says which of `x` lie within the budget, None that all do: only these are stored.
        """
        return self._query(rows, x, inside)[1]

    def query_logits(self, rows: Tensor, x: Tensor, inside: Tensor | None = None) -> Tensor:
        """Logits (n, K) of the samples `rows` perturbed to `x`, which is stored as by `query_margins`."""
        return self._query(rows, x, inside)[0]

    def probe_margins(self, rows: Tensor, x: Tensor) -> Tensor:
        """Margins, float64 (n,), as of `query_margins`, of images that are not stored."""
        return margin(self._logits(x), self.labels[rows])

    def query_gradient(
        self, rows: Tensor, x: Tensor, loss: Loss, inside: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Values, float64 (n,), of `loss` at `x` (n, C, H, W) and its gradient there, of the shape of `x`.

        `x` is stored as by `query_margins`. For a sample in `use_float64` the gradient is scaled to a largest
        entry of 1, and costs one more forward pass.
        """
        if not self._some_float64:
            return self._query_gradient(rows, x, loss, inside)
        value, gradient = torch.zeros_like(self.margin[rows]), torch.zeros_like(x)
        in_float64 = self.use_float64[rows]
        for mask, ascend in (
            (in_float64, self._query_gradient_in_float64),
            (~in_float64, self._query_gradient),
        ):
            if bool(mask.any()):
                within = None if inside is None else inside[mask]
                value[mask], gradient[mask] = ascend(rows[mask], x[mask], loss, within)
        return value, gradient

    def switch_to_float64(self) -> None:
        """From now on compute the gradients of saturated samples in float64, as `use_float64`.

        These are `saturated` samples whose own logit has a nonzero gradient at the unperturbed image in
        float64 and a zero one in float32. That costs two forward and two backward passes per saturated
        sample. Margins are still those of the model in its own precision. A model that fails in float64 stays
        in float32.
        """
        rows = (self.saturated & self.active).nonzero().flatten()
        if not len(rows):
            return

        def own(logits: Tensor, rows: Tensor) -> Tensor:
            return logits.gather(1, self.labels[rows][:, None])[:, 0]

        x = self.images[rows]
        seen = nonzero_gradient(self._native_gradient(rows, x, own)[2])
        finer = self._float64_gradient(rows, x, own)
        if finer is not None:
            self.use_float64[rows] = nonzero_gradient(finer[1]) & ~seen
            self._some_float64 = bool(self.use_float64.any())

    def uses_float64(self, rows: Tensor) -> bool:
        """Whether the samples `rows` are in `use_float64`; a loss is computed for either kind separately."""
        return self._some_float64 and bool(self.use_float64[rows].any())

    def _query_gradient(
        self, rows: Tensor, x: Tensor, loss: Loss, inside: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        logits, value, gradient = self._native_gradient(rows, x, loss)
        self._keep(rows, x, logits, inside)
        return value.double(), gradient

    def _query_gradient_in_float64(
        self, rows: Tensor, x: Tensor, loss: Loss, inside: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        finer = self._float64_gradient(rows, x, loss)
        if finer is None:
            self.use_float64[rows] = False
            return self._query_gradient(rows, x, loss, inside)
        self._query(rows, x, inside)
        value, gradient = finer
        largest = gradient.abs().amax((1, 2, 3), keepdim=True)
        return value, (gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)).to(x)

    def _native_gradient(self, rows: Tensor, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        logits, value, gradient = self._model.gradient(rows, x, loss)
        self._model.raise_pending()
        self.zero_gradient[rows] &= ~nonzero_gradient(gradient)
        return logits, value, gradient

    def _float64_gradient(self, rows: Tensor, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor] | None:
        finer = self._model.gradient_in_double(rows, x, loss)
        if finer is not None:
            self.zero_gradient[rows] &= ~nonzero_gradient(finer[1])
        return finer

    def _query(self, rows: Tensor, x: Tensor, inside: Tensor | None) -> tuple[Tensor, Tensor]:
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
        self.saturated[rows] &= own == self._first[rows]
        sure = None
        if self._best.early_stopping:
            clean, labels = self.images[rows], self.labels[rows]
            sure = broken_beyond_doubt(self._model, x, logits, clean, labels, inside)
            self._model.raise_pending()
        self._best.offer(rows, x, found, inside, sure)
        return found
