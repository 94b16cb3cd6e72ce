"""A few of many, evenly spread."""

from __future__ import annotations

import torch


def evenly_spread(count: int, most: int) -> list[int]:
    """At most `most` of the indices below `count`, evenly spread, first and last among them."""
    picked = torch.linspace(0, count - 1, min(count, most), dtype=torch.float32, device="cpu")
    return [int(index) for index in picked.tolist()] if count else []
