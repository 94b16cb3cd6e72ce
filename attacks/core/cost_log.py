"""What each part of an attack cost, and how many samples it broke."""

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
        Those not broken when it began.
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


class CostLog:
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


_COST_LOG: ContextVar[CostLog | None] = ContextVar("cost log", default=None)


@contextmanager
def record_costs(meter: Meter) -> Iterator[CostLog]:
    """Log the cost of the parts of every attack in the block; `meter` reads the counts."""
    log = CostLog(meter)
    token = _COST_LOG.set(log)
    try:
        yield log
    finally:
        _COST_LOG.reset(token)


@contextmanager
def part(
    name: str, strengths: Sequence[float], count_active: Callable[[], Sequence[int]] | None = None
) -> Iterator[None]:
    """The block is the part `name` of an attack; logged inside `record_costs` only.

    Parameters
    ----------
    count_active
        How many samples are not broken at each of `strengths`, called before and after; None for a part that
        breaks nothing and is split equally.
    """
    log = _COST_LOG.get()
    if log is None:
        yield
        return
    before = list(count_active()) if count_active else [0] * len(strengths)
    asked_before = log.meter()
    began = time.perf_counter()
    yield
    after = list(count_active()) if count_active else before
    seconds = time.perf_counter() - began
    asked = [now - then for now, then in zip(log.meter(), asked_before, strict=True)]
    shares = [split_in_proportion(total, before) for total in asked]
    weight = sum(before)
    for i, strength in enumerate(strengths):
        if weight and not before[i]:
            continue
        one = log.parts.setdefault((strength, name), Part())
        one.samples += before[i]
        one.broken += before[i] - after[i]
        one.seconds += seconds * (before[i] / weight if weight else 1 / len(strengths))
        one.forwards += shares[0][i]
        one.backwards += shares[1][i]
        one.evaluations += shares[2][i]


def split_in_proportion(total: int, weights: Sequence[int]) -> list[int]:
    """Whole shares of `total` in proportion to `weights`, equal ones where all are 0; they sum to it."""
    weights = weights if sum(weights) else [1] * len(weights)
    ends = [total * sum(weights[: i + 1]) // sum(weights) for i in range(len(weights))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
