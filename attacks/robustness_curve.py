"""A whole robustness curve in one run: a minimal-norm attack first, the cascade where it can matter.

FMN bounds the distance d of each sample to the decision boundary from above, and so gives robust accuracy at
every radius at once. The cascade is then spent on what stands at the reported radii, and
at the largest radius below d where d is within a factor of it: there an attack that is a little stronger
changes the curve. A sample that it breaks is followed down to the smaller radii that its example reaches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .algorithms.fmn import fmn
from .autoattack import cascade, cascade_queries
from .core.batch_state import under_attack
from .core.cost_log import part
from .core.curve_search import Curve
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
    forwards, backwards = cascade_queries(parameters)
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
        Of the cascade; `steps` of FMN too.
    restarts
        Of FMN, towards another class each.
    gap
        Where a distance is within this factor of a strength the cascade is run there. At the `reported`
        ones it is run on everything that stands, and at every strength on samples whose gradient is zero.
    """
    with frozen(model), seeded(seed, restart=0, device=images.device):
        curve = Curve(images, labels, seed, strengths, norm)
        with part("fmn", strengths, curve.standing):
            watch, seeds = curve.watching(curve.everyone), derive(curve.seeds, "curve", "fmn")
            run = _fmn(steps)
            search(run, model, curve.images, labels, seeds, norm, restarts, _HALVINGS, watch=watch)
        reach = curve.radii.new_tensor([torch.inf if eps in reported else gap for eps in strengths])
        done = torch.zeros_like(curve.broken)
        while len((due := curve.due(done, reach))[0]):
            done[due] = True
            for at, rows in zip(*(pairs.split(len(images)) for pairs in due), strict=True):
                _attack(curve, model, at, rows, steps, targets, queries)
    return curve.best


def _attack(
    curve: Curve, model: Model, at: Tensor, rows: Tensor, steps: int, targets: int, queries: int
) -> None:
    """The cascade at the radii of numbers `at` (n,) on the samples `rows` (n,); what breaks is shrunk."""
    strengths, norm = curve.radii.tolist(), curve.norm
    entering = torch.bincount(at, minlength=len(strengths)).tolist()
    seeds = [derive([s], "curve", strengths[k])[0] for s, k in zip(curve.seeds_of(rows), at, strict=True)]
    with ExitStack() as stack:
        with part("start", strengths, lambda: entering):
            survivors = stack.enter_context(
                under_attack(model, curve.images[rows], curve.labels[rows], seeds)
            )
        cascade(survivors, curve.radii[at], norm, steps, targets, queries)
    fell = ~survivors.standing
    curve.missed[rows[survivors.margin > 0]] = True
    with part("carried", strengths, curve.standing):
        for number in at.unique().tolist():  # a sample comes once at each radius
            mine = at == number
            curve.stop(number, rows[mine & fell])
            curve.note(rows[mine], survivors.best[mine], survivors.margin[mine], fell[mine])
    if not bool(fell.any()):
        return
    with part("shrink", strengths, curve.standing):
        smallest = torch.full_like(curve.everyone, len(strengths)).scatter_reduce(
            0, rows[fell], at[fell], "amin"
        )
        fell &= at == smallest[rows]
        rows, start = rows[fell], survivors.best[fell]
        seeds = derive(curve.seeds_of(rows), "curve", "shrink")
        images, labels, watch = curve.images[rows], curve.labels[rows], curve.watching(rows)
        run = _fmn(steps, warm=True)
        improve(run, model, images, labels, seeds, norm, start, _HALVINGS, watch=watch)


_VERSIONS: dict[Norm, int] = {"linf": 2, "l2": 3}
for _norm, _version in _VERSIONS.items():
    register_curve(f"curve-{_norm}", norm=_norm, queries=_queries, reference=_REFERENCE, version=_version)(
        partial(_run, _norm)
    )
