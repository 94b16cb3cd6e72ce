"""How much of the machine other work took while something was timed. No torch."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

BUSY = 0.1
"""Share of the machine's processor time beyond which a timing is marked as taken on a busy machine."""

_STAT = Path("/proc/stat")


class LoadMonitor:
    """Measures from when it is made; needs ``/proc/stat``."""

    def __init__(self) -> None:
        self._before = _now()

    def others_share(self) -> float | None:
        """Share in [0, 1] of all processor time since then that other processes took; None if unknown."""
        after = _now()
        if self._before is None or after is None:
            return None
        total, busy, own = (new - old for new, old in zip(after, self._before, strict=True))
        return min(max((busy - own) / total, 0.0), 1.0) if total > 0 else None


def _now() -> tuple[float, float, float] | None:
    """Seconds so far: of all processors, of them not idle (stolen time included), of this process."""
    with suppress(OSError, ValueError, IndexError):
        ticks = [int(word) for word in _STAT.read_text(encoding="ascii").splitlines()[0].split()[1:9]]
        second = os.sysconf("SC_CLK_TCK")
        times = os.times()
        idle = ticks[3] + ticks[4]
        return sum(ticks) / second, (sum(ticks) - idle) / second, times.user + times.system
    return None
