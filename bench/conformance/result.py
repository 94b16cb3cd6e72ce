"""What a conformance check found: passed, failed, a warning, or a question that was not asked."""

from __future__ import annotations

from dataclasses import dataclass


class NothingToCheck(Exception):
    """Raised by a check that does not concern the model; says why."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Verdict of one check.

    Attributes
    ----------
    error
        What is wrong and what to change.
    exempt
        The model's stated reason for an expected failure.
    absent
        Why there was nothing to check.
    unasked
        Why the question could not be put to the model; neither a failure nor a pass.
    warning
        What a model that passes should know.
    late
        Whether the time limit ended it.
    """

    check: str
    error: str | None = None
    exempt: str | None = None
    absent: str | None = None
    unasked: str | None = None
    warning: str | None = None
    late: bool = False

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong with the model here, or only what it states in `expected_failures`."""
        return self.error is None or self.exempt is not None

    def __str__(self) -> str:
        if self.absent is not None:
            return f"n/a     {self.check}: {self.absent}"
        if self.unasked is not None:
            return f"unasked {self.check}: {self.unasked}"
        if self.error is not None and self.exempt is not None:
            return f"exempt  {self.check}: {self.exempt} [{self.error}]"
        if self.error is not None:
            return f"FAIL    {self.check}: {self.error}"
        if self.warning is not None:
            return f"warn    {self.check}: {self.warning}"
        return f"pass    {self.check}" + (" (its exemption was not needed here)" if self.exempt else "")
