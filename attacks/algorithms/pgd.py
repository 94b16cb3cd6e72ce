"""FGSM and PGD on the cross-entropy, in L-infinity and L2: one run, from where it starts to its last image.

They are written for `run_repeatedly`, which has the best image of a run, restarts and early stopping. The
order of the operations and the random starts are those of torchattacks 3.5.1, so that both give the same
images bit by bit (tests/parity). Two things differ there: images may lie in memory in any order, and starts
do not depend on it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.norms import per_image
from ..core.types import Model

_SHORTEST = 1e-10
"""Added to the length of a gradient before it is divided by it."""


def fgsm(model: Model, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """x + eps sign(grad), clipped to the box [0, 1]; images (n, C, H, W), labels int64 (n,)."""
    return (images + eps * _gradient(model, images, labels).sign()).clamp(0, 1)


def pgd_linf(model: Model, images: Tensor, labels: Tensor, eps: float, *, alpha: float, steps: int) -> Tensor:
    """`steps` steps of `alpha` along the sign of the gradient, from a uniformly random start in the ball."""
    x = (images + _empty_like(images).uniform_(-eps, eps)).clamp(0, 1)
    for _ in range(steps):
        x = x + alpha * _gradient(model, x, labels).sign()
        x = (images + (x - images).clamp(-eps, eps)).clamp(0, 1)
    return x


def pgd_l2(
    model: Model, images: Tensor, labels: Tensor, eps: float, *, alpha: float, steps: int, random_start: bool
) -> Tensor:
    """`steps` steps of length `alpha` along the gradient.

    A random start lies in a random direction, at a uniformly random share of `eps`. Steps are scaled into the
    ball and clipped to the box then, which leaves part of the budget unused where the box is met.
    """
    x = images
    if random_start:
        delta = _empty_like(images).normal_()
        share = torch.empty(len(images), 1, 1, 1, dtype=images.dtype, device=images.device).uniform_(0, 1)
        x = (images + delta * (share / _lengths(delta) * eps)).clamp(0, 1)
    for _ in range(steps):
        gradient = _gradient(model, x, labels)
        x = x + alpha * (gradient / (_lengths(gradient) + _SHORTEST))
        delta = x - images
        x = (images + delta * (eps / _lengths(delta)).clamp_max(1)).clamp(0, 1)
    return x


def _gradient(model: Model, x: Tensor, labels: Tensor) -> Tensor:
    """Of the mean cross-entropy over the batch, by `x` (n, C, H, W)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), labels), x)
    return gradient


def _empty_like(images: Tensor) -> Tensor:
    """To be filled with random numbers: in the order of the pixels, however `images` lie in memory."""
    return torch.empty(images.shape, dtype=images.dtype, device=images.device)


def _lengths(images: Tensor) -> Tensor:
    """The L2 norm of each sample, (n, 1, 1, 1)."""
    return per_image(torch.linalg.vector_norm(images.flatten(1), dim=1))
