"""The names under which a model may expect a failure: those of checks, of claims and of audits. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..._registry import unknown_name
from .library import names_of

CONFORMANCE_CHECKS = ("shapes", "gradients", "state-round-trip", "tanh-field", "double-precision")
"""The checks of `robustode check` that are no audits."""


def unknown_expected_failures(expected: Mapping[str, str], claims: Iterable[str]) -> dict[str, str]:
    """One line for each name in `expected` that no check or audit has, by name."""
    known = [*CONFORMANCE_CHECKS, *(f"claim:{claim}" for claim in sorted(claims))]
    known += [*names_of("model"), *names_of("records")]
    return {
        name: f"expected_failures: {unknown_name('check', name, known)}"
        for name in sorted(expected)
        if name not in known
    }
