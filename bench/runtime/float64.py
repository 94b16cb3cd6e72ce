"""A model in float64, where it computes in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..._errors import ModelFailure, NotAsked, RobustodeError, one_line
from ...attacks.core.double_precision import in_double
from ...attacks.core.frozen_model import frozen
from ...attacks.core.sample_answers import may_concern_a_sample
from ...attacks.core.torch_settings import KeptSettings

TRIED = 4
"""Images that are asked alone, until one has an answer."""


@contextmanager
def in_float64(model: nn.Module, images: Tensor) -> Iterator[nn.Module]:
    """`model` itself in float64, frozen, for a block; put back whatever happens. It is not copied.

    Raises
    ------
    NotAsked
        Where the model does not compute in float64: it raises for each of the first `TRIED` of `images`
        (N, C, H, W), asked alone, or its logits are of another type.
    """
    with frozen(model), in_double(model):
        found = _answers_in(model, images[:TRIED])
        if found != torch.float64:
            raise NotAsked(f"The model cannot be asked in float64: it answers in {found}")
        yield model


def _answers_in(model: nn.Module, images: Tensor) -> object:
    """The type of the logits of the first of `images` that has an answer in float64."""
    failure: Exception | None = None
    for image in images.double().split(1):
        try:
            with torch.no_grad(), KeptSettings(model):
                logits = model(image)
            return getattr(logits, "dtype", type(logits).__name__)
        except ModelFailure:
            return torch.float64  # of this image: a solver may give up on it
        except (RobustodeError, MemoryError):
            raise
        except Exception as error:
            failure = failure or error
            if not may_concern_a_sample(error):
                break
    if failure is None:
        return torch.float64
    line = f"{type(failure).__name__}: {one_line(failure)}"
    raise NotAsked(f"The model cannot be asked in float64: {line}") from failure
