"""Robust accuracy over a whole grid of radii in one run: the best image of every sample at every radius."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .best_images import BestImages
from .losses import margin, rounding
from .minimum_norm_search import Watch
from .norms import BUDGET_TOLERANCE, distance
from .seeds import per_sample
from .types import Norm, Seed

SLACK = BUDGET_TOLERANCE / 2
"""How far projections in float32 may overstep a radius, in pixel units, times the radius above 1: half of
what the harness allows."""


class Curve:
    """N samples under attack at each of S radii; an image found for one of them counts at every larger one.

    Attributes
    ----------
    images, labels, seeds
        The samples as they were given, and one seed for each.
    radii
        Ascending, float64 (S,), in pixel units.
    missed
        Samples that the cascade broke where the minimal-norm attack had not, bool (N,): that is not to be
        relied on for them, at any radius.
    distance
        To the closest image of such a margin, float64 (N,); infinity where none is known.
    blind
        Samples whose input gradient was exactly zero at some query, bool (N,): distances that were found
        without it are worth little.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, seed: Seed, radii: Sequence[float], norm: Norm
    ) -> None:
        self.images, self.labels, self.norm = images.detach(), labels, norm
        self.seeds = per_sample(seed, len(images))
        self.radii = torch.tensor(radii, dtype=torch.float64, device=images.device)
        self._best = BestImages(self.images, levels=len(radii))
        self.distance = self.radii.new_full((len(images),), torch.inf)
        self.blind = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self.missed = self.blind.clone()

    @property
    def best(self) -> Tensor:
        """At each radius the image of the largest margin known inside it, (S, N, C, H, W).

        Monotone by construction: what lies inside one radius lies inside the next.
        """
        return self._best.images

    @property
    def broken(self) -> Tensor:
        """Whether an image inside the radius has a margin positive by more than rounding, bool (S, N).

        Nothing more is spent there. A smaller positive margin is kept in `best` as well, and whether it holds
        is for whoever predicts it again.
        """
        return ~self._best.active

    def stop(self, number: int, rows: Tensor) -> None:
        """The samples `rows` (n,) are broken at the radius of that number."""
        self._best.stop((torch.full_like(rows, number), rows), torch.ones_like(rows, dtype=torch.bool))

    @property
    def everyone(self) -> Tensor:
        """Numbers of all samples, (N,)."""
        return torch.arange(len(self.images), device=self.images.device)

    def standing(self) -> list[int]:
        """How many samples stand at each radius."""
        return [int(count) for count in (~self.broken).sum(1)]

    def seeds_of(self, rows: Tensor) -> list[int]:
        """The seeds of the samples `rows` (n,)."""
        return [self.seeds[row] for row in rows.tolist()]

    def watching(self, rows: Tensor) -> Watch:
        """What notes here every answer about the samples `rows` (n,)."""

        def watch(x: Tensor, logits: Tensor, gradient: Tensor | None) -> None:
            if gradient is not None:
                self.blind[rows] |= (gradient == 0).flatten(1).all(1)
            found = margin(logits, self.labels[rows])
            self.note(rows, x, found, found > rounding(logits))

        return watch

    def note(self, rows: Tensor, x: Tensor, found: Tensor, sure: Tensor) -> None:
        """Keep images `x` (n, C, H, W) of the samples `rows` with margins `found`, at each radius they fit.

        `sure`, bool (n,), says which of them are adversarial by more than rounding.
        """
        likely = found > 0
        if not bool(likely.any()):
            return
        rows, x, found, sure = rows[likely], x[likely], found[likely], sure[likely]
        length = distance(x, self.images[rows], self.norm)
        self.distance[rows] = torch.minimum(self.distance[rows], torch.where(sure, length, torch.inf))
        inside = length[None] <= (self.radii + SLACK * self.radii.clamp_min(1))[:, None]
        s, i = (inside & (found[None] > self._best.score[:, rows])).nonzero(as_tuple=True)
        self._best.offer((s, rows[i]), x[i], found[i])
        s, i = (inside & sure[None]).nonzero(as_tuple=True)
        self._best.stop((s, rows[i]), sure[i])

    def due(self, done: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """Where samples are still to be attacked: numbers of radii and of samples, a pair for each attack.

        Parameters
        ----------
        done
            Where it has been attacked, bool (S, N).
        reach
            At each radius, how many times farther than it the closest known image may lie, float64 (S,).
        """
        near = self.distance[None] <= reach[:, None] * self.radii[:, None]
        near[-1] |= self.distance.isinf()
        wanted = ~self.broken & ~done & (self.radii > 0)[:, None] & (near | self.blind | self.missed)
        at, rows = wanted.nonzero(as_tuple=True)
        return at, rows
