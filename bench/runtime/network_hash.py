"""A hash of the network that a factory builds: what a record was made with, whatever it was read from.

The source of a model file is part of its version. What the file reads when it is run is not: weights of a
frozen part, a table, an environment variable. So the network is built, and what it holds is hashed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..._errors import InvalidArgument
from ...attacks.core.model_call import call_model
from ...models import ModelSpec
from ..records.record import digest
from .construct import construct
from .foreign_code import asking
from .network_state import Content, content_of, network_state

PROBES = 4
_LOGITS = "logits"


def probe_images(input_shape: tuple[int, ...], count: int = PROBES) -> Tensor:
    """Return images in [0, 1], float32 (count, C, H, W), the same everywhere: multiples of a golden ratio."""
    places = np.arange(1, count * math.prod(input_shape) + 1, dtype=np.float64)
    values = (places * (math.sqrt(5) - 1) / 2) % 1.0
    return torch.from_numpy(values.astype(np.float32).reshape(count, *input_shape))


def network_sha256(
    spec: ModelSpec, input_shape: tuple[int, int, int], num_classes: int, arguments: Mapping[str, Any]
) -> str:
    """Return the hash of the network that `spec` builds with `arguments`; the same for every training seed.

    The network is built three times: twice from one seed, once from another. What is the same in all three
    is hashed bit by bit. What the seed draws is hashed roughly, since its last bits differ between
    processors, and so are the logits of a few images, by which a change shows in code that is read or
    imported where nobody can see it. What no seed determines is left out.

    Raises
    ------
    ModelFailure
        When it cannot be built.
    InvalidArgument
        When what it answers by is drawn from a generator that nobody seeds.
    """
    build = partial(_state, spec, input_shape, num_classes, arguments)
    other = build(seed=1, rough=False)  # it fills what the code keeps for all networks, too
    one, again = build(seed=0), build(seed=0)
    _refuse_unseeded(spec.name, one, again)
    lines: list[list[object]] = []
    hidden: tuple[str, ...] = ()
    for name in sorted(one):
        content, twice = one[name], again.get(name)
        if hidden and name.startswith(hidden):
            continue
        if twice is None or _drawn(content) != _drawn(twice):
            hidden = (*hidden, f"{name}.")  # such as a list that grows with every network
        elif content.rough is None or (content == other.get(name) and name != _LOGITS):
            lines.append([name, content.kind, content.sha256])
        else:
            lines.append([name, content.kind, list(content.rough)])
    return digest(lines)


def _refuse_unseeded(model: str, one: Mapping[str, Content], again: Mapping[str, Content]) -> None:
    """Refuse a factory that builds networks of other numbers and other answers from one seed."""
    other = [name for name in one if name in again and _drawn(one[name]) != _drawn(again[name])]
    if _LOGITS in other and len(other) > 1:
        name = min(set(other) - {_LOGITS})
        raise InvalidArgument(
            f"model {model}: its factory builds another network each time from one seed ({name} differs): "
            "draw from torch, or from the functions of numpy.random and random, or seed its own generator"
        )


def _drawn(content: Content) -> Any:
    return content.kind, content.rough or content.sha256


def _state(
    spec: ModelSpec,
    input_shape: tuple[int, int, int],
    num_classes: int,
    arguments: Mapping[str, Any],
    *,
    seed: int,
    rough: bool = True,
) -> dict[str, Content]:
    """What one network holds after it was asked for the first time, but for what a question changes."""
    model = construct(spec.build, input_shape, num_classes, arguments, seed=seed)
    look = partial(network_state, model, spec.build, with_source=spec.source is None)
    before = look(rough=False)
    logits = _ask(model, spec, input_shape, num_classes, seed)
    found = look(rough=rough)
    changed = [name for name in found if name in before and found[name] != before[name]]
    for name in changed:
        del found[name]
    return found if logits is None else {**found, _LOGITS: content_of(logits.numpy())}


def _ask(
    model: nn.Module, spec: ModelSpec, input_shape: tuple[int, int, int], num_classes: int, seed: int
) -> Tensor | None:
    with suppress(Exception), asking(model, seed), torch.no_grad():
        return call_model(model, probe_images(input_shape), num_classes).float()
    return None
