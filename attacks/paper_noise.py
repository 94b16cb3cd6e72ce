"""The noise of the CH-NODE paper, exactly: on the normalised image, clipped to [-1, 1] there.

Strengths are the paper's: a variance, and a fraction of pixels. They are not those of `noise`: the clipping
cuts bright strokes (2.8 normalised) to 1, so even pixels that no noise hits change. In pixel units the
images lie in [-0.177, 0.439], and variances of 0.05 and 0.2 are standard deviations of 0.069 and 0.138.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .core.sampling import draw, normal, uniform_unit
from .core.types import Model, Seed
from .registry import register_threat

MEAN, STD = 0.1307, 0.3081
"""The paper's normalisation of MNIST."""

PROTOCOL = "paper-exact"
_REFERENCE = "Zakwan, Xu, Ferrari-Trecate, arXiv 2203.11805, section IV; clipping as in scikit-image"
_BOX = (MEAN - STD, MEAN + STD)


def _clipped(normalised: Tensor) -> Tensor:
    return (MEAN + STD * normalised.clamp(-1, 1)).clamp(*_BOX)


@register_threat(
    "paper-gaussian",
    family="noise",
    strength_name="variance",
    stochastic=True,
    protocol=PROTOCOL,
    box=_BOX,
    reference=_REFERENCE,
)
def paper_gaussian(model: Model, images: Tensor, labels: Tensor, strength: float, seed: Seed) -> Tensor:
    """Add N(0, strength), a variance, to the normalised image and clip it to [-1, 1]."""
    noise = draw(images, seed, normal)
    return _clipped((images - MEAN) / STD + strength**0.5 * noise)


@register_threat(
    "paper-salt-pepper",
    family="noise",
    strength_name="amount",
    max_strength=1.0,
    stochastic=True,
    protocol=PROTOCOL,
    box=_BOX,
    reference=_REFERENCE,
)
def paper_salt_pepper(model: Model, images: Tensor, labels: Tensor, strength: float, seed: Seed) -> Tensor:
    """Set each normalised pixel with probability `strength` to 1 or -1, and clip the image to [-1, 1]."""
    u = draw(images, seed, uniform_unit)
    normalised = (images - MEAN) / STD
    normalised = torch.where(u < strength / 2, 1.0, normalised)
    return _clipped(torch.where(u >= 1 - strength / 2, -1.0, normalised))
