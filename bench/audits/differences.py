"""Numerical derivatives for the audits that differentiate: taken off kinks, with a step that suits the model.

On the flat background of a digit the inputs of a max pooling tie, and so do those of a ReLU without a bias.
There the network has a slope to either side and central differences give their mean, which is no fault of its
gradient. Images moved by a random 1e-3 a pixel lie on such a kink with probability 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

JITTER = 1e-3
"""Half of the most that a pixel is moved."""
STEPS = (1e-7, 1e-5, 1e-3)
"""Lengths of a difference in l2: the shortest crosses fewest kinks, a longer one rises above rounding."""


def off_kinks(images: Tensor, generator: torch.Generator) -> Tensor:
    """`images` (N, C, H, W) in [0, 1] with each pixel moved at random by at most 2e-3, within the box."""
    noise = torch.rand(images.shape, generator=generator, dtype=torch.float64).to(images)
    return (1 - 2 * JITTER) * images + 2 * JITTER * noise


def orthonormal_basis(pixels: int, most: int, generator: torch.Generator) -> Tensor:
    """Random orthonormal directions (k, pixels), float64; k is `pixels`, `most` at most."""
    random = torch.randn(pixels, min(pixels, most), generator=generator, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(random).Q.T.contiguous()
    return basis


@torch.no_grad()
def central_differences(
    function: Callable[[Tensor], Tensor], images: Tensor, basis: Tensor, step: float
) -> Tensor:
    """Slopes (N, k) of `function`, from images (N, C, H, W) to values (N,), along the rows of `basis`."""
    columns = []
    for direction in basis:
        move = step * direction.reshape(images[0].shape).to(images)
        columns.append((function(images + move) - function(images - move)) / (2 * step))
    return torch.stack(columns, 1)


def cosines(found: Tensor, wanted: Tensor) -> Tensor:
    """Cosines (N,) of rows (N, k): 1 where both are zero, 0 where one of them is, -1 for NaN."""
    lengths = found.norm(dim=1) * wanted.norm(dim=1)
    both = (found.norm(dim=1) == 0) & (wanted.norm(dim=1) == 0)
    values = (found * wanted).sum(1) / lengths.clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(both, 1.0, values).nan_to_num(nan=-1.0)
