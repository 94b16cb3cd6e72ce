"""AutoAttack and its parts that use gradients: APGD-CE, APGD-T, FAB-T, and the cascade with Square.

Croce, Hein, ICML 2020, arXiv 2003.01690, at the strength of the authors' own implementation. torchattacks
3.5.1 has a cascade of that name with 10 steps for 100 and a rescaled Square; its parts are replaced for the
reasons given in `_apgd`, `_fab` and `_square`. Below four classes, where the targeted ratio of logits is
undefined or constant, the difference of two logits stands in its place. Where there are fewer wrong classes
than targets, the runs that are left start elsewhere, with shorter steps, and aim at the same classes again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor

from .algorithms.apgd import apgd
from .algorithms.fab import fab
from .algorithms.finite_differences import slopes
from .algorithms.square import square
from .core.batch_state import Survivors, under_attack
from .core.cost_log import part
from .core.losses import cross_entropy, difference, dlr_targeted
from .core.norms import Radius
from .core.types import Model, Norm, Seed
from .registry import Craft, register_threat

_CROCE = "Croce, Hein, ICML 2020, arXiv 2003.01690"
_FAB = "Croce, Hein, ICML 2020, arXiv 1907.02044"
Queries = Callable[[Mapping[str, Any]], tuple[int, int]]


def in_both_norms(name: str, *, linf: int = 1, l2: int = 1, **attributes: Any) -> Callable[[Craft], Craft]:
    """Register the decorated ``craft(norm, model, ...)`` as the threats NAME-linf and NAME-l2, pooled.

    `linf` and `l2` are the versions of the two.
    """

    def decorate(craft: Craft) -> Craft:
        versions: dict[Norm, int] = {"linf": linf, "l2": l2}
        for norm, version in versions.items():
            own = {"norm": norm, "version": version, "strength_name": "eps", "pooled": True}
            register_threat(f"{name}-{norm}", **own, **attributes)(partial(craft, norm))
        return craft

    return decorate


def _apgd_ce(survivors: Survivors, eps: Radius, norm: Norm, steps: int, restarts: int = 1) -> None:
    def loss(logits: Tensor, rows: Tensor) -> Tensor:
        return cross_entropy(logits, survivors.labels[rows])

    for restart in range(restarts):
        apgd(survivors, loss, eps, norm, steps=steps, purpose=f"ce {restart}")


def _runs(survivors: Survivors, targets: int) -> Iterator[tuple[int, int]]:
    """Of each of `targets` runs, the rank of the class it aims at and how many have aimed at it before."""
    wrong = survivors.logits.shape[1] - 1
    return ((run % wrong + 1, run // wrong) for run in range(targets if wrong else 0))


def _name(rank: int, before: int) -> str:
    return f"t {rank} again {before}" if before else f"t {rank}"


def _apgd_t(survivors: Survivors, eps: Radius, norm: Norm, steps: int, targets: int) -> None:
    for rank, before in _runs(survivors, targets):
        target = survivors.target(rank)

        def loss(logits: Tensor, rows: Tensor, target: Tensor = target) -> Tensor:
            ratio = difference if survivors.finely(rows) else dlr_targeted  # its denominator saturates too
            return ratio(logits, survivors.labels[rows], target[rows])

        again: dict[str, Any] = {"first": 0.25, "straight": norm == "linf" and before % 2 == 1}
        purpose = _name(rank, before)
        apgd(survivors, loss, eps, norm, steps=steps, purpose=purpose, **(again if before else {}))


def _fab_t(survivors: Survivors, eps: Radius, norm: Norm, steps: int, targets: int) -> None:
    for rank, before in _runs(survivors, targets):
        purpose = _name(rank, before) if before else None
        fab(survivors, survivors.target(rank), eps, norm, steps=steps, purpose=purpose)


@in_both_norms(
    "apgd-ce",
    l2=2,
    family="gradient",
    needs_gradient=True,
    queries=lambda p: (1 + p["restarts"] * (p["steps"] + 1), p["restarts"] * p["steps"]),
    reference=_CROCE,
)
def apgd_ce(
    norm: Norm,
    model: Model,
    images: Tensor,
    labels: Tensor,
    strength: float,
    seed: Seed,
    *,
    steps: int = 100,
    restarts: int = 1,
) -> Tensor:
    """Auto-PGD on the cross-entropy from random starts; best iterate kept."""
    with under_attack(model, images, labels, seed) as survivors:
        _apgd_ce(survivors, strength, norm, steps, restarts)
    return survivors.best


@in_both_norms(
    "apgd-t",
    l2=2,
    family="gradient",
    needs_gradient=True,
    queries=lambda p: (1 + p["targets"] * (p["steps"] + 1), p["targets"] * p["steps"]),
    reference=_CROCE,
)
def apgd_t(
    norm: Norm,
    model: Model,
    images: Tensor,
    labels: Tensor,
    strength: float,
    seed: Seed,
    *,
    steps: int = 100,
    targets: int = 9,
) -> Tensor:
    """Auto-PGD on the targeted ratio of logits, towards the likeliest wrong classes in turn."""
    with under_attack(model, images, labels, seed) as survivors:
        _apgd_t(survivors, strength, norm, steps, targets)
    return survivors.best


@in_both_norms(
    "fab-t",
    family="gradient",
    needs_gradient=True,
    queries=lambda p: (1 + 2 * p["targets"] * p["steps"], p["targets"] * p["steps"]),
    reference=_FAB,
)
def fab_t(
    norm: Norm,
    model: Model,
    images: Tensor,
    labels: Tensor,
    strength: float,
    seed: Seed,
    *,
    steps: int = 100,
    targets: int = 9,
) -> Tensor:
    """The fast adaptive boundary attack towards the likeliest wrong classes in turn."""
    with under_attack(model, images, labels, seed) as survivors:
        _fab_t(survivors, strength, norm, steps, targets)
    return survivors.best


def cascade(survivors: Survivors, eps: Radius, norm: Norm, steps: int, targets: int, queries: int) -> None:
    """The stages of `autoattack`, one after the other, each with its own line in the ledger."""

    def refined() -> None:
        survivors.refine()
        _apgd_t(survivors, eps, norm, steps, targets)

    spare = steps * (1 + targets) + (2 * steps - 1) * targets - 2  # two may have gone into `refine`
    stages: dict[str, Callable[[], None]] = {
        "apgd-ce": lambda: _apgd_ce(survivors, eps, norm, steps),
        "apgd-t": refined,
        "fab-t": lambda: _fab_t(survivors, eps, norm, steps, targets),
        "square": lambda: square(survivors, eps, norm, queries=queries),
        "slopes": lambda: slopes(survivors, eps, norm, queries=spare, targets=targets),
    }
    strengths = sorted(set(eps.tolist())) if isinstance(eps, Tensor) else [eps]

    def standing() -> list[int]:
        if not isinstance(eps, Tensor):
            return [int(survivors.standing.sum())]
        left = eps[survivors.standing].tolist()
        return [left.count(strength) for strength in strengths]

    for name, stage in stages.items():
        with part(name, strengths, standing):
            stage()


def cascade_queries(parameters: Mapping[str, Any]) -> tuple[int, int]:
    """Forwards and backwards of `autoattack` per sample that is never broken, the first look included."""
    steps, targets = parameters["steps"], parameters["targets"]
    forwards = 1 + (steps + 1) * (1 + targets) + 2 * targets * steps + parameters["queries"]
    return forwards, steps * (1 + 2 * targets)


@in_both_norms(
    "autoattack",
    family="gradient",
    needs_gradient=True,
    queries=cascade_queries,
    reference=_CROCE,
    linf=2,
    l2=3,
)
def autoattack(
    norm: Norm,
    model: Model,
    images: Tensor,
    labels: Tensor,
    strength: float,
    seed: Seed,
    *,
    steps: int = 100,
    targets: int = 9,
    queries: int = 5000,
) -> Tensor:
    """APGD-CE, APGD-T, FAB-T, Square: each attacks what the ones before it left standing.

    A sample whose gradient is exactly zero wherever it is asked for (rounded or saturated logits) costs
    the first three next to nothing. What it left of their queries is spent on fitted slopes, at the end: the
    worst case stays what it was, and Square alone is weak in L2. One the logit of whose class is saturated,
    so that APGD-CE has not moved it at all, is then attacked along slopes in double precision: by the
    difference of two logits, with two forwards a step, and not by FAB.
    """
    with ExitStack() as stack:
        with part("start", [strength], lambda: [len(images)]):
            survivors = stack.enter_context(under_attack(model, images, labels, seed))
        cascade(survivors, strength, norm, steps, targets, queries)
    return survivors.best
