"""How long a call takes, pass by pass, on a CPU and on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch

WARM_UP = 3
"""Passes before the first one that is timed."""


def time_passes(
    run: Callable[[], object], device: torch.device, *, seconds: float, passes: int
) -> np.ndarray:
    """Time `run` at least `passes` times and for at least `seconds`; seconds per pass, float64 (n,).

    On CUDA each pass lies between two events on the stream and the device is synchronised before and
    after; on a CPU a monotonic clock is read around each pass.
    """
    for _ in range(WARM_UP):
        run()
    durations: list[float] = []
    total = 0.0
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        while len(durations) < passes or total < seconds:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            durations.append(begin.elapsed_time(end) / 1000)
            total += durations[-1]
    else:
        while len(durations) < passes or total < seconds:
            begin_time = time.perf_counter()
            run()
            durations.append(time.perf_counter() - begin_time)
            total += durations[-1]
    return np.array(durations)


def without_graph(call: Callable[[], object]) -> Callable[[], None]:
    """`call` in inference mode; only without gradients where it differentiates by itself, found by a try."""
    mode: Callable[[], AbstractContextManager[object]] = torch.inference_mode
    try:
        with mode():
            call()
    except RuntimeError:
        mode = torch.no_grad

    def run() -> None:
        with mode():
            call()

    return run
