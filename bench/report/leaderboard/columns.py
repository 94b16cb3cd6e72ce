"""The leaderboard's columns as data: what an accuracy or a timing is of, and its names. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from ..certificates import CERTIFICATE
from ..style import NORMS, certified_name, key_name, strength_symbol
from ..worst_case import WORST_CASE

Kind = Literal["clean", "noise", "worst-case", "certified"]
Task = Literal["inference", "training-step"]
TASKS: tuple[Task, ...] = ("inference", "training-step")
_SEPARATOR = "; "  # between the entries of a column that lists several


@dataclass(frozen=True, kw_only=True)
class AccuracyColumn:
    """One reported accuracy.

    Attributes
    ----------
    kind
        ``noise`` at one strength, ``worst-case`` over every attack of a norm, ``certified`` in a norm.
    of
        The noise, or the norm; empty for clean accuracy.
    strength
        In units of the pixel range; 0 for clean accuracy.
    """

    kind: Kind
    of: str = ""
    strength: float = 0.0

    @property
    def name(self) -> str:
        """The column: ``clean``, ``gaussian@0.2``, ``linf@0.1``, ``certified-linf@0.1``."""
        if self.kind == "clean":
            return "clean"
        return f"{'certified-' if self.kind == 'certified' else ''}{self.of}@{self.strength:g}"

    @property
    def low(self) -> str:
        """The column of the lower end of its 95% interval."""
        return f"{self.name}_low"

    @property
    def high(self) -> str:
        """The column of the upper end of its 95% interval."""
        return f"{self.name}_high"

    @property
    def spread(self) -> str:
        """The column of its standard deviation over training seeds."""
        return f"{self.name}_spread"

    @property
    def no_answer(self) -> str:
        """The column of the share of samples without an answer, where there are any."""
        return f"{self.name}_no_answer"

    @property
    def rank(self) -> str:
        """The column of the rank by it."""
        return f"rank@{self.name}"

    @property
    def title(self) -> str:
        """For people: ``Clean``, ``Gaussian noise``, ``Worst case ℓ∞``, ``Certified ℓ∞``."""
        return certified_name(self.of) if self.kind == "certified" else key_name(self.of or self.kind)

    @property
    def at(self) -> str:
        """Its strength for people, ``ε = 0.1``; empty for clean accuracy."""
        return "" if self.kind == "clean" else f"{strength_symbol(self.of)} = {self.strength:g}"


@dataclass(frozen=True, kw_only=True)
class TimingColumn:
    """Samples per second of one task on one device, at the best batch size."""

    task: Task
    device: str

    @property
    def name(self) -> str:
        """The column: ``inference@cpu: ...``."""
        return f"{self.task}@{self.device}"


@dataclass(frozen=True, kw_only=True)
class BoardColumns:
    """The accuracies and timings of a leaderboard, in order, and the accuracy that ranks."""

    accuracies: tuple[AccuracyColumn, ...]
    timings: tuple[TimingColumn, ...]
    ranking: AccuracyColumn

    def __deepcopy__(self, memo: object) -> BoardColumns:
        return self  # pandas copies what a table carries at each step


CLEAN = AccuracyColumn(kind="clean")


def reported_column(key: str, strength: float) -> AccuracyColumn:
    """The column of a key of ``Headline.reported``: a norm's worst case, or a noise."""
    return AccuracyColumn(kind="worst-case" if key in NORMS else "noise", of=key, strength=round(strength, 9))


def summary_column(row: Mapping[Any, Any]) -> AccuracyColumn | None:
    """The column that a row of `summarise` belongs to: its accuracy, the spread of that, its ``no_answer``.

    None for other statistics, and for the certificate of another classifier, the smoothed one.
    """
    statistic = str(row["statistic"]).removesuffix("_spread").replace("no_answer", "accuracy")
    threat, strength = str(row["threat"]), round(row["strength"], 9)
    if statistic == "accuracy":
        if threat == "clean":
            return CLEAN
        return reported_column(row["norm"] if threat == WORST_CASE else threat, strength)
    if statistic == "certified_accuracy" and threat == CERTIFICATE:
        return AccuracyColumn(kind="certified", of=row["norm"], strength=strength)
    return None


def board_columns(board: pd.DataFrame) -> BoardColumns:
    """The columns of what ``leaderboard.leaderboard`` returned, or of some of its rows."""
    found: BoardColumns = board.attrs["columns"]
    return found


def listed(names: Iterable[str]) -> str:
    """Write the entries of a column that lists several."""
    return _SEPARATOR.join(names)


def entries(value: object) -> list[str]:
    """Read a column that lists several, such as ``busy`` or ``expected_failures``; none where it is blank."""
    return [part for part in str(value).split(_SEPARATOR) if part] if isinstance(value, str) else []
