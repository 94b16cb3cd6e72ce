"""What the minimal-norm attacks share: asking the model, and each sample's closest adversarial image.

Nothing here looks across samples, so a sample's result does not depend on its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .best_images import BestImages
from .frozen_model import frozen
from .losses import misclassified, wrong_classes
from .norms import distance, normalise_l2, norms_of, onto_ball, per_image
from .queried_model import QueriedModel
from .sampling import draw, normal, uniform_unit
from .seeds import seeded
from .types import Model, Norm, Seed

Fill = Callable[[np.random.Generator, np.ndarray], None]
ORDER: dict[Norm, float] = {"linf": torch.inf, "l2": 2}

Run = Callable[["MinimumNormSearch", Tensor, Tensor | None], None]
"""``run(search, start, target)``: one descent from `start` (N, C, H, W) towards the classes `target` (N,).

None stands for the strongest other class at each iterate. `search` stores what is found.
"""
Lead = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""``lead(logits, labels, target)``: how far class y is ahead, (N,); see `logit_lead`."""
Observer = Callable[[Tensor, Tensor, Tensor | None], None]
"""``observe(images, logits, gradient)`` is called with each answer of the model; gradient None where none was
asked for."""


class MinimumNormSearch:
    """A search for the closest adversarial image of each of N samples.

    Attributes
    ----------
    images, labels
        The unperturbed images (N, C, H, W) and their classes (N,).
    max_distance
        The distance to the farthest corner of the box, (N,): no image is farther.
    runs
        How often it was started again.
    """

    def __init__(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        norm: Norm,
        seed: Seed,
        observe: Observer = lambda images, logits, gradient: None,
    ) -> None:
        self.images, self.labels, self.norm = images.detach(), labels, norm
        self._best = BestImages(self.images)
        corner = torch.where(self.images < 0.5, 1.0, 0.0).to(self.images)
        self.max_distance = distance(corner, self.images, norm).to(images)
        self._model, self._seed, self._observe = QueriedModel.of(model, deferred=True), seed, observe
        self._clean: Tensor | None = None
        self._noise: Tensor | None = None
        self.runs = 0
        self._model.require_finite(self.images, "pixels are")

    @property
    def best(self) -> Tensor:
        """The closest adversarial images so far, (N, C, H, W); the unperturbed ones where none is known."""
        return self._best.images

    @property
    def distance(self) -> Tensor:
        """Their distances, float64 (N,), in pixel units; infinity where none is known."""
        return -self._best.score

    def query_gradient(
        self, images: Tensor, target: Tensor | None, lead: Lead | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Ask for logits and a gradient at `images`: one forward, one backward.

        Parameters
        ----------
        lead
            What is differentiated, as ``lead(logits, labels, target)``; `logit_lead` unless given.

        Returns
        -------
        f
            By `logit_lead` ``z_y - z_target``, or ``z_y - max_{k != y} z_k`` without a target, (N,).
        gradient
            That of f, (N, C, H, W), without the pixels that rest at an edge of the box and that a descent
            would only push out: they would use up the length of its step. Where nothing is left it is
            `noise` of length 1e-12 instead: a plateau is no minimum, and 0/0 no direction.
        adversarial
            Whether the prediction is not y, bool (N,).
        """

        def loss(logits: Tensor, rows: Tensor) -> Tensor:
            return (lead or logit_lead)(logits, self.labels[rows], None if target is None else target[rows])

        x, everyone = images.detach(), torch.arange(len(images), device=images.device)
        logits, f, gradient = self._model.gradient(everyone, x, loss)
        with torch.no_grad():
            self._observe(x, logits, gradient)
            gradient = gradient.nan_to_num(0, 0, 0)
            at_edge = (x == self.images) & (((x <= 0) & (gradient > 0)) | ((x >= 1) & (gradient < 0)))
            gradient = torch.where(at_edge, 0, gradient)
            flat = (gradient == 0).flatten(1).all(1)
            gradient = torch.where(per_image(flat), 1e-12 * self.noise, gradient)
            return f.to(x).nan_to_num(0), gradient, self._keep(x, logits)

    @torch.no_grad()
    def query(self, images: Tensor) -> Tensor:
        """Ask for the prediction at `images`, without a graph; whether it is not y, bool (N,)."""
        logits = self._model.logits(images)
        self._observe(images, logits, None)
        return self._keep(images, logits)

    def _keep(self, images: Tensor, logits: Tensor) -> Tensor:
        if self._clean is None:
            self._clean = logits
        adversarial = misclassified(logits, self.labels)
        self._best.offer(slice(None), images, -distance(images, self.images, self.norm), adversarial)
        return adversarial

    @property
    def noise(self) -> Tensor:
        """A random direction of each sample's own, of length 1 in l2; another one in each run."""
        if self._noise is None:
            self._noise = normalise_l2(self._drawn(normal))
        return self._noise

    def _drawn(self, fill: Fill) -> Tensor:
        def latest(rng: np.random.Generator, array: np.ndarray) -> None:
            for _ in range(self.runs + 1):
                fill(rng, array)

        return draw(self.images, self._seed, latest)

    @property
    def num_classes(self) -> int:
        """K; known once the model has been asked."""
        return self.wrong().shape[1] + 1

    def wrong(self) -> Tensor:
        """The other classes, (N, K - 1), by descending logit at the first image asked about."""
        if self._clean is None:
            raise RuntimeError("the model has not been asked yet")
        return wrong_classes(self._clean, self.labels)

    def restart(self) -> Tensor:
        """A random start for one more run: at the distance known from each image, or anywhere in the box."""
        self._noise, self.runs = None, self.runs + 1
        known = self.distance.isfinite()
        radius = self.distance.where(known, 0).to(self.images)
        away = self.noise * per_image(radius / norms_of(self.noise, ORDER[self.norm]))
        return torch.where(per_image(known), (self.images + away).clamp(0, 1), self._drawn(uniform_unit))

    def refine(self, steps: int) -> None:
        """Bisect from each closest image towards the unperturbed one: `steps` forwards.

        In l2 along the segment; in L-infinity by clipping the perturbation, which keeps more of it than
        scaling does at the same length.
        """
        far, low, high = (
            self.best.clone(),
            torch.zeros_like(self.max_distance),
            torch.ones_like(self.max_distance),
        )
        length = distance(far, self.images, self.norm).to(far)
        for _ in range(steps):
            middle = (low + high) / 2
            adversarial = self.query(onto_ball(far, self.images, middle * length, self.norm).clamp(0, 1))
            low, high = torch.where(adversarial, low, middle), torch.where(adversarial, middle, high)

    def result(self) -> tuple[Tensor, Tensor]:
        """Ask once more about every closest image, and return them with their distances.

        Raises
        ------
        NonFinite
            Some pixel or some answer during the search was NaN or infinite: what was found says nothing.
        """
        best, length = self.best.clone(), self.distance
        adversarial = self.query(best) & length.isfinite()
        self._model.raise_pending()
        return torch.where(per_image(adversarial), best, self.images), length.where(adversarial, torch.inf)


def search(
    run: Run,
    model: Model,
    images: Tensor,
    labels: Tensor,
    seed: Seed,
    norm: Norm,
    restarts: int,
    refine: int,
    **observe: Observer,
) -> tuple[Tensor, Tensor]:
    """Run `run` `restarts` times, refine, and ask again; see `MinimumNormSearch.result`.

    The first run starts at the image and descends towards the strongest other class, wherever that
    changes. Run r > 0 is for what it missed: it aims at the class of the (r + 1)-th largest logit among the
    others, in a circle, and starts at random, at the distance known or anywhere if none is.

    In both the model is `frozen`; a `observe` sees what it answers.
    """
    found = MinimumNormSearch(model, images, labels, norm, seed, **observe)
    # a model may draw from the global generators
    with frozen(model), seeded(seed, restart=0, device=images.device):
        run(found, found.images, None)
        for restart in range(1, restarts):
            wrong = found.wrong()
            run(found, found.restart(), wrong[:, restart % wrong.shape[1]])
        found.refine(refine)
        return found.result()


def improve(
    run: Run,
    model: Model,
    images: Tensor,
    labels: Tensor,
    seed: Seed,
    norm: Norm,
    start: Tensor,
    refine: int,
    **observe: Observer,
) -> tuple[Tensor, Tensor]:
    """Look for closer adversarial images than `start`: one run from there, then as in `search`."""
    found = MinimumNormSearch(model, images, labels, norm, seed, **observe)
    with frozen(model), seeded(seed, restart=0, device=images.device):
        found.query(start)
        run(found, start, None)
        found.refine(refine)
        return found.result()


def logit_lead(logits: Tensor, labels: Tensor, target: Tensor | None) -> Tensor:
    """Logit of the label less that of `target` (N,), or of the strongest other class; shape (N,)."""
    true = logits.gather(1, labels[:, None])[:, 0]
    if target is None:
        return true - logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return true - logits.gather(1, target[:, None])[:, 0]


def cosine_annealing(first: float, last: float, step: int, steps: int) -> float:
    """Cosine annealing from `first` at step 0 towards `last` at step `steps`."""
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2
