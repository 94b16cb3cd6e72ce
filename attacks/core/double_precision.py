"""A model asked in double precision, for the samples that single precision shows no slope of.

The slope of a tanh or a sigmoid is exactly zero in float32 from about 9 and 17 on, in float64 from about 19
and 37 on: there an attack sees where the logits would move, while single precision still decides what counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .types import Model


@contextmanager
def in_double(model: Model) -> Iterator[None]:
    """Parameters and buffers of `model` in float64 for a block; the very tensors put back whatever happens.

    Backward passes belong into the block too. What is not a module has nothing to convert.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    parameters = {id(p): p for m in modules for p in m._parameters.values() if p is not None}.values()
    buffers = [(m, name, b) for m in modules for name, b in m._buffers.items() if b is not None]
    data = [parameter.data for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.data = _wide(parameter.data)
        for module, name, buffer in buffers:
            module._buffers[name] = _wide(buffer)
        yield
    finally:
        for parameter, values in zip(parameters, data, strict=True):
            parameter.data = values
        for module, name, buffer in buffers:
            module._buffers[name] = buffer


def _wide(values: Tensor) -> Tensor:
    if values.is_complex():
        return values.to(torch.complex128)
    return values.double() if values.is_floating_point() else values
