"""Counting field evaluations."""

from __future__ import annotations

from torch import nn


def count_nfe(model: nn.Module) -> int | None:
    """Return the number of field evaluations (NFE) of the model's last forward pass.

    Parameters
    ----------
    model
        Its own and its submodules' integer attributes ``nfe`` are summed.

    Returns
    -------
    int or None
        None for a model without such an attribute.
    """
    counting = (m for m in model.modules() if "nfe" in m.__dict__ or hasattr(type(m), "nfe"))
    found = (module.nfe for module in counting)
    counts = [nfe for nfe in found if isinstance(nfe, int)]
    return sum(counts) if counts else None
