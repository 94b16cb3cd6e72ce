"""Values of options that are more than a text: durations, seeds, batch sizes. No torch."""

from __future__ import annotations

import math
import re
from argparse import ArgumentTypeError
from typing import Literal

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def batch_size(text: str) -> int | Literal["auto"]:
    """A whole number above 0, or ``auto``."""
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is neither a whole number above 0 nor auto")
    return int(text)


def seconds(text: str) -> float:
    """A duration above 0 in seconds: ``90``, ``90s``, ``15m``, ``1.5h``."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(s|m|min|h|)", text.strip())
    value = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"{text!r} is no time above 0, such as 90s, 15m or 2h")
    return value


def time_limits(text: str) -> tuple[float, float]:
    """Seconds for a training and for each other cell: two durations, or one for both."""
    parts = [seconds(part) for part in text.split(",")]
    if len(parts) > 2:
        raise ArgumentTypeError(f"{text!r} is more than two times: one for a training, one for each cell")
    return parts[0], parts[-1]


def training_seeds(text: str) -> tuple[int, ...]:
    """Training seeds by name, ``2`` or ``0,2``, in ascending order."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and part.isascii() for part in parts):
        raise ArgumentTypeError(f"{text!r} names no training seeds: write 2, or 0,2")
    return tuple(sorted({int(part) for part in parts}))


def width(text: str) -> float:
    """A length in inches."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(in|cm|mm|pt)", text)
    inches = float(found[1]) / {"in": 1.0, "cm": 2.54, "mm": 25.4, "pt": 72.27}[found[2]] if found else 0.0
    if not 1.5 <= inches <= 40:
        raise ArgumentTypeError(f"{text!r} is no length from 1.5in to 40in, such as 3.4in or 86mm")
    return inches
