"""Training on perturbed images: noise for augmentation, an attack for adversarial training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..._errors import InvalidArgument
from ...attacks import THREATS, Threat
from ...attacks.core.frozen_model import frozen
from ...attacks.core.seeds import sample_seeds
from ..runtime.checked_model import CheckedModel
from .preset import Perturbation, Recipe

_VALIDATION = 2**31 - 1
"""Stands in the place of an epoch's number where held-out samples are perturbed: the same in every epoch."""


def perturbing_threat(wish: Perturbation) -> Threat:
    """The threat that `wish` names, configured.

    Raises
    ------
    InvalidArgument
        For an unknown name or parameter, a strength out of range, or what cannot be had while the weights
        still move: nothing to perturb, surrogates, images outside [0, 1].
    """
    threat = THREATS.get(wish.threat).configure(**wish.parameters)
    if threat.family in ("clean", "transfer") or threat.box != (0.0, 1.0):
        raise InvalidArgument(f"perturb: nothing can be trained on {threat.name}: name noise or an attack")
    threat.check_strength(wish.strength)
    return threat


def recipe_facts(recipe: Recipe) -> dict[str, Any]:
    """What of `recipe` goes into the key of a training: all of it, and which version of which threat."""
    facts = recipe.model_dump(exclude_none=True)
    if recipe.perturb:
        threat = perturbing_threat(recipe.perturb)
        facts["perturb"] |= {"parameters": dict(threat.parameters), "version": threat.version}
    return facts


def training_queries(recipe: Mapping[str, Any]) -> tuple[int, int]:
    """Forwards and backwards per sample of a whole training, from the facts of its recipe."""
    wish = recipe.get("perturb")
    forwards, backwards = (0, 0)
    if wish:
        threat = THREATS.get(wish["threat"])
        forwards, backwards = threat.queries(wish["parameters"])
    epochs = int(recipe.get("epochs", 0))
    return epochs * (forwards + 1), epochs * (backwards + 1)


class Perturber:
    """``change(images, labels, numbers, epoch)``: images perturbed against the model as it is now.

    A sample's noise or random start follows from the training seed, the epoch and the sample's number. The
    attack sees the model in eval mode. FGSM and PGD go on with samples that are broken, so that what is
    trained on is the largest loss they find; other attacks let go of them.
    """

    def __init__(self, model: nn.Module, wish: Perturbation, seed: int, num_classes: int) -> None:
        self._model, self._wish, self._seed, self._classes = model, wish, seed, num_classes
        self._threat = perturbing_threat(wish)

    def strength(self, epoch: int | None) -> float:
        """The strength in an epoch, counted from 0; the full one where no epoch is given."""
        share = 1.0 if epoch is None or not self._wish.ramp else min(1.0, (epoch + 1) / self._wish.ramp)
        return share * self._wish.strength

    def __call__(
        self, images: Tensor, labels: Tensor, numbers: np.ndarray, epoch: int | None = None
    ) -> Tensor:
        """Images (N, C, H, W) like `images`, without a graph; `numbers` (N,) name them in their dataset."""
        stream = (self._seed << 32) | (_VALIDATION if epoch is None else epoch)
        seeds = sample_seeds(stream, numbers.tolist())
        with frozen(self._model), torch.set_grad_enabled(self._threat.needs_gradient):
            model = CheckedModel(self._model, self._classes, deferred=images.device.type != "cpu")
            strength = self.strength(epoch)
            perturbed = self._threat(model, images, labels, strength, seeds, early_stopping=False).detach()
            model.raise_pending()
        return perturbed
