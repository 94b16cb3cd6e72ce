"""One benchmark: its time, its baseline's, their ratio, and whether a goal is met. No torch."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .text import memory, time_text

HEADS = ("Group", "What", "Batch", "Median", "Baseline", "Its median", "Ratio", "Rounds", "Goal", "Met")
"""Columns of the table."""
WORDS = ("Group", "What", "Baseline", "Goal", "Met")
"""Those that hold words."""
_RELATIONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_GOAL = re.compile(r"(ratio|overhead|seconds) (>=|<=|>|<) (\d+(?:\.\d+)?)")


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is aimed at: a bound on the ratio, on 1 / ratio - 1 (overhead), or on the median in seconds."""

    quantity: str
    relation: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Goal:
        """Read ``ratio >= 3``, ``overhead <= 0.05`` or ``seconds < 0.3``; raise `ValueError` for others."""
        found = _GOAL.fullmatch(text)
        if found is None:
            raise ValueError(f"a goal reads like 'ratio >= 3', not {text!r}")
        return cls(quantity=found[1], relation=found[2], bound=float(found[3]))

    def __str__(self) -> str:
        sign = self.relation.replace(">=", "≥").replace("<=", "≤")
        if self.quantity == "overhead":
            return f"overhead {sign} {100 * self.bound:g}%"
        return f"{sign} {self.bound:g}{' s' if self.quantity == 'seconds' else ''}"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One benchmark; times in seconds.

    Attributes
    ----------
    minimum, median, mean, rounds
        Of what is timed.
    what, baseline, device
        In words; blank where the file does not say.
    batch
        Samples per call.
    baseline_median
        Seconds.
    ratio, quartiles
        Baseline over what is timed, per sample: the median over pairs, and its lower and upper quartile.
    peaks
        Most bytes held at once by what is timed and by its baseline; `ratio` is then that of the bytes.
    """

    group: str
    name: str
    minimum: float
    median: float
    mean: float
    rounds: int
    what: str = ""
    device: str = ""
    batch: int | None = None
    baseline: str = ""
    baseline_median: float | None = None
    ratio: float | None = None
    quartiles: tuple[float, float] | None = None
    peaks: tuple[int, int] | None = None
    goal: Goal | None = None

    @property
    def overhead(self) -> float | None:
        """Time beyond the baseline's, as a fraction of it."""
        return 1 / self.ratio - 1 if self.ratio else None

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the goal; None without a goal or without what it speaks of."""
        if self.goal is None:
            return None
        value = {"ratio": self.ratio, "overhead": self.overhead, "seconds": self.median}[self.goal.quantity]
        return None if value is None else bool(_RELATIONS[self.goal.relation](value, self.goal.bound))

    def cells(self) -> tuple[str, ...]:
        """The row under `HEADS`, blank where nothing is known."""
        ratio = "" if self.ratio is None else f"{self.ratio:.3g}"
        if self.quartiles and not self.peaks:
            ratio += " [{:.3g}, {:.3g}]".format(*self.quartiles)
        goal = "" if self.goal is None else str(self.goal)
        if self.goal and self.goal.quantity == "overhead" and self.overhead is not None:
            goal += f" (is {100 * self.overhead:.1f}%)"
        if self.peaks:
            ours, theirs = map(memory, self.peaks)
        else:
            ours, theirs = time_text(self.median), time_text(self.baseline_median)
        met = {True: "yes", False: "no", None: ""}[self.met]
        batch = "" if self.batch is None else f"{self.batch}"
        what = self.what or self.name
        return self.group, what, batch, ours, self.baseline, theirs, ratio, str(self.rounds), goal, met


def timing(one: Mapping[str, Any]) -> Timing:
    """Read one entry of a file; raise `KeyError`, `TypeError` or `ValueError` when it is none."""
    stats, extra = one["stats"], one.get("extra_info") or {}
    peaks = (int(extra["bytes"]), int(extra["baseline_bytes"])) if "bytes" in extra else None
    ratio = peaks[1] / peaks[0] if peaks else extra.get("ratio")
    quartiles, batch, seconds = (extra.get(k) for k in ("ratio_quartiles", "batch_size", "baseline_seconds"))
    return Timing(
        group=str(one.get("group") or ""),
        name=str(one["name"]),
        minimum=float(stats["min"]),
        median=float(stats["median"]),
        mean=float(stats["mean"]),
        rounds=int(stats["rounds"]),
        what=str(extra.get("what") or ""),
        device=str(extra.get("device") or ""),
        batch=None if batch is None else int(batch),
        baseline=str(extra.get("baseline") or ""),
        baseline_median=None if seconds is None else float(seconds),
        ratio=None if ratio is None else float(ratio),
        quartiles=None if quartiles is None else (float(quartiles[0]), float(quartiles[1])),
        peaks=peaks,
        goal=Goal.parse(str(extra["goal"])) if "goal" in extra else None,
    )
