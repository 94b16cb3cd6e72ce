"""Gradient attacks on the cross-entropy: FGSM and PGD, in L-infinity and L2.

Each takes `early_stopping`: whether it stops attacking a sample once that is broken.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from .algorithms import pgd
from .algorithms.repeated_runs import run_repeatedly
from .core.types import Model, Seed
from .registry import register_threat

_MADRY = "Madry, Makelov, Schmidt, Tsipras, Vladu, ICLR 2018, arXiv 1706.06083"
_GOODFELLOW = "Goodfellow, Shlens, Szegedy, ICLR 2015, arXiv 1412.6572"


def _pgd_queries(parameters: Mapping[str, Any]) -> tuple[int, int]:
    steps, restarts = int(parameters["steps"]), int(parameters["restarts"])
    return (steps + 1) * restarts, steps * restarts


@register_threat(
    "fgsm-linf",
    family="gradient",
    norm="linf",
    strength_name="eps",
    needs_gradient=True,
    optional_early_stopping=True,
    queries=lambda _: (2, 1),
    reference=_GOODFELLOW,
)
def fgsm_linf(
    model: Model, images: Tensor, labels: Tensor, strength: float, seed: Seed, early_stopping: bool = True
) -> Tensor:
    """One step x + eps sign(grad)."""
    attack = partial(pgd.fgsm, eps=strength)
    return run_repeatedly(attack, model, images, labels, seed, early_stopping=early_stopping)


@register_threat(
    "fgsm-l2",
    family="gradient",
    norm="l2",
    strength_name="eps",
    needs_gradient=True,
    optional_early_stopping=True,
    queries=lambda _: (2, 1),
    reference=_GOODFELLOW,
)
def fgsm_l2(
    model: Model, images: Tensor, labels: Tensor, strength: float, seed: Seed, early_stopping: bool = True
) -> Tensor:
    """One step x + eps grad/|grad|_2: PGD in L2 with a single full step from the image itself."""
    attack = partial(pgd.pgd_l2, eps=strength, alpha=strength, steps=1, random_start=False)
    return run_repeatedly(attack, model, images, labels, seed, early_stopping=early_stopping)


@register_threat(
    "pgd-linf",
    family="gradient",
    norm="linf",
    strength_name="eps",
    needs_gradient=True,
    optional_early_stopping=True,
    queries=_pgd_queries,
    reference=_MADRY,
)
def pgd_linf(
    model: Model,
    images: Tensor,
    labels: Tensor,
    strength: float,
    seed: Seed,
    early_stopping: bool = True,
    *,
    steps: int = 20,
    restarts: int = 2,
    relative_step: float = 2.5,
) -> Tensor:
    """`steps` steps of size relative_step * eps / steps from random starts; returns the best iterate."""
    alpha = relative_step * strength / steps
    attack = partial(pgd.pgd_linf, eps=strength, alpha=alpha, steps=steps)
    return run_repeatedly(
        attack, model, images, labels, seed, early_stopping=early_stopping, restarts=restarts
    )


@register_threat(
    "pgd-l2",
    family="gradient",
    norm="l2",
    strength_name="eps",
    needs_gradient=True,
    optional_early_stopping=True,
    queries=_pgd_queries,
    reference=_MADRY,
)
def pgd_l2(
    model: Model,
    images: Tensor,
    labels: Tensor,
    strength: float,
    seed: Seed,
    early_stopping: bool = True,
    *,
    steps: int = 20,
    restarts: int = 2,
    relative_step: float = 2.5,
) -> Tensor:
    """`steps` normalised-gradient steps of length relative_step * eps / steps; returns the best iterate."""
    alpha = relative_step * strength / steps
    attack = partial(pgd.pgd_l2, eps=strength, alpha=alpha, steps=steps, random_start=True)
    return run_repeatedly(
        attack, model, images, labels, seed, early_stopping=early_stopping, restarts=restarts
    )
