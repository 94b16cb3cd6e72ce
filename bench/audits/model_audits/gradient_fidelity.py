"""Is the gradient that attacks follow the gradient of the model?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from ...._errors import ModelFailure
from ....attacks.core.model_call import ask_model
from ...runtime.float64 import in_float64
from ...solvers.changed_model import ChangedModel, solved_as_forward
from ...solvers.solver_call import CannotSolveOtherwise, SolverChange
from ..context import Context
from ..differences import STEPS, central_differences, cosines, off_kinks, orthonormal_basis
from ..measures import array, coarsest_eps
from ..registry import AuditResult, measured, register_audit

SAMPLES, DIRECTIONS = 12, 64
LIMIT, COARSE_LIMIT = 0.99, 0.9
"""Least cosine, and that of a model in half precision, whose gradient is rounded to a percent."""
CLEAR = 0.999
"""Below this, differences of another length are tried too."""


@register_audit(
    "gradient-fidelity",
    title="gradients agree with finite differences",
    needs="model",
    cost="12 images: 3 forward and backward passes, one of them adjoint, and 129 forward passes in float64",
    fast=True,
    untrained=True,
    remedy="Compute the same function with and without gradients, and write no backward pass by hand.",
    reference="Gholami, Keutzer, Biros, IJCAI 2019, arXiv 1902.10298 (adjoint gradients); "
    "Athalye, Carlini, Wagner, ICML 2018, section 3.1 (shattered gradients)",
    version=3,
)
def check(context: Context) -> AuditResult:
    """Cosine between the model's own gradient and central differences in float64: below .99 flags.

    Of the difference between the two largest logits, along 64 random orthogonal directions or all pixels,
    without gradients enabled, as the model is scored. Images are moved off kinks, see `differences`. The
    step is 1e-7; a sample that disagrees is asked with steps of 1e-5 and 1e-3 too.

    The model's own backward pass, backpropagation or an adjoint solve, is taken in its own precision, as
    attacks do, and in float64. Of a model in half precision .9 is enough. Where a solve is seen, the gradient
    by the other of the two ways is reported as well, and does not count.
    """
    context = context.first(SAMPLES)
    generator = context.generator("gradient-fidelity")
    images = off_kinks(context.images, generator)
    with in_float64(context.model, images) as double:
        images = images[context.answered(images.double(), double)]
    logits = context.logits(images)
    limit = LIMIT if coarsest_eps(context.model, logits) < 1e-6 else COARSE_LIMIT
    lead = partial(_lead, context.num_classes, logits.topk(2, dim=1).indices)
    basis = orthonormal_basis(images[0].numel(), DIRECTIONS, generator).to(images.device)
    own = _slopes(partial(lead, context.model), images, basis)
    found = {str(logits.dtype).removeprefix("torch."): own}
    with in_float64(context.model, images) as double:
        found["float64"] = _slopes(partial(lead, double), images.double(), basis)
        agreement = _agreement(partial(lead, double), images.double(), basis, found)
    worst = {name: float(values.min()) for name, values in agreement.items()}
    sentence = "The cosine between the model's gradient and central differences is at least "
    sentence += " and ".join(f"{cosine:.4f} in {name}" for name, cosine in worst.items()) + "."
    by_adjoint = any(call.adjoint for call in context.solver_calls())
    other = _other_gradient(context, lead, images, basis, own, adjoint=not by_adjoint)
    name = "Backpropagation through the steps" if by_adjoint else "The adjoint method"
    if isinstance(other, Tensor):
        agreement["adjoint against backpropagation"] = other
        sentence += (
            f" {name}, which the model does not use, would give a gradient whose cosine with this "
            f"one is at least {float(other.min()):.4f}."
        )
    elif other:
        sentence += f" {name}, which the model does not use, fails here: {other}."
    value = min(worst.values())
    return measured(
        value,
        limit,
        sentence,
        flagged=not value >= limit,
        unit="cosine",
        arrays={
            "x": array(torch.arange(len(images))),
            **{k: array(v.sort().values) for k, v in agreement.items()},
        },
        axes=("sample, sorted", "cosine"),
    )


def _agreement(
    lead: Callable[..., Tensor], images: Tensor, basis: Tensor, found: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Cosines (N,) of each of `found` (N, k) with central differences, of the step where they agree best."""
    slopes = torch.stack(list(found.values()))
    best = torch.full(slopes.shape[:2], -2.0, dtype=torch.float64, device=images.device)
    for step in STEPS:
        rows = (best.amin(0) < CLEAR).nonzero().flatten()
        if not len(rows):
            break
        wanted = central_differences(partial(lead, rows=rows), images[rows], basis, step)
        values = torch.stack([cosines(each[rows], wanted) for each in slopes])
        better = values.amin(0) > best[:, rows].amin(0)
        best[:, rows] = torch.where(better, values, best[:, rows])
    return dict(zip(found, best, strict=True))


def _other_gradient(
    context: Context,
    lead: Callable[..., Tensor],
    images: Tensor,
    basis: Tensor,
    own: Tensor,
    *,
    adjoint: bool,
) -> Tensor | str:
    """Cosines (N,) with the `own` gradient of the one by the adjoint method, or by backpropagation.

    Why that fails, where it does; nothing where it cannot be asked for.
    """
    if not context.solver_calls():
        return ""
    other = ChangedModel(context.model, SolverChange(adjoint=adjoint))
    try:
        with solved_as_forward(other):
            return cosines(_slopes(partial(lead, other), images, basis), own)
    except CannotSolveOtherwise:
        return ""
    except (ModelFailure, AssertionError) as error:  # the backward solve underflows outside the block
        return str(error)


def _lead(
    num_classes: int, top: Tensor, model: nn.Module, images: Tensor, rows: Tensor | slice = slice(None)
) -> Tensor:
    """The logit of the first of the classes `top` (all, 2)[rows] over that of the second, (N,), float64."""
    chosen = ask_model(model, images, num_classes).double().gather(1, top[rows])
    return chosen[:, 0] - chosen[:, 1]


def _slopes(lead: Callable[[Tensor], Tensor], images: Tensor, basis: Tensor) -> Tensor:
    """Directional derivatives (N, k) by the model's own backward pass, float64."""
    x = images.clone().requires_grad_(True)
    with torch.enable_grad():
        total = lead(x).sum()
    gradient = torch.autograd.grad(total, x, allow_unused=True)[0] if total.requires_grad else None
    if gradient is None:
        gradient = torch.zeros_like(images)
    return gradient.detach().double().flatten(1) @ basis.T
