"""Attacks that only ask the model, and so are not deceived by its gradients: Square and SPSA."""

from __future__ import annotations

from torch import Tensor

from .algorithms.spsa import spsa_linf
from .algorithms.square import square
from .core.batch_state import under_attack
from .core.types import Model, Norm, Seed
from .registry import register_linf_and_l2, register_threat


@register_linf_and_l2(
    "square",
    linf=2,
    l2=2,
    family="search",
    queries=lambda p: (1 + p["queries"], 0),
    reference="Andriushchenko, Croce, Flammarion, Hein, ECCV 2020, arXiv 1912.00049",
)
def square_attack(
    norm: Norm,
    model: Model,
    images: Tensor,
    labels: Tensor,
    strength: float,
    seed: Seed,
    *,
    queries: int = 5000,
    p_init: float = 0.8,
) -> Tensor:
    """Random search with squares that shrink as the paper schedules them; `p_init` is at most 1."""
    with under_attack(model, images, labels, seed) as state:
        square(state, strength, norm, queries=queries, p_init=p_init)
    return state.best


@register_threat(
    "spsa-linf",
    version=2,
    family="search",
    norm="linf",
    strength_name="eps",
    pooled=True,
    queries=lambda p: (1 + p["steps"] * (2 * p["directions"] + 1), 0),
    reference="Uesato, O'Donoghue, van den Oord, Kohli, ICML 2018, arXiv 1802.05666",
)
def spsa(
    model: Model,
    images: Tensor,
    labels: Tensor,
    strength: float,
    seed: Seed,
    *,
    steps: int = 100,
    directions: int = 64,
    rate: float = 0.01,
    width: float = 0.01,
) -> Tensor:
    """Adam on the margin, its gradient estimated from pairs of points."""
    with under_attack(model, images, labels, seed) as state:
        spsa_linf(state, strength, steps=steps, directions=directions, rate=rate, width=width)
    return state.best
