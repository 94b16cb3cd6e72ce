"""The floating type in which a model takes its images, found by trying."""

from __future__ import annotations

from collections import Counter
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..._errors import ContractBroken, RobustodeError
from .memory import out_of_memory

_State = tuple[torch.dtype, frozenset[torch.dtype]]
"""Of the images as they come, and of the model's parameters and buffers."""
_accepted: WeakKeyDictionary[nn.Module, dict[_State, torch.dtype]] = WeakKeyDictionary()


def image_dtype(model: nn.Module, images: Tensor) -> torch.dtype | None:
    """The type in which `model` took images like `images` before; None where it was not asked yet."""
    return _accepted.get(model, {}).get(_state(model, images))


def call_in_its_dtype(model: nn.Module, images: Tensor) -> object:
    """What `model` returns for `images` (N, C, H, W).

    They are handed over as they are, in float32, in each floating type of the model's parameters and buffers,
    the most frequent first, and in float64, until the model takes one; that is remembered while its tensors
    keep their types. So a float64 time beside float32 layers decides nothing.

    Raises
    ------
    ContractBroken
        The model changed its images in place.
    Exception
        What the model raises; where it takes no type, what it raised for that of most of its parameters.
    """
    known = image_dtype(model, images)
    if known is not None:
        return _call(model, images.to(known))
    failures: dict[torch.dtype, Exception] = {}
    sizes = _sizes(model)
    tried = [images.dtype, torch.float32, *(dtype for dtype, _ in sizes.most_common()), torch.float64]
    for dtype in dict.fromkeys(tried):
        try:
            returned = _call(model, images.to(dtype))
        except (RobustodeError, MemoryError):
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            failures[dtype] = error
            continue
        _accepted.setdefault(model, {})[_state(model, images)] = dtype
        return returned
    own = next((dtype for dtype, _ in sizes.most_common()), images.dtype)
    raise failures[own]


def _call(model: nn.Module, images: Tensor) -> object:
    if not images.requires_grad:
        images = images.detach()  # a model that asks for gradients of its input asks for those of its own
    version = None if images.is_inference() else images._version
    returned: object = model(images)
    if version is not None and images._version != version:
        raise ContractBroken("the model changes its input in place: work on a copy of the images")
    return returned


def _sizes(model: nn.Module) -> Counter[torch.dtype]:
    """Entries by floating type: of the parameters, or of the buffers where there is no such parameter."""
    for tensors in (model.parameters(), model.buffers()):
        sizes: Counter[torch.dtype] = Counter()
        for tensor in tensors:
            if tensor.is_floating_point() and not is_lazy(tensor):
                sizes[tensor.dtype] += tensor.numel()
        if sizes:
            return sizes
    return Counter()


def _state(model: nn.Module, images: Tensor) -> _State:
    types = [tensor.dtype for tensors in (model.parameters(), model.buffers()) for tensor in tensors]
    return images.dtype, frozenset(types)
