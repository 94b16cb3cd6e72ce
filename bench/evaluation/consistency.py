"""Does a network answer the same image alike: again, with gradients, alone, in other orders and batches?

An attack and a certificate take a network for a function of the image. Noise or dropout left on, state that
drifts, statistics over the batch and a solver that picks its steps for the whole batch make it none. The
audits `determinism` and `batch-independence` ask at length; `inconsistencies` asks a few samples before the
first number of a run or of `evaluate`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..._errors import ModelFailure, NonFinite
from ...attacks.core.torch_settings import torch_random_states
from ..runtime.checked_model import CheckedModel, answered_rows
from ..runtime.foreign_code import asking
from .accuracy import frozen

DETERMINISM, BATCH_INDEPENDENCE = "determinism", "batch-independence"
"""The audits of these two questions."""
SAMPLES, PASSES, MORE_PASSES = 8, 8, 24
LIMIT, LARGEST_LIMIT = 1e-4, 1e-2
"""Changes of logits, relative to their size, above which answers differ; the larger where rounding is."""
JITTER = 1e-6
"""What a change of pixels by this does to the logits may be rounding."""

Ask = Callable[[Tensor], Tensor]
"""From images (N, C, H, W) to logits (N, K), all of them in one batch."""


def alone(ask: Ask, images: Tensor) -> Tensor:
    """Logits (N, K) of images (N, C, H, W), each asked in a batch of its own."""
    return torch.cat([ask(image[None]) for image in images])


def among(ask: Ask, images: Tensor, order: Tensor, *, before: Tensor, after: Tensor) -> Tensor:
    """Logits (N, K) of images in the order `order` (N,), in one batch with others before and after them."""
    together = ask(torch.cat([before, images[order], after]))[len(before) :][: len(images)]
    found = torch.empty_like(together)
    found[order] = together
    return found


def asked_with_gradients(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (N, K), detached, of a forward pass in which gradients are recorded, as an attack asks."""
    with torch.enable_grad():
        logits: Tensor = model(images.clone().requires_grad_(True))
    return logits.detach()


class RandomNumbers(TorchDispatchMode):
    """Within it is noted in `drawn` from which states torch draws floating-point random numbers.

    With a `value` each of them is that: what rarely happens, such as dropout of few units, happens with 0 or
    with almost 1.
    """

    EXTREMES = (0.0, 1.0 - 2.0**-24)
    _DRAWS = frozenset(
        "rand randn rand_like randn_like bernoulli bernoulli_ uniform uniform_ normal normal_".split()  # noqa: SIM905
    )

    def __init__(self, value: float | None = None) -> None:
        super().__init__()
        self.value = value
        self.drawn: list[bytes] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name in self._DRAWS:
            own = kwargs.get("generator")
            states = torch_random_states() if own is None else [own.get_state()]
            self.drawn += [state.numpy().tobytes() for state in states]
        found = func(*args, **kwargs)
        if self.value is not None and name in self._DRAWS and found.is_floating_point():
            found.fill_(round(self.value) if name.startswith("bernoulli") else self.value)
        return found


def draws_at_random(ask: Callable[[], object]) -> bool:
    """Whether `ask`, called twice, draws other random numbers of torch the second time."""
    drawn: list[list[bytes]] = []
    for _ in range(2):
        with RandomNumbers() as numbers:
            ask()
        drawn.append(numbers.drawn)
    return drawn[0] != drawn[1]


