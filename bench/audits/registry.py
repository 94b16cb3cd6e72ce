"""What an audit is (`Audit`), what it returns (`AuditResult`), and the registry of audits. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from ..._errors import InvalidArgument, NotAsked
from ..._registry import Registry, check_name

Needs = Literal["records", "model"]
Verdict = Literal["pass", "flag", "not applicable", "not asked"]
NOT_ASKED: Verdict = "not asked"
"""The verdict of an audit that could not put its question: the row does not count as audited by it."""


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """The result of an audit.

    Attributes
    ----------
    verdict
        ``pass``, ``flag``, ``not applicable``, or ``not asked`` of a model that it cannot look into.
    sentence
        One sentence for a reader who does not know the audit's source; the reason where it does not apply or
        was not asked.
    value, threshold
        The measured number and the one it is compared with; NaN where nothing was measured.
    unit
        Of both: ``points``, ``share``, ``cosine``, ``ratio``, ``samples``, ...
    arrays
        Small arrays for the plot behind it: ``x`` (k,) and one or more lines over it, each (k,), by name.
    axes
        Labels of that plot's axes.
    """

    verdict: Verdict
    sentence: str
    value: float = math.nan
    threshold: float = math.nan
    unit: str = ""
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    axes: tuple[str, str] = ("", "")

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise InvalidArgument(f"a verdict is one of {', '.join(get_args(Verdict))}, not {self.verdict!r}")


def measured(
    value: float, threshold: float, sentence: str, *, flagged: bool | None = None, **rest: Any
) -> AuditResult:
    """A result that is flagged when `value` exceeds `threshold`, or as `flagged` says; NaN flags."""
    # Differences of percentages contain rounding: 55% - 50% is more than 5 points in binary.
    bad = not round(value, 12) <= threshold if flagged is None else flagged
    return AuditResult(
        verdict="flag" if bad else "pass", sentence=sentence, value=value, threshold=threshold, **rest
    )


def not_applicable(reason: str) -> AuditResult:
    """The audit does not apply to this model, for `reason`."""
    return AuditResult(verdict="not applicable", sentence=reason)


def not_asked(reason: str) -> AuditResult:
    """The audit could not put its question to this model, for `reason`; that is no answer."""
    return AuditResult(verdict=NOT_ASKED, sentence=reason)


Check: TypeAlias = Callable[[Any], AuditResult]
"""Takes a `context.Context`, or a `stored_records.StoredRecords` where only records are needed."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """One entry of the registry of audits.

    Attributes
    ----------
    title
        What a model that passes does, in a few words.
    needs
        ``records``: it reads stored records when a report is made. ``model``: it measures the trained model.
    cost
        What it costs, in forwards and backwards per image, or in words.
    fast
        Whether it takes seconds.
    untrained
        Whether `robustode check` runs it, on an untrained model. Not for audits of the solver's steps: steps
        must suit the weights that training finds.
    initialisations, extreme_images
        For such a model: at how many random initialisations it is run, and whether a black image, a white one
        and one of black and white pixels are among the images.
    every_sample
        Whether it is asked of samples without an answer too. Of other audits they are left out, and the
        sentence says how many.
    remedy
        What to change in a model that is flagged, one sentence.
    reference
        The paper it follows.
    check
        See `Check`.
    version
        Raise it by hand when the audit changes: stored results of older versions are not reused.
    """

    name: str
    title: str
    needs: Needs
    cost: str
    check: Check
    fast: bool = False
    untrained: bool = False
    initialisations: int = 1
    extreme_images: bool = False
    every_sample: bool = False
    remedy: str = ""
    reference: str = ""
    version: int = 1

    def __post_init__(self) -> None:
        check_name(self.name, "audit")
        if self.needs not in get_args(Needs):
            raise InvalidArgument(f"audit {self.name}: needs records or model, not {self.needs!r}")

    def __call__(self, context: Any) -> AuditResult:
        """Run the audit; one that raises `NotAsked` returns ``not asked`` with the reason."""
        try:
            whole = self.needs == "records" or self.every_sample
            found: AuditResult = self.check(context) if whole else context.ask(self.check)
            return found
        except NotAsked as reason:
            return not_asked(f"{reason}.")


AUDITS: Registry[Audit] = Registry("audit")


def register_audit(name: str, **attributes: Any) -> Callable[[Check], Check]:
    """Register the decorated function as the audit `name`; `attributes` are those of `Audit`.

    Examples
    --------
    >>> @register_audit("example", title="always passes", needs="records", cost="none")
    ... def check(stored):
    ...     return measured(0.0, 1.0, "Nothing was measured.")
    >>> AUDITS.get("example")(None).verdict
    'pass'
    >>> AUDITS.unregister("example")
    """

    def decorate(check: Check) -> Check:
        AUDITS.register(Audit(name=name, check=check, **attributes))
        return check

    return decorate
