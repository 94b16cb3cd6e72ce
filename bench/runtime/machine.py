"""What this machine has: cores and free memory. No torch.

psutil is not used: it ignores the memory limit of a container, which has to be read from its file anyway. On
systems without /proc the number of threads alone limits the number of processes.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def count_cores() -> int:
    """Number of cores that this process may use (its affinity, where the system has one)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory() -> int:
    """Free bytes of memory, of the system or of the container around it; 128 GiB where neither is known."""
    free = [2**37]
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free.append(1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable"))))
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        most, now = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        free.append(most - now)
    return min(free)
