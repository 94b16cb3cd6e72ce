"""Do the classes depend on the solver and its step size?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ...._errors import ModelFailure, NotAsked
from ...solvers.changed_model import ChangedModel
from ...solvers.observe import count_nfe
from ...solvers.solver_call import CannotSolveOtherwise, SolverChange
from ..context import Context
from ..measures import array, exceeds, fraction
from ..registry import AuditResult, measured, register_audit

ACCURACY, CLASSES = 0.01, 0.01
TIGHT = 1e-6
FEWEST = 32
"""Fewest steps of a grid that an adaptive solver is compared with."""


@register_audit(
    "solver-sensitivity",
    title="a finer solver gives the same classes",
    needs="model",
    cost="9 to 13 forward passes per image by the model's own solver, and one of an adaptive solver at 1e-6",
    fast=True,
    reference="Ott, Katiyar, Hennig, Tiemann, ICLR 2021, arXiv 2007.15386",
    version=3,
)
def check(context: Context) -> AuditResult:
    """Accuracy and classes with finer grids, another method and a tight adaptive solver.

    Of a fixed grid: h/2, h/4, rk4 at h/2 (ssprk3 where the model has rk4) and dopri5 at 1e-6. Of an adaptive
    solver: rk4 on two grids finer than its own steps, where these agree with each other, and dopri5 at 1e-6.
    More than 1 point of accuracy or 1% of classes changed, and more than one sample, flags: the step size is
    part of the model, which is a discrete network, and properties of the flow need not hold for it. The tight
    solve, which takes minutes on a stiff field, is left out where another one flags the model already.
    """
    if not context.solver_calls():
        return context.without_solver()
    own, accuracy = context.predicted(context.images), fraction(context.correct())
    found, fails = [("own solver", 0.0, 0.0)], False
    others, tight = chain(_of_grid(context), _of_adaptive(context)), _tight(context)
    for name, answer in (pair for answers in (others, tight) if not fails for pair in answers):
        if isinstance(answer, ModelFailure):
            found.append((name, 1.0, accuracy))
            failure = f"With {name} the solver fails ({answer}): the flow cannot be followed."
            return _result(found, failure, flagged=True)
        classes = answer.argmax(1)
        found.append((name, fraction(classes != own), abs(fraction(classes == context.labels) - accuracy)))
        limits = zip(found[-1][1:], (CLASSES, ACCURACY), strict=True)
        fails = fails or any(exceeds(100 * share, 100 * limit, len(own)) for share, limit in limits)
    name, value, _ = max(found[1:], key=lambda one: one[1])
    moved = max(one[2] for one in found)
    sentence = (
        f"With {name}, {value:.1%} of the classes change; accuracy moves by at most {100 * moved:.1f} points"
    )
    sentence += ": this is a discrete network, and its step size is part of it." if fails else "."
    return _result(found, sentence, flagged=fails)


def _result(found: list[tuple[str, float, float]], sentence: str, *, flagged: bool) -> AuditResult:
    return measured(
        max(one[1] for one in found),
        CLASSES,
        sentence,
        flagged=flagged,
        unit="share",
        arrays={
            "x": array(torch.arange(len(found))),
            "classes changed": array([100 * one[1] for one in found]),
            "accuracy moved": array([100 * one[2] for one in found]),
        },
        axes=(", ".join(one[0] for one in found), "percent of samples"),
    )


def _asked(context: Context, **change: Any) -> Tensor | ModelFailure:
    """Logits (N, K) of the model with another solver, or why it has none."""
    try:
        return context.logits(context.images, ChangedModel(context.model, SolverChange(**change)))
    except CannotSolveOtherwise as reason:
        raise NotAsked(f"The model cannot be solved otherwise: {reason}") from None
    except ModelFailure as failure:
        return failure


def _of_grid(context: Context) -> Iterator[tuple[str, Tensor | ModelFailure]]:
    """Finer grids, and another method on one; nothing where no solve is on a grid."""
    grids = [call for call in context.solver_calls() if not call.adaptive]
    if grids:
        other = "another" if len({call.method for call in grids}) > 1 else grids[0].another
        for name, how in (("h/2", {}), ("h/4", {"refine": 4}), (f"{other} at h/2", {"method": "another"})):
            yield name, _asked(context, **{"refine": 2, "only": "fixed", **how})


def _of_adaptive(context: Context) -> Iterator[tuple[str, Tensor | ModelFailure]]:
    """Two rk4 grids of more steps than the model's last solve had evaluations; nothing where they differ."""
    if not any(call.adaptive for call in context.solver_calls()):
        return
    last = context.images.split(context.batch_size)[-1]
    counts = [steps := max(FEWEST, count_nfe(context.model, last) or 0), 2 * steps]
    coarse, fine = (_asked(context, method="rk4", steps=count, only="adaptive") for count in counts)
    if isinstance(coarse, ModelFailure) or isinstance(fine, ModelFailure):
        return  # a uniform grid that fails on a stiff start says nothing about an adaptive solver
    if fraction(coarse.argmax(1) != fine.argmax(1)) <= CLASSES:
        yield from zip((f"rk4 in {count} steps" for count in counts), (coarse, fine), strict=True)


def _tight(context: Context) -> Iterator[tuple[str, Tensor | ModelFailure]]:
    yield "a tight adaptive solver", _asked(context, method="dopri5", rtol=TIGHT, atol=TIGHT)
