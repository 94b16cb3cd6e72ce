"""Is the gradient that attacks follow the gradient of the model?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...._errors import ModelFailure
from ..adjoint import adjoint_copy
from ..context import Context
from ..measures import array, double_copy
from ..registry import AuditResult, measured, register_audit

SAMPLES, DIRECTIONS, STEP = 12, 64, 1e-5
LIMIT = 0.99


@register_audit(
    "gradient-fidelity",
    title="gradients agree with finite differences",
    needs="model",
    cost="12 images: 3 forward and backward passes, one of them adjoint, and 128 forward passes in float64",
    fast=True,
    untrained=True,
    remedy="Compute the same function with and without gradients, and write no backward pass by hand.",
    reference="Gholami, Keutzer, Biros, IJCAI 2019, arXiv 1902.10298 (adjoint gradients); "
    "Athalye, Carlini, Wagner, ICML 2018, section 3.1 (shattered gradients)",
    version=2,
)
def check(context: Context) -> AuditResult:
    """Cosine between the model's own gradient and central differences in float64: below .99 flags.

    Of the difference between the two largest logits, along 64 random orthogonal directions or all pixels,
    without gradients enabled, as the model is scored. The model's own backward pass, backpropagation or an
    adjoint solve, is taken in float32, as attacks do, and in float64. For a model with ODE blocks the
    gradient of the adjoint method is reported as well, and does not count.
    """
    context = context.first(SAMPLES)
    images = context.images
    top = context.logits(images).topk(2, dim=1).indices
    basis = _basis(images[0].numel(), context.generator("gradient-fidelity")).to(images.device)
    with double_copy(context.model) as double:
        wanted = _differences(double, images.double(), top, basis)
        found = {
            "float32": _slopes(context.model, images, top, basis),
            "float64": _slopes(double, images.double(), top, basis),
        }
    cosines = {name: _cosines(slopes, wanted) for name, slopes in found.items()}
    worst = {name: float(values.min()) for name, values in cosines.items()}
    value = min(worst.values())
    sentence = (
        f"The cosine between the model's gradient and central differences is at least {worst['float32']:.4f} "
        f"in float32 and {worst['float64']:.4f} in float64."
    )
    adjoint = _adjoint(context, top, basis, found["float32"])
    if isinstance(adjoint, Tensor):
        cosines["adjoint against backpropagation"] = adjoint
        sentence += (
            " The adjoint method, which the model does not use, would give a gradient whose cosine with this "
            f"one is at least {float(adjoint.min()):.4f}."
        )
    elif adjoint:
        sentence += f" The adjoint method, which the model does not use, fails here: {adjoint}."
    return measured(
        value,
        LIMIT,
        sentence,
        flagged=not value >= LIMIT,
        unit="cosine",
        arrays={
            "x": array(torch.arange(len(images))),
            **{k: array(v.sort().values) for k, v in cosines.items()},
        },
        axes=("sample, sorted", "cosine"),
    )


def _adjoint(context: Context, top: Tensor, basis: Tensor, own: Tensor) -> Tensor | str:
    """Cosines (N,) of the gradient by the adjoint method with the `own` one; why it fails; or nothing."""
    copied = adjoint_copy(context.model)
    if copied is None:
        return ""
    try:
        return _cosines(_slopes(copied, context.images, top, basis), own)
    except (ModelFailure, AssertionError) as error:  # the backward solve underflows outside the block
        return str(error)


def _basis(pixels: int, generator: torch.Generator) -> Tensor:
    """Orthonormal directions (k, pixels), float64."""
    count = min(pixels, DIRECTIONS)
    random = torch.randn(pixels, count, generator=generator, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(random).Q.T.contiguous()
    return basis


def _lead(logits: Tensor, top: Tensor) -> Tensor:
    chosen = logits.gather(1, top)
    return chosen[:, 0] - chosen[:, 1]


def _slopes(model: nn.Module, images: Tensor, top: Tensor, basis: Tensor) -> Tensor:
    """Directional derivatives (N, k) by the model's own backward pass, float64."""
    x = images.clone().requires_grad_(True)
    with torch.enable_grad():
        lead = _lead(model(x), top).sum()
    gradient = torch.autograd.grad(lead, x, allow_unused=True)[0] if lead.requires_grad else None
    if gradient is None:
        gradient = torch.zeros_like(images)
    return gradient.detach().double().flatten(1) @ basis.T


@torch.no_grad()
def _differences(model: nn.Module, images: Tensor, top: Tensor, basis: Tensor) -> Tensor:
    """Directional derivatives (N, k) by central differences; outside the box by `STEP` at most."""
    columns = []
    for direction in basis:
        step = STEP * direction.view(images[0].shape)
        columns.append((_lead(model(images + step), top) - _lead(model(images - step), top)) / (2 * STEP))
    return torch.stack(columns, 1)


def _cosines(found: Tensor, wanted: Tensor) -> Tensor:
    """Cosines (N,): 1 where both are zero, 0 where one of them is."""
    lengths = found.norm(dim=1) * wanted.norm(dim=1)
    both = (found.norm(dim=1) == 0) & (wanted.norm(dim=1) == 0)
    cosines = (found * wanted).sum(1) / lengths.clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(both, 1.0, cosines).nan_to_num(nan=-1.0)
