"""What a check is (`Audit`), what it says (`Verdict`), and the registry that checks join. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from ..._errors import InvalidArgument
from ..._registry import Registry, check_name

Needs = Literal["records", "model"]
Outcome = Literal["pass", "flag", "not applicable"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a check found.

    Attributes
    ----------
    outcome
        ``pass``, ``flag`` or ``not applicable``.
    sentence
        One sentence that a reader understands without the check's source; the reason where it does not apply.
    value, threshold
        The measured number and the one it is held against; NaN where nothing was measured.
    unit
        Of both: ``points``, ``share``, ``cosine``, ``ratio``, ``samples``, ...
    arrays
        Small arrays for the plot behind it: ``x`` (k,) and one or more lines over it, each (k,), by name.
    axes
        Labels of that plot's axes.
    """

    outcome: Outcome
    sentence: str
    value: float = math.nan
    threshold: float = math.nan
    unit: str = ""
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    axes: tuple[str, str] = ("", "")

    def __post_init__(self) -> None:
        if self.outcome not in get_args(Outcome):
            raise InvalidArgument(f"a verdict is pass, flag or not applicable, not {self.outcome!r}")


def judged(
    value: float, threshold: float, sentence: str, *, fails: bool | None = None, **rest: Any
) -> Verdict:
    """A verdict that flags when `value` exceeds `threshold`, or as `fails` says; NaN flags."""
    # Differences of percentages carry rounding: 55% - 50% is more than 5 points in binary.
    bad = not round(value, 12) <= threshold if fails is None else fails
    return Verdict(
        outcome="flag" if bad else "pass", sentence=sentence, value=value, threshold=threshold, **rest
    )


def not_applicable(reason: str) -> Verdict:
    """The check has nothing to say of this model, for `reason`."""
    return Verdict(outcome="not applicable", sentence=reason)


Check: TypeAlias = Callable[[Any], Verdict]
"""Takes a `context.Context`, or an `evidence.Evidence` where only records are needed."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """One entry of the registry of checks.

    Attributes
    ----------
    title
        What is asked, in a few words.
    needs
        ``records``: it reads stored records when a report is made. ``model``: it asks the trained model.
    cost
        What it asks of the model, in forwards and backwards an image, or in words.
    fast
        Whether it takes seconds.
    untrained
        Whether `robustode check` runs it, on an untrained model. Not for audits of the solver's steps: steps
        must suit the weights that training finds.
    remedy
        What to change in a model that is flagged, one sentence.
    reference
        The paper it follows.
    check
        See `Check`.
    version
        Raise it by hand when the check changes: stored outcomes of older versions are not reused.
    """

    name: str
    title: str
    needs: Needs
    cost: str
    check: Check
    fast: bool = False
    untrained: bool = False
    remedy: str = ""
    reference: str = ""
    version: int = 1

    def __post_init__(self) -> None:
        check_name(self.name, "audit")
        if self.needs not in get_args(Needs):
            raise InvalidArgument(f"audit {self.name}: needs records or model, not {self.needs!r}")

    def __call__(self, context: Any) -> Verdict:
        """Run the check."""
        return self.check(context)


AUDITS: Registry[Audit] = Registry("audit")


def register_audit(name: str, **attributes: Any) -> Callable[[Check], Check]:
    """Register the decorated function as the check `name`; `attributes` are those of `Audit`.

    Examples
    --------
    >>> @register_audit("example", title="always passes", needs="records", cost="none")
    ... def check(evidence):
    ...     return judged(0.0, 1.0, "Nothing was measured.")
    >>> AUDITS.get("example")(None).outcome
    'pass'
    >>> AUDITS.unregister("example")
    """

    def decorate(check: Check) -> Check:
        AUDITS.register(Audit(name=name, check=check, **attributes))
        return check

    return decorate
