"""What each part of an attack cost, and how many samples it broke: kept for whoever asks for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

Meter = Callable[[], tuple[int, int, int]]
"""Samples passed forwards and backwards so far, and field evaluations times samples."""


@dataclass
class Part:
    """One part of an attack at one strength; several batches add up.

    Attributes
    ----------
    samples
        Those that stood when it began.
    broken
        How many of them it broke.
    seconds, forwards, backwards, evaluations
        Its share of what the part cost; of a part for several strengths at once, in proportion to `samples`.
    """

    samples: int = 0
    broken: int = 0
    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0
    evaluations: int = 0


class Ledger:
    """The parts of an attack, by strength and name, in the order in which they began.

    Parameters
    ----------
    meter
        Reads what has been asked of the model so far.
    """

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.parts: dict[tuple[float, str], Part] = {}

    def at(self, strength: float) -> dict[str, Part]:
        """The parts at one strength, by name."""
        return {name: part for (at, name), part in self.parts.items() if at == strength}


_LEDGER: ContextVar[Ledger | None] = ContextVar("ledger", default=None)


@contextmanager
def keeping(meter: Meter) -> Iterator[Ledger]:
    """A ledger that the parts of every attack in the block write to."""
    ledger = Ledger(meter)
    token = _LEDGER.set(ledger)
    try:
        yield ledger
    finally:
        _LEDGER.reset(token)


@contextmanager
def part(
    name: str, strengths: Sequence[float], standing: Callable[[], Sequence[int]] | None = None
) -> Iterator[None]:
    """What happens in the block is the part `name`; nothing is noted where nobody keeps a ledger.

    Parameters
    ----------
    standing
        How many samples stand at each of `strengths`, asked before and after; None for a part that breaks
        nothing and is divided equally.
    """
    ledger = _LEDGER.get()
    if ledger is None:
        yield
        return
    before = list(standing()) if standing else [0] * len(strengths)
    asked_before = ledger.meter()
    began = time.perf_counter()
    yield
    after = list(standing()) if standing else before
    seconds = time.perf_counter() - began
    asked = [now - then for now, then in zip(ledger.meter(), asked_before, strict=True)]
    shares = [divided(total, before) for total in asked]
    weight = sum(before)
    for i, strength in enumerate(strengths):
        if weight and not before[i]:
            continue
        one = ledger.parts.setdefault((strength, name), Part())
        one.samples += before[i]
        one.broken += before[i] - after[i]
        one.seconds += seconds * (before[i] / weight if weight else 1 / len(strengths))
        one.forwards += shares[0][i]
        one.backwards += shares[1][i]
        one.evaluations += shares[2][i]


def divided(total: int, weights: Sequence[int]) -> list[int]:
    """Whole shares of `total` in proportion to `weights`, equal ones where all are 0; they sum to it."""
    weights = weights if sum(weights) else [1] * len(weights)
    ends = [total * sum(weights[: i + 1]) // sum(weights) for i in range(len(weights))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
