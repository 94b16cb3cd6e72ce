"""Minimal-norm attacks: one run finds each sample's distance to the boundary, hence a whole curve."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._errors import InvalidArgument
from .algorithms.alma import alma
from .algorithms.carlini_wagner import cw
from .algorithms.ddn import ddn
from .algorithms.fmn import fmn
from .core.minimum_norm_search import Run
from .core.threat import Threat
from .core.types import Model, Seed
from .registry import THREATS, register_minimum_norm

_FMN = "Pintor, Roli, Brendel, Biggio, NeurIPS 2021, arXiv 2102.12827, algorithm 1"
_DDN = "Rony, Hafemann, Oliveira, Ben Ayed, Sabourin, Granger, CVPR 2019, arXiv 1811.09600, algorithm 1"
_ALMA = "Rony, Granger, Pedersoli, Ben Ayed, ICCV 2021, arXiv 2011.11857"
_CW = "Carlini, Wagner, IEEE S&P 2017, arXiv 1608.04644, f_6 and section VI-A"


def closest(
    threat: str | Threat, model: Model, images: Tensor, labels: Tensor, seed: Seed
) -> tuple[Tensor, Tensor]:
    """Look for the closest adversarial image of each sample; no budget caps it.

    Parameters
    ----------
    threat
        A minimal-norm threat, or its name in the registry; its parameters are used.
    images
        (N, C, H, W) in [0, 1].
    labels
        Classes, int64 (N,).
    seed
        One for the batch, or one per sample.

    Returns
    -------
    images
        The closest adversarial images, misclassified when asked about a last time; the unperturbed image
        where none was found.
    distances
        In the norm of the threat, in pixel units: float64 (N,), computed from the returned images. 0 where
        the unperturbed image is misclassified, infinity where no adversarial image was found. The accuracy
        at any eps is at most the share of distances above eps.

    Raises
    ------
    UnknownName
        No threat has that name.
    InvalidArgument
        The threat has no notion of a closest image.
    NonFinite
        Logits or gradients were NaN or infinite.
    """
    threat = THREATS.get(threat) if isinstance(threat, str) else threat
    if threat.closest is None:
        names = ", ".join(t.name for t in THREATS if t.minimal)
        raise InvalidArgument(f"threat {threat.name} finds no closest image: choose one of {names}")
    if not len(images):
        return images.clone(), images.new_zeros(0, dtype=torch.float64)
    return threat.closest(model, images, labels, seed, **threat.parameters)


def _queries(parameters: Mapping[str, Any]) -> tuple[int, int]:
    steps, runs = int(parameters["steps"]), int(parameters["restarts"]) * int(parameters.get("rounds", 1))
    return (steps + 1) * runs + int(parameters["refine"]) + 1, steps * runs


@register_minimum_norm("fmn-linf", norm="linf", queries=_queries, reference=_FMN)
@register_minimum_norm("fmn-l2", norm="l2", queries=_queries, reference=_FMN)
def _fmn(*, steps: int = 100, alpha: float = 1.0, gamma: float = 0.05) -> Run:
    return partial(fmn, steps=steps, alpha=alpha, gamma=gamma)


@register_minimum_norm("ddn-l2", norm="l2", queries=_queries, reference=_DDN, version=2)
def _ddn(*, steps: int = 100, alpha: float = 1.0, gamma: float = 0.05) -> Run:
    return partial(ddn, steps=steps, alpha=alpha, gamma=gamma)


@register_minimum_norm("cw-l2", norm="l2", queries=_queries, reference=_CW, version=3)
def _cw(*, steps: int = 100, rounds: int = 9, rate: float = 0.2) -> Run:
    return partial(cw, steps=steps, rounds=rounds, rate=rate)


@register_minimum_norm("alma-l2", norm="l2", queries=_queries, reference=_ALMA)
def _alma(*, steps: int = 300, reach: float = 0.3) -> Run:
    return partial(alma, steps=steps, reach=reach)
