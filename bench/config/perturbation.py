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
from ...attacks.core.seeds import Purpose, stream_seeds
from ..runtime.checked_model import CheckedModel
from ..runtime.foreign_code import attacking
from .preset import Perturbation, Recipe

STREAMS_VERSION = 2
"""Raise it by hand when training draws its perturbations from other streams. 1: those of the evaluation."""


def training_threat(perturbation: Perturbation) -> Threat:
    """The threat that `perturbation` names, configured.

    Raises
    ------
    InvalidArgument
        For an unknown name or parameter, a strength out of range, or a threat that cannot be trained on: no
        perturbation, surrogates, images outside [0, 1].
    """
    threat = THREATS.get(perturbation.threat).configure(**perturbation.parameters)
    if threat.family in ("clean", "transfer") or threat.box != (0.0, 1.0):
        raise InvalidArgument(f"perturb: {threat.name} cannot be trained on: choose noise or an attack")
    threat.check_strength(perturbation.strength)
    return threat


def recipe_facts(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as part of a training's key: all of it, with the threat's parameters and version."""
    facts = recipe.model_dump(exclude_none=True)
    if recipe.perturb:
        threat = training_threat(recipe.perturb)
        facts["perturb"] |= {
            "parameters": dict(threat.parameters),
            "version": threat.version,
            "streams": STREAMS_VERSION,
        }
    return facts


def training_queries(recipe: Mapping[str, Any]) -> tuple[int, int]:
    """Forwards and backwards per sample of a whole training, from the facts of its recipe."""
    perturbation = recipe.get("perturb")
    forwards, backwards = (0, 0)
    if perturbation:
        threat = THREATS.get(perturbation["threat"])
        forwards, backwards = threat.queries(perturbation["parameters"])
    epochs = int(recipe.get("epochs", 0))
    return epochs * (forwards + 1), epochs * (backwards + 1)


class Perturber:
    """``change(images, labels, numbers, epoch)``: images perturbed against the model as it is now.

    A sample's noise or random start follows from the training seed, the epoch and the sample's number, and is
    never that of an evaluation. Held-out samples (no epoch) are perturbed alike in every epoch. The attack
    sees the model in eval mode. FGSM and PGD have no early stopping, so that training sees the largest loss
    they find; other attacks stop at the first misclassification.
    """

    def __init__(self, model: nn.Module, perturbation: Perturbation, seed: int, num_classes: int) -> None:
        self._model, self._perturbation, self._seed, self._classes = model, perturbation, seed, num_classes
        self._threat = training_threat(perturbation)

    def strength(self, epoch: int | None) -> float:
        """Return the strength in an epoch, counted from 0; the full strength for None."""
        share = (
            1.0
            if epoch is None or not self._perturbation.ramp
            else min(1.0, (epoch + 1) / self._perturbation.ramp)
        )
        return share * self._perturbation.strength

    def __call__(
        self, images: Tensor, labels: Tensor, numbers: np.ndarray, epoch: int | None = None
    ) -> Tensor:
        """Images (N, C, H, W) like `images`, without a graph; `numbers` (N,) name them in their dataset."""
        purpose, step = (Purpose.VALIDATION, 0) if epoch is None else (Purpose.TRAINING, epoch)
        seeds = stream_seeds(purpose, self._seed, step, numbers.tolist())
        with (
            frozen(self._model),
            attacking(self._threat.craft),
            torch.set_grad_enabled(self._threat.needs_gradient),
        ):
            model = CheckedModel(self._model, self._classes, deferred=images.device.type != "cpu")
            strength = self.strength(epoch)
            perturbed = self._threat(model, images, labels, strength, seeds, early_stopping=False).detach()
            model.raise_pending()
        return perturbed
