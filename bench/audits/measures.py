"""Small functions that several audits use: fractions, normalised logits, models in float64, plot arrays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from ..._errors import RobustodeError, one_line
from ...attacks.core.double_precision import in_double
from ...attacks.core.torch_settings import KeptSettings
from ..evaluation.accuracy import frozen
from .registry import NotAsked


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


@contextmanager
def in_float64(model: nn.Module, images: Tensor) -> Iterator[nn.Module]:
    """`model` itself in float64, frozen, for a block; put back whatever happens.

    Raises
    ------
    NotAsked
        Where the model does not compute in float64: asked for one of `images` (N, C, H, W) it raises, or its
        logits are of another type.
    """
    with frozen(model), in_double(model):
        try:
            with torch.no_grad(), KeptSettings(model):
                logits = model(images[:1].double())
        except (RobustodeError, MemoryError):
            raise
        except Exception as error:
            raise NotAsked(
                f"The model cannot be asked in float64: {type(error).__name__}: {one_line(error)}"
            ) from error
        found = getattr(logits, "dtype", type(logits).__name__)
        if found != torch.float64:
            raise NotAsked(f"The model cannot be asked in float64: it answers in {found}")
        yield model


def array(values: Tensor | list[float]) -> np.ndarray:
    """As a float64 array on the CPU."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().tolist()
    return np.asarray(values, np.float64)
