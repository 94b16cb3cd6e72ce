"""Calls a model's factory: with every random state seeded, so that one seed always gives one network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..._errors import ContractBroken, ModelFailure, RobustodeError, one_line
from ...attacks.core.model_call import call_model, where
from ...attacks.core.modes import set_mode
from .announcements import TORCH_SEED, announce
from .foreign_code import building, source_of


def construct(
    build: Callable[..., nn.Module],
    input_shape: tuple[int, int, int],
    num_classes: int,
    hyperparameters: Mapping[str, Any],
    *,
    seed: int,
    images: Tensor | None = None,
) -> nn.Module:
    """Build a model from `seed`, in eval mode, and test it on `images` (N, C, H, W) where they are given.

    Whatever the factory draws from, torch, numpy or `random`, follows from the seed. The caller's random
    states are left as they are.

    Raises
    ------
    ModelFailure
        When it cannot be built, is not a module, or returns no logits.
    """
    with building(build, seed), torch.no_grad():
        try:
            model = build(input_shape, num_classes, **hyperparameters)
        except RobustodeError:
            raise
        except (Exception, SystemExit) as error:
            raise ModelFailure(
                f"the model cannot be built: {type(error).__name__}: {one_line(error)}{where(error)}"
            ) from error
        if not isinstance(model, nn.Module):
            raise ContractBroken(f"the factory returned {type(model).__name__}, not a torch.nn.Module")
        reseeded = torch.initial_seed() != seed % 2**63
        set_mode(model, training=False)
        if images is not None:
            call_model(model, images, num_classes)
    if reseeded:
        announce(source_of(build), [TORCH_SEED])
    return model
