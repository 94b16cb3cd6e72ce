"""A whole robustness curve in one run: a minimum-norm attack first, AutoAttack where it can change the curve.

FMN bounds the distance d of each sample to the decision boundary from above, and so gives robust accuracy at
every radius at once. AutoAttack is then run on the unbroken samples at the reported radii, and at the largest
radius below d where d is within a factor of it: there an attack that is a little stronger changes the curve.
From each adversarial example that it finds, FMN looks for closer ones, for the smaller radii.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .algorithms.fmn import fmn
from .autoattack import autoattack_queries, autoattack_stages
from .core.batch_state import under_attack
from .core.cost_log import part
from .core.curve_search import CurveSearch
from .core.frozen_model import frozen
from .core.minimum_norm_search import Run, improve, search
from .core.seeds import derive, seeded
from .core.types import Model, Norm, Seed
from .registry import register_curve

_REFERENCE = (
    "Pintor, Roli, Brendel, Biggio, NeurIPS 2021, arXiv 2102.12827; Croce, Hein, ICML 2020, arXiv 2003.01690"
)
_HALVINGS = 10
"""Bisections of every closest example towards the unperturbed image."""


def _fmn(steps: int, *, warm: bool = False) -> Run:
    """FMN with the parameters of fmn-*."""
    return partial(fmn, steps=steps, alpha=1.0, gamma=0.05, warm=warm)


def _queries(parameters: Mapping[str, Any]) -> tuple[int, int]:
    forwards, backwards = autoattack_queries(parameters)
    steps, runs = parameters["steps"], parameters["restarts"]
    return forwards + (steps + 1) * runs + _HALVINGS + 1, backwards + steps * runs


def _run(
    norm: Norm,
    model: Model,
    images: Tensor,
    labels: Tensor,
    strengths: Sequence[float],
    reported: Sequence[float],
    seed: Seed,
    *,
    steps: int = 100,
    targets: int = 9,
    queries: int = 5000,
    restarts: int = 4,
    gap: float = 1.05,
) -> Tensor:
    """The images of the largest margin at each of `strengths`, (S, N, C, H, W).

    Parameters
    ----------
    steps, targets, queries
        Of AutoAttack; `steps` of FMN too.
    restarts
        Of FMN, towards another class each.
    gap
        Where a distance is within this factor of a strength, AutoAttack is run there. At the `reported`
        strengths it is run on all unbroken samples, and at every strength on samples of zero gradient.
    """
    with frozen(model), seeded(seed, restart=0, device=images.device):
        curve = CurveSearch(model, images, labels, seed, strengths, norm)
        with part("fmn", strengths, curve.count_unbroken):
            observe, seeds = curve.observer(curve.all_samples), derive(curve.seeds, "curve", "fmn")
            run = _fmn(steps)
            search(run, model, curve.images, labels, seeds, norm, restarts, _HALVINGS, observe=observe)
        reach = curve.radii.new_tensor([torch.inf if eps in reported else gap for eps in strengths])
        done = torch.zeros_like(curve.broken)
        while len((due := curve.remaining(done, reach))[0]):
            done[due] = True
            for at, rows in zip(*(pairs.split(len(images)) for pairs in due), strict=True):
                _attack(curve, model, at, rows, steps, targets, queries)
    return curve.best


def _attack(
    curve: CurveSearch, model: Model, at: Tensor, rows: Tensor, steps: int, targets: int, queries: int
) -> None:
    """Run AutoAttack on samples `rows` (n,) at radii number `at` (n,), then FMN from what it finds."""
    strengths, norm = curve.radii.tolist(), curve.norm
    entering = torch.bincount(at, minlength=len(strengths)).tolist()
    seeds = [derive([s], "curve", strengths[k])[0] for s, k in zip(curve.seeds_of(rows), at, strict=True)]
    with ExitStack() as stack:
        with part("start", strengths, lambda: entering):
            state = stack.enter_context(under_attack(model, curve.images[rows], curve.labels[rows], seeds))
        autoattack_stages(state, curve.radii[at], norm, steps, targets, queries)
    fell = ~state.active
    curve.missed_by_fmn[rows[state.margin > 0]] = True
    with part("carried", strengths, curve.count_unbroken):
        for number in at.unique().tolist():  # a sample comes once at each radius
            mine = at == number
            curve.offer(rows[mine], state.best[mine], state.margin[mine], fell[mine])
    if not bool(fell.any()):
        return
    with part("shrink", strengths, curve.count_unbroken):
        smallest = torch.full_like(curve.all_samples, len(strengths)).scatter_reduce(
            0, rows[fell], at[fell], "amin"
        )
        fell &= at == smallest[rows]
        rows, start = rows[fell], state.best[fell]
        seeds = derive(curve.seeds_of(rows), "curve", "shrink")
        images, labels, observe = curve.images[rows], curve.labels[rows], curve.observer(rows)
        run = _fmn(steps, warm=True)
        improve(run, model, images, labels, seeds, norm, start, _HALVINGS, observe=observe)


_VERSIONS: dict[Norm, int] = {"linf": 2, "l2": 3}
for _norm, _version in _VERSIONS.items():
    register_curve(f"curve-{_norm}", norm=_norm, queries=_queries, reference=_REFERENCE, version=_version)(
        partial(_run, _norm)
    )