def inconsistencies(
    model: nn.Module, images: Tensor, *, num_classes: int, batch_size: int, device: torch.device
) -> dict[str, str]:
    """What makes the answers of `model` in eval mode no function of the image: a sentence by audit.

    Asks the first `SAMPLES` images some 20 times; more only where random numbers are drawn or the model
    keeps a state. Logits are compared by their largest difference over the root mean square of all of them.
    Above 1e-4 they differ; above what a change of pixels by 1e-6 does to them, if that is more (at most
    1e-2). Buffers and all random states are put back. A pass whose logits are not finite says nothing.

    Parameters
    ----------
    images
        Shape (N, C, H, W); those after the first `SAMPLES` fill a batch of `batch_size`.
    """
    images = images[: max(SAMPLES, batch_size)].to(device)
    few, others = images[:SAMPLES], images[SAMPLES:]
    asked = CheckedModel(model, num_classes)
    if not len(few):
        return {}
    with asking(model, 0), frozen(model), torch.no_grad(), _buffers_kept(model):
        try:
            first = asked(few.clone())
        except ModelFailure:
            left = _answered(model, images, num_classes)
            if len(left) in (0, len(images)):
                return {}
            return inconsistencies(model, left, num_classes=num_classes, batch_size=batch_size, device=device)
        noise = torch.rand(few.shape, generator=torch.Generator().manual_seed(0)).to(few)
        jitter = _change(first, lambda: asked(few * (1 - JITTER * noise)))
        limit = min(max(LIMIT, jitter), LARGEST_LIMIT)
        again = _asked_again(asked, few, others, first)
        backwards = torch.arange(len(few) - 1, -1, -1, device=device)
        batches = {
            "Alone": _change(first, lambda: alone(asked, few), failed=math.inf),
            "In reverse order": _change(first, lambda: asked(few.flip(0)).flip(0), failed=math.inf),
            "Among other images": _change(
                first, lambda: among(asked, few, backwards, before=few[:0], after=1 - few)
            ),
            f"In a batch of {len(images)}": _change(
                first, lambda: among(asked, few, backwards, before=others, after=few[:0])
            ),
        }
        again["after other batches"] = _change(first, lambda: asked(few.clone()))
    found = {}
    how, most = max(again.items(), key=lambda item: item[1])
    if most > limit:
        found[DETERMINISM] = f"Asked {how}, logits differ by up to {most:.2g} of their size."
    how, moved = max(batches.items(), key=lambda item: item[1])
    if moved > max(limit, 10 * most if most > limit else 0.0):
        differ = (
            f"{how}, logits differ by up to {moved:.2g} of their size from those in a batch of {len(few)}."
        )
        fails = f"{how}, images fail that were answered in a batch of {len(few)}."
        found[BATCH_INDEPENDENCE] = differ if moved < math.inf else fails
    return found


def _answered(model: nn.Module, images: Tensor, num_classes: int) -> Tensor:
    """Those of `images` (N, C, H, W) that have an answer."""
    try:
        return images[answered_rows(model, images, num_classes)]
    except ModelFailure:
        return images[:0]


def _asked_again(asked: CheckedModel, few: Tensor, others: Tensor, first: Tensor) -> dict[str, float]:
    """Largest change over passes of the same batch, by how it was asked."""
    found = {"with gradients": _change(first, lambda: asked_with_gradients(asked, few)), "again": 0.0}

    def ask() -> None:
        found["again"] = max(found["again"], _change(first, lambda: asked(few.clone())))

    ask()
    state, random_numbers = _state(asked.model), draws_at_random(ask)
    for _ in range(PASSES - 3):
        ask()
    if found["again"] <= LIMIT and (random_numbers or state != _state(asked.model)):
        for number in range(MORE_PASSES):  # it may answer otherwise now and then, or drift
            if len(others) and not number % 4:
                _change(first, lambda: asked(others[: len(few)])[:1])
            ask()
    if random_numbers:
        for value in RandomNumbers.EXTREMES:
            with RandomNumbers(value):
                ask()
    return found


def _change(first: Tensor, ask: Callable[[], Tensor], *, failed: float = 0.0) -> float:
    """Largest change of `first` (N, K) over its root mean square; 0 where logits are not finite."""
    try:
        logits = ask().double()
    except ModelFailure as error:
        return 0.0 if isinstance(error, NonFinite) else failed
    except (MemoryError, RuntimeError):  # a batch that does not fit
        return 0.0
    size = first.double().square().mean().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    return float((logits - first.double()).abs().max() / size)


def _state(model: nn.Module) -> list[Any]:
    """What a model may count or keep: numbers among its modules' attributes, its buffers, random states.

    Those of numpy and `random`: a model that seeds them itself leaves them as it left them before.
    """
    numbers = [
        (name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, int | float)
    ]
    buffers = [(id(buffer), buffer._version) for buffer in model.buffers()]
    _, words, *position = np.random.get_state()
    return [*numbers, *buffers, np.asarray(words).tobytes(), *position, random.getstate()]


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put the values of buffers back after a block in which a model may change them."""
    before = [
        (module, name, buffer, buffer._version, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for module, name, buffer, version, value in before:
            module._buffers[name] = buffer
            if buffer._version != version:
                buffer.detach_().copy_(value)
