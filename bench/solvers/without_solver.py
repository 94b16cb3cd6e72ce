"""Whether a model of which no solve is seen is known to solve no ODE, or cannot be looked into."""

from __future__ import annotations

from torch import nn

KNOWN = ("torch.nn", "torchvision", "timm", "deel", "torchlip")
"""Libraries whose layers are known to solve no ODE."""


def known_without_solver(model: nn.Module) -> bool:
    """Whether every part of `model` is a layer or a network of a library of `KNOWN`, as it stands there.

    Any other code may step an ODE itself, or by a copy of a library.
    """
    return all(
        any(f"{type(part).__module__}.".startswith(f"{name}.") for name in KNOWN)
        and "forward" not in vars(part)
        for part in model.modules()
    )
