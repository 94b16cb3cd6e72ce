"""A threat that is named with a strength, or without: then at a strength of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from ..._errors import InvalidArgument
from ...attacks import THREATS, Threat

DEFAULT_STRENGTHS: Mapping[str, float] = {
    "clean": 0.0,
    "gaussian": 0.2,
    "salt-pepper": 0.1,
    "uniform": 0.3,
    "fgsm-linf": 0.1,
    "pgd-linf": 0.1,
    "fgsm-l2": 0.5,
    "pgd-l2": 0.5,
    **dict.fromkeys(("autoattack-linf", "apgd-ce-linf", "apgd-t-linf", "fab-t-linf"), 0.1),
    **dict.fromkeys(("autoattack-l2", "apgd-ce-l2", "apgd-t-l2", "fab-t-l2"), 0.5),
    **dict.fromkeys(("square-linf", "spsa-linf"), 0.1),
    "square-l2": 0.5,
    **dict.fromkeys(("fmn-linf", "curve-linf"), 0.1),
    "solver-transfer-linf": 0.1,
    "solver-transfer-l2": 0.5,
    **dict.fromkeys(("fmn-l2", "ddn-l2", "cw-l2", "alma-l2", "curve-l2"), 0.5),
    "paper-gaussian": 0.05,
    "paper-salt-pepper": 0.05,
}
"""Strength of a threat that is named without one, in the unit of its ``strength_name``."""


ThreatItem: TypeAlias = str | tuple[str, float] | tuple[str, float, Mapping[str, Any]]
"""A threat by its name, with its strength, or with its strength and parameters."""


def threat_and_strength(item: ThreatItem) -> tuple[Threat, float]:
    """The threat that `item` names, configured, and its strength, checked."""
    parts = [item] if isinstance(item, str) else list(item) if isinstance(item, tuple | list) else []
    name, strength, parameters = (*parts, *(None, None, {})[len(parts) :])[:3]
    if not isinstance(name, str) or not isinstance(parameters, Mapping) or len(parts) > 3:
        raise InvalidArgument(
            f"a threat is a name, a pair (name, strength) or (name, strength, parameters), not {item!r}"
        )
    threat = THREATS.get(name).configure(**parameters)
    if isinstance(item, str):
        strength = DEFAULT_STRENGTHS.get(item)
    if strength is None:
        raise InvalidArgument(f"threat {name}: give its strength, as ({name!r}, {threat.strength_name})")
    return threat, threat.check_strength(strength)
