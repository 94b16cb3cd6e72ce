"""A gradient through several batches of a model, of which one graph is held at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RecomputedGradient(torch.autograd.Function):
    """A model asked in batches; for the gradient each is asked again, so that one batch's graph is held."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, model: Any) -> Tensor:
        """Logits (N, K) of `images`, without a graph."""
        ctx.save_for_backward(images)
        ctx.model = model
        logits: Tensor = model.logits(images)
        return logits

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient by the images, from that by the logits."""

        def pull_back(x: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
            return (ctx.model.pull_back(x, gradient),)

        (gradient,) = ctx.model.in_batches(pull_back, *ctx.saved_tensors, *gradients)
        return gradient, None
