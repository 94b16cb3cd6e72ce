"""The words that every attack is written in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from torch import Tensor

Family = Literal["clean", "noise", "gradient", "search", "transfer"]
Norm = Literal["linf", "l2"]
Model: TypeAlias = Callable[[Tensor], Tensor]
"""What an attack sees of a model: images (N, C, H, W) in [0, 1] to logits (N, K)."""
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``loss(logits, rows)``: logits (n, K) of the samples `rows` (n,) to values (n,) that an attack raises."""
Seed: TypeAlias = int | Sequence[int]
"""One seed for a batch, or one per sample (any size up to 128 bits)."""
