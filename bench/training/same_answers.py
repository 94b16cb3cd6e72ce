"""Whether a network that is built and loaded again answers as the trained one did."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import nn

from ...attacks.core.model_call import call_model
from ...attacks.core.modes import eval_mode
from ..runtime.device import module_device
from ..runtime.foreign_code import foreign_code, source_of
from ..runtime.network_hash import probe_images

TOLERANCE = 0.01
"""Of the largest logit: other machines, devices and ODE backends round within it."""
MOST_CLASSES = 16

Answers = Sequence[Sequence[float]]
"""Logits of a few images, of at most `MOST_CLASSES` classes."""


def answers_of(model: nn.Module, input_shape: tuple[int, ...], num_classes: int) -> Answers | None:
    """Return the answers of a network to a few fixed images; None where they are not always the same."""
    images = probe_images(input_shape).to(module_device(model))
    found = []
    with suppress(Exception):
        for seed in (0, 1):
            with foreign_code(source_of(model), seed=seed), torch.no_grad(), eval_mode(model):
                logits = call_model(model, images.clone(), num_classes)[:, :MOST_CLASSES]
            found.append([[float(f"{value:.6g}") for value in row] for row in logits.double().tolist()])
    return found[0] if len(found) == 2 and difference(*found) <= TOLERANCE else None


def difference(one: Answers, other: Answers) -> float:
    """Return the largest difference of two answers, relative to the largest logit of the first."""
    first, second = torch.tensor(one), torch.tensor(other)
    largest = first.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float((first - second).abs().max() / largest)
