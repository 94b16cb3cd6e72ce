"""AutoAttack (Croce, Hein, ICML 2020, arXiv 2003.01690) and its gradient-based parts APGD-CE, APGD-T, FAB-T.

The number of steps, targets and queries is that of the authors' implementation. It differs from theirs:

- L2 steps of APGD are projected onto the intersection of ball and box, see `algorithms.apgd`.
- Below four classes, where the targeted DLR loss is undefined or constant, the difference of two logits
  replaces it. With fewer wrong classes than targets, the remaining runs aim at the same classes again, from
  other starts and with shorter steps.
- Samples whose own logit is saturated in float32 are attacked along gradients in float64.
- A fifth stage, finite differences, attacks samples whose input gradient is exactly zero.
- The stages stop at a margin above rounding error, and each sample has its own random stream.

torchattacks 3.5.1 has an AutoAttack too, with 10 steps instead of 100 and a rescaled Square Attack. The
reasons for not using it are in `algorithms.apgd`, `algorithms.fab` and `algorithms.square`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor

from .algorithms.apgd import apgd
from .algorithms.fab import fab
from .algorithms.finite_differences import fit_and_attack
from .algorithms.square import square
from .core.batch_state import BatchState, under_attack
from .core.cost_log import part
from .core.losses import cross_entropy, difference, targeted_dlr
from .core.norms import Radius
from .core.types import Model, Norm, Seed
from .registry import register_linf_and_l2

_CROCE = "Croce, Hein, ICML 2020, arXiv 2003.01690"
_FAB = "Croce, Hein, ICML 2020, arXiv 1907.02044"
Queries = Callable[[Mapping[str, Any]], tuple[int, int]]


def _apgd_ce(state: BatchState, eps: Radius, norm: Norm, steps: int, restarts: int = 1) -> None:
    def loss(logits: Tensor, rows: Tensor) -> Tensor:
        return cross_entropy(logits, state.labels[rows])

    for restart in range(restarts):
        apgd(state, loss, eps, norm, steps=steps, purpose=f"ce {restart}")


def _targeted_runs(state: BatchState, targets: int) -> Iterator[tuple[int, int]]:
    """For each of `targets` runs, the rank of its target class and how many runs had that target before."""
    wrong = state.logits.shape[1] - 1
    return ((run % wrong + 1, run // wrong) for run in range(targets if wrong else 0))


def _run_name(rank: int, before: int) -> str:
    return f"t {rank} again {before}" if before else f"t {rank}"


def _apgd_t(state: BatchState, eps: Radius, norm: Norm, steps: int, targets: int) -> None:
    for rank, before in _targeted_runs(state, targets):
        target = state.target(rank)

        def loss(logits: Tensor, rows: Tensor, target: Tensor = target) -> Tensor:
            ratio = difference if state.uses_float64(rows) else targeted_dlr  # its denominator saturates too
            return ratio(logits, state.labels[rows], target[rows])

        again: dict[str, Any] = {"first": 0.25, "straight": norm == "linf" and before % 2 == 1}
        purpose = _run_name(rank, before)
        apgd(state, loss, eps, norm, steps=steps, purpose=purpose, **(again if before else {}))


def _fab_t(state: BatchState, eps: Radius, norm: Norm, steps: int, targets: int) -> None:
    for rank, before in _targeted_runs(state, targets):
        purpose = _run_name(rank, before) if before else None
        fab(state, state.target(rank), eps, norm, steps=steps, purpose=purpose)


@register_linf_and_l2(
    "apgd-ce",
    linf=2,
    l2=3,
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
    """Auto-PGD on the cross-entropy from random starts; returns the iterate of the largest margin."""
    with under_attack(model, images, labels, seed) as state:
        _apgd_ce(state, strength, norm, steps, restarts)
    return state.best


@register_linf_and_l2(
    "apgd-t",
    linf=2,
    l2=3,
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
    with under_attack(model, images, labels, seed) as state:
        _apgd_t(state, strength, norm, steps, targets)
    return state.best


@register_linf_and_l2(
    "fab-t",
    linf=2,
    l2=2,
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
    with under_attack(model, images, labels, seed) as state:
        _fab_t(state, strength, norm, steps, targets)
    return state.best


def autoattack_stages(
    state: BatchState, eps: Radius, norm: Norm, steps: int, targets: int, queries: int
) -> None:
    """The stages of `autoattack`, one after the other; the cost of each is logged under its name."""

    def apgd_t() -> None:
        state.switch_to_float64()
        _apgd_t(state, eps, norm, steps, targets)

    spare = steps * (1 + targets) + (2 * steps - 1) * targets - 2  # `switch_to_float64` may have used two
    stages: dict[str, Callable[[], None]] = {
        "apgd-ce": lambda: _apgd_ce(state, eps, norm, steps),
        "apgd-t": apgd_t,
        "fab-t": lambda: _fab_t(state, eps, norm, steps, targets),
        "square": lambda: square(state, eps, norm, queries=queries),
        "slopes": lambda: fit_and_attack(state, eps, norm, queries=spare, targets=targets),
    }
    strengths = sorted(set(eps.tolist())) if isinstance(eps, Tensor) else [eps]

    def count_active() -> list[int]:
        if not isinstance(eps, Tensor):
            return [int(state.active.sum())]
        left = eps[state.active].tolist()
        return [left.count(strength) for strength in strengths]

    for name, stage in stages.items():
        with part(name, strengths, count_active):
            stage()


def autoattack_queries(parameters: Mapping[str, Any]) -> tuple[int, int]:
    """Forwards and backwards of `autoattack` per sample that is never broken, with the first query."""
    steps, targets = parameters["steps"], parameters["targets"]
    forwards = 1 + (steps + 1) * (1 + targets) + 2 * targets * steps + parameters["queries"]
    return forwards, steps * (1 + 2 * targets)


@register_linf_and_l2(
    "autoattack",
    family="gradient",
    needs_gradient=True,
    queries=autoattack_queries,
    reference=_CROCE,
    linf=3,
    l2=4,
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
    """APGD-CE, APGD-T, FAB-T and Square, each on the samples that the stages before did not break.

    A sample whose input gradient is exactly zero at every query (rounded or saturated logits) uses few
    queries in the first three stages. The rest of their queries is spent on it at the end, by finite
    differences: the total stays within the declared number, and Square alone is weak in L2. A sample the
    logit of whose class is saturated, so that APGD-CE has not changed it at all, is attacked along float64
    gradients of the difference of two logits, with two forward passes per step, and not by FAB.
    """
    with ExitStack() as stack:
        with part("start", [strength], lambda: [len(images)]):
            state = stack.enter_context(under_attack(model, images, labels, seed))
        autoattack_stages(state, strength, norm, steps, targets, queries)
    return state.best
