"""A model in float64, where it computes in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..._errors import ModelFailure, NotAsked, RobustodeError, one_line
from ...attacks.core.double_precision import in_double
from ...attacks.core.frozen_model import frozen
from ...attacks.core.torch_settings import KeptSettings


@contextmanager
def in_float64(model: nn.Module, images: Tensor) -> Iterator[nn.Module]:
    """`model` itself in float64, frozen, for a block; put back whatever happens. It is not copied.

    Raises
    ------
    NotAsked
        Where the model does not compute in float64: asked for one of `images` (N, C, H, W) it raises, or its
        logits are of another type.
    """
    with frozen(model), in_double(model):
        found: object = torch.float64
        try:
            with torch.no_grad(), KeptSettings(model):
                logits = model(images[:1].double())
            found = getattr(logits, "dtype", type(logits).__name__)
        except ModelFailure:
            pass  # of this image: a solver may give up on it
        except (RobustodeError, MemoryError):
            raise
        except Exception as error:
            raise NotAsked(
                f"The model cannot be asked in float64: {type(error).__name__}: {one_line(error)}"
            ) from error
        if found != torch.float64:
            raise NotAsked(f"The model cannot be asked in float64: it answers in {found}")
        yield model
