"""What a device does at best: its copy bandwidth and its arithmetic rate, measured once per process."""

from __future__ import annotations

import functools

import torch

from .clock import time_passes
from .roofline import DeviceRates

COPIED = {"cpu": 2**25, "cuda": 2**27}
"""float32 elements of the tensor that is copied: 128 and 512 MiB, several times a last-level cache."""
PRODUCTS = {"cpu": (256, 512, 768), "cuda": (2048, 4096, 8192)}
"""Sides of the square matrices that are multiplied; the fastest size counts."""
SECONDS, PASSES = 0.02, 3
"""At least so long and so often for each of them."""


def device_rates(device: torch.device) -> DeviceRates:
    """The measured rates of `device` with the present number of threads.

    A copy is timed as it comes: where the processor reads a line before writing it, that third stream is
    not counted, as in McCalpin's STREAM. Products are those of float32 without TF32. On a CPU both take
    a few tenths of a second.
    """
    return _measured(device, torch.get_num_threads())


@functools.cache
def _measured(device: torch.device, threads: int) -> DeviceRates:
    return DeviceRates(copy_bandwidth=_copy_bandwidth(device), arithmetic_rate=_arithmetic_rate(device))


def _copy_bandwidth(device: torch.device) -> float:
    source = torch.ones(COPIED["cuda" if device.type == "cuda" else "cpu"], device=device)
    target = torch.empty_like(source)
    best = time_passes(lambda: target.copy_(source), device, seconds=SECONDS, passes=PASSES).min()
    return float(2 * source.nbytes / best)


def _arithmetic_rate(device: torch.device) -> float:
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return max(_product_rate(n, device) for n in PRODUCTS["cuda" if device.type == "cuda" else "cpu"])
    finally:
        torch.set_float32_matmul_precision(precision)


def _product_rate(n: int, device: torch.device) -> float:
    """Operations per second of the product of two (n, n) matrices."""
    generator = torch.Generator().manual_seed(0)  # not zeros: a GPU multiplies those at a higher clock
    a, b = (torch.rand(n, n, generator=generator).to(device) for _ in range(2))
    out = torch.empty_like(a)
    best = time_passes(lambda: torch.mm(a, b, out=out), device, seconds=SECONDS, passes=PASSES).min()
    return float(2 * n**3 / best)
