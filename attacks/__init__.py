"""The threats: random noise and adversarial attacks. Every file here that registers one takes part."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from .core.norms import BUDGET_TOLERANCE, distance, project, violation
from .core.threat import Threat
from .registry import THREATS, register_minimum_norm, register_threat

for _module in sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")):
    import_module(f".{_module}", __name__)

from .minimum_norm import closest  # noqa: E402  (it registers threats, in the order of the files)

__all__ = [
    "BUDGET_TOLERANCE",
    "THREATS",
    "Threat",
    "closest",
    "distance",
    "project",
    "register_minimum_norm",
    "register_threat",
    "violation",
]
