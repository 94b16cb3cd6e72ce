"""Small functions that several audits use: fractions, normalised logits, rounding, arrays for plots."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


def fraction(mask: Tensor) -> float:
    """The fraction of true entries."""
    return float(mask.double().mean())


def coarsest_eps(model: nn.Module, logits: Tensor) -> float:
    """The spacing of numbers near 1 in the coarsest floating type of a model's parameters and `logits`."""
    types = {p.dtype for p in model.parameters() if p.is_floating_point()} | {logits.dtype}
    return max(torch.finfo(dtype).eps for dtype in types)


def exceeds(points: float, threshold: float, count: int) -> bool:
    """Whether `points` percent of `count` samples are more than `threshold` percent and than one sample.

    Chance decides about a single sample.
    """
    return round(points, 9) > threshold and round(points / 100 * count) > 1


def normalised(logits: Tensor) -> Tensor:
    """Logits (N, K) in float64, each row of length 1."""
    logits = logits.double()
    unit: Tensor = logits / logits.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return unit


def array(values: Tensor | list[float]) -> np.ndarray:
    """As a float64 array on the CPU."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().tolist()
    return np.asarray(values, np.float64)
