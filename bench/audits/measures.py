"""Small functions that several audits use: fractions, normalised logits, float64 copies, arrays for plots."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from ..evaluation.accuracy import frozen


def fraction(mask: Tensor) -> float:
    """The fraction of true entries."""
    return float(mask.double().mean())


def normalised(logits: Tensor) -> Tensor:
    """Logits (N, K) in float64, each row of length 1."""
    logits = logits.double()
    unit: Tensor = logits / logits.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return unit


@contextmanager
def double_copy(model: nn.Module) -> Iterator[nn.Module]:
    """A deep copy of `model` in float64, frozen."""
    double = copy.deepcopy(model).double()
    with frozen(double):
        yield double


def array(values: Tensor | list[float]) -> np.ndarray:
    """As a float64 array on the CPU."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().tolist()
    return np.asarray(values, np.float64)
