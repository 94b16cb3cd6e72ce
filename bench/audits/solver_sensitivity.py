"""Is it the flow that classifies, or the steps of its solver?"""

from __future__ import annotations

import torch
from torch import nn

from ..._errors import ModelFailure
from ...models import ODEBlock
from ...models._surrogates import with_solver
from .context import Context, array, share
from .registry import Verdict, judged, not_applicable, register_audit

ACCURACY, CLASSES = 0.01, 0.01
TIGHT = 1e-6


@register_audit(
    "solver-sensitivity",
    title="a finer solver gives the same answers",
    needs="model",
    cost="7 forwards an image on the model's grid, and one of an adaptive solver at 1e-6",
    fast=True,
    reference="Ott, Katiyar, Hennig, Tiemann, ICLR 2021, arXiv 2007.15386",
)
def check(context: Context) -> Verdict:
    """Accuracy and classes with h/2, h/4 and a tight adaptive solver.

    More than 1 point of accuracy or 1% of classes changed flags: the step size is part of the model, which is
    a discrete network, and what is known of the flow says nothing of it. Nothing finer is asked after that.
    """
    blocks = [module for module in context.model.modules() if isinstance(module, ODEBlock)]
    if not blocks:
        return not_applicable("The model has no ODE block, so no solver to refine.")
    own, accuracy = context.logits(context.images).argmax(1), share(context.correct())
    found: list[tuple[str, float, float]] = []
    for name, finer in _finer(context.model, blocks[0]).items():
        try:
            logits = context.logits(context.images, finer)
        except ModelFailure as error:
            sentence = f"With {name} the solver fails ({error}): the flow cannot be followed."
            return judged(1.0, CLASSES, sentence, unit="share")
        changed = share(logits.argmax(1) != own)
        found.append((name, changed, abs(share(logits.argmax(1) == context.labels) - accuracy)))
        if changed > CLASSES or found[-1][2] > ACCURACY:
            break  # a stiff field would keep the adaptive solver busy for minutes to say it again
    name, value, _ = max(found, key=lambda one: one[1])
    moved = max(one[2] for one in found)
    fails = value > CLASSES or moved > ACCURACY
    sentence = (
        f"With {name}, {value:.1%} of the classes change; accuracy moves by at most {100 * moved:.1f} points"
    )
    sentence += ": this is a discrete network, its step size is part of it." if fails else "."
    return judged(
        value,
        CLASSES,
        sentence,
        fails=fails,
        unit="share",
        arrays={
            "x": array(torch.arange(len(found))),
            "classes changed": array([100 * one[1] for one in found]),
            "accuracy moved": array([100 * one[2] for one in found]),
        },
        axes=(", ".join(one[0] for one in found), "percent of samples"),
    )


def _finer(model: nn.Module, block: ODEBlock) -> dict[str, nn.Module]:
    tight = {"a tight adaptive solver": with_solver(model, method="dopri5", rtol=TIGHT, atol=TIGHT)}
    if block.solver.adaptive:
        return tight
    steps = block.steps_per_layer() * len(block.layers)
    method = block.solver.method
    halves = {f"h/{k}": with_solver(model, method=method, steps=k * steps) for k in (2, 4)}
    return halves | tight
