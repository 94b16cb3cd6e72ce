"""Numbers and recorded values as people read them: percentages, times, sizes. No torch."""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd


def missing(value: Any) -> bool:
    """Whether `value` is None, NaN or pandas' NA."""
    return value is None or value is pd.NA or value != value


def percent(value: Any, digits: int = 1) -> str:
    """Turn a fraction into a percentage without its sign: 0.5 is ``50.0``; blank if missing."""
    return "" if missing(value) else f"{100 * float(value):.{digits}f}"


def count(value: Any) -> str:
    """Write a number with three significant digits and a suffix from ten thousand on: ``82.2k``."""
    if missing(value):
        return ""
    value = float(value)
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= (size if size > 1e3 else 1e4) * 0.9995:
            return f"{value / size:.3g}{suffix}" if value < 999.5 * size else f"{value / size:.0f}{suffix}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def time_text(value: Any) -> str:
    """Write seconds in the unit that suits: ``1.83 ms``."""
    if missing(value):
        return ""
    value = float(value)
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g} {unit}" if value < 999.5 * size else f"{value / size:,.0f} {unit}"
    return f"{value * 1e9:.3g} ns" if math.isfinite(value) else str(value)


def memory(value: Any) -> str:
    """Write bytes in binary units: ``286 MiB``."""
    if missing(value):
        return ""
    value = float(value)
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= size:
            return f"{value / size:.3g} {unit}" if value < 1000 * size else f"{value / size:,.0f} {unit}"
    return f"{value:.0f} B"


def value_text(value: Any) -> str:
    """Write a recorded value as Python would: text without quotes, ``{"$tuple": [1, 2]}`` as ``(1, 2)``."""
    return value if isinstance(value, str) else _inner(value)


def _inner(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_inner, value))}]"
    if isinstance(value, dict) and len(value) == 1 and (tag := next(iter(value))).startswith("$"):
        body = value[tag]
        if tag == "$tuple":
            return f"({', '.join(map(_inner, body))}{',' if len(body) == 1 else ''})"
        if tag in ("$set", "$frozenset"):
            return f"{{{', '.join(map(_inner, body))}}}"
        if tag in ("$enum", "$torch", "$name", "$float", "$path", "$path-beside", "$device"):
            return str(body[1] if tag == "$enum" else body).removeprefix(".:")
        return f"{tag.removeprefix('$')} {_inner(body)}"
    if isinstance(value, dict):
        parts = [f"{json.dumps(name, ensure_ascii=False)}: {_inner(value[name])}" for name in sorted(value)]
        return f"{{{', '.join(parts)}}}"
    plain = isinstance(value, int | float)
    return str(value) if plain else json.dumps(value, default=str, ensure_ascii=False)
