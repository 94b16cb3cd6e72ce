"""Runs the conformance checks of one model within a minute."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ..._errors import NotAsked, RobustodeError, TimeLimitExceeded, one_line
from ...models import ModelSpec
from ..audits.expected_failures import unknown_expected_failures
from ..runtime.foreign_code import foreign_code, source_of
from ..runtime.time_limit import time_limit
from .checks import checks_for
from .result import NothingToCheck, Result

LIMIT = 50.0
"""Seconds for all checks of one model together."""


def run_check(spec: ModelSpec, name: str, seconds: float = LIMIT) -> Result:
    """Run the check `name` of `checks_for` within `seconds`; an exception is a failure."""
    error = absent = unasked = warning = None
    late = False
    try:
        with time_limit(seconds, name), foreign_code(source_of(spec.build), seed=0):
            warning = checks_for(spec)[name](spec)
    except NothingToCheck as nothing:
        absent = str(nothing)
    except NotAsked as reason:
        unasked = str(reason)
    except TimeLimitExceeded as failure:
        error, late = str(failure), True
    except RobustodeError as failure:
        error = one_line(failure, limit=400)
    except (Exception, SystemExit) as failure:
        error = f"{type(failure).__name__}: {one_line(failure)}"
    return Result(
        check=name,
        error=error,
        exempt=spec.expected_failures.get(name),
        absent=absent,
        unasked=unasked,
        warning=warning,
        late=late,
    )


def check_model(spec: ModelSpec) -> Iterator[Result]:
    """Run every check of `spec` within `LIMIT`, yielding each result as it comes.

    The check that the limit ends says what took how long, and one more result names those that were left.
    """
    began = time.monotonic()
    took: dict[str, float] = {}
    left = list(checks_for(spec))
    while left:
        name = left.pop(0)
        start = time.monotonic()
        result = run_check(spec, name, max(began + LIMIT - start, 1e-3))
        if result.late:
            yield Result(check=name, error=_too_slow(name, took), late=True)
            break
        took[name] = time.monotonic() - start
        yield result
    if left:
        yield Result(check=", ".join(left), unasked="no time was left")
    for name, line in unknown_expected_failures(spec.expected_failures, spec.claims).items():
        yield Result(check=name, error=line)


def _too_slow(name: str, took: dict[str, float]) -> str:
    slowest = sorted(took, key=lambda one: -took[one])[:3]
    before = ", ".join(f"{one} {took[one]:.1f} s" for one in slowest)
    rest = f"; before it: {before}" if slowest else ""
    limit = f"took longer than what was left of {LIMIT:.3g} s for all checks"
    return f"{limit}{rest}. Make a forward pass faster, or the defaults of the factory smaller"
