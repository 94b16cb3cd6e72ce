"""Robust accuracy over a whole grid of radii in one run: the best image of every sample at every radius."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .best_images import BestImages
from .beyond_doubt import broken_as_stored
from .losses import answered, margin, minimum_reliable_margin
from .minimum_norm_search import Observer
from .norms import BUDGET_TOLERANCE, distance
from .queried_model import QueriedModel
from .seeds import per_sample
from .types import Model, Norm, Seed

SLACK = BUDGET_TOLERANCE / 2
"""How far projections in float32 may overstep a radius, in pixel units, times the radius above 1: half of
what the harness allows."""


class CurveSearch:
    """N samples under attack at each of S radii; an image found for one of them counts at every larger one.

    Attributes
    ----------
    images, labels, seeds
        The unperturbed samples, and one seed for each.
    radii
        Ascending, float64 (S,), in pixel units.
    missed_by_fmn
        Samples that AutoAttack broke where FMN had not, bool (N,): FMN is not relied on for them, at any
        radius.
    distance
        To the closest image of a `minimum_reliable_margin`, float64 (N,); infinity where none is known.
    zero_gradient
        Samples whose input gradient was exactly zero at some query, bool (N,): distances that were found
        without it are worth little.
    """

    def __init__(
        self, model: Model, images: Tensor, labels: Tensor, seed: Seed, radii: Sequence[float], norm: Norm
    ) -> None:
        self._model = QueriedModel.of(model)
        self.images, self.labels, self.norm = images.detach(), labels, norm
        self.seeds = per_sample(seed, len(images))
        self.radii = torch.tensor(radii, dtype=torch.float64, device=images.device)
        self._best = BestImages(self.images, levels=len(radii))
        self.distance = self.radii.new_full((len(images),), torch.inf)
        self.zero_gradient = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self.missed_by_fmn = self.zero_gradient.clone()

    @property
    def best(self) -> Tensor:
        """At each radius the image of the largest margin known inside it, (S, N, C, H, W).

        Monotone by construction: what lies inside one radius lies inside the next.
        """
        return self._best.images

    @property
    def broken(self) -> Tensor:
        """Whether an image inside the radius breaks the sample beyond doubt, bool (S, N).

        Such a sample is not attacked there again. Another image of a positive margin is stored in `best` too;
        the harness predicts it again.
        """
        return self._best.broken

    @property
    def all_samples(self) -> Tensor:
        """Numbers of all samples, (N,)."""
        return torch.arange(len(self.images), device=self.images.device)

    def count_unbroken(self) -> list[int]:
        """How many samples are not broken at each radius."""
        return [int(count) for count in (~self.broken).sum(1)]

    def seeds_of(self, rows: Tensor) -> list[int]:
        """The seeds of the samples `rows` (n,)."""
        return [self.seeds[row] for row in rows.tolist()]

    def observer(self, rows: Tensor) -> Observer:
        """What notes here every answer about the samples `rows` (n,)."""

        def observe(x: Tensor, logits: Tensor, gradient: Tensor | None) -> None:
            if gradient is not None:
                self.zero_gradient[rows] |= (gradient == 0).flatten(1).all(1) & answered(logits)
            found = margin(logits, self.labels[rows])
            self.offer(rows, x, found, found > minimum_reliable_margin(logits))

        return observe

    def offer(self, rows: Tensor, x: Tensor, found: Tensor, certain: Tensor) -> None:
        """Keep images `x` (n, C, H, W) of the samples `rows` with margins `found`, at each radius they fit.

        `certain`, bool (n,), says which of them are adversarial by more than rounding. Those that would be
        the first of a sample inside some radius are asked about again, as `broken_as_stored`.
        """
        likely = found > 0
        if not bool(likely.any()):
            return
        rows, x, found, certain = rows[likely], x[likely], found[likely], certain[likely]
        length = distance(x, self.images[rows], self.norm)
        self.distance[rows] = torch.minimum(self.distance[rows], torch.where(certain, length, torch.inf))
        inside = length[None] <= (self.radii + SLACK * self.radii.clamp_min(1))[:, None]
        inside &= ~self.broken[:, rows]
        sure = inside.any(0) & certain
        due = rows[sure]
        if len(due):
            clean, labels = self.images[due], self.labels[due]
            sure[sure.clone()] = broken_as_stored(self._model, x[sure], clean, labels)
        s, i = (inside & ((found[None] > self._best.score[:, rows]) | sure)).nonzero(as_tuple=True)
        self._best.offer((s, rows[i]), x[i], found[i], sure=sure[i])

    def remaining(self, done: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """Which samples to attack at which radii: numbers of radii (n,) and of samples (n,).

        Parameters
        ----------
        done
            Where it has been attacked, bool (S, N).
        reach
            At each radius, how many times farther than it the closest known image may lie, float64 (S,).
        """
        near = self.distance[None] <= reach[:, None] * self.radii[:, None]
        near[-1] |= self.distance.isinf()
        wanted = (
            ~self.broken
            & ~done
            & (self.radii > 0)[:, None]
            & (near | self.zero_gradient | self.missed_by_fmn)
        )
        at, rows = wanted.nonzero(as_tuple=True)
        return at, rows
