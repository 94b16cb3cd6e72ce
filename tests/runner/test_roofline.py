"""The time floor: which of the two rates binds, and what the rates are measured from. No time is asserted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import stubs
import torch
from robustode.bench.throughput import device_peaks as ceilings
from robustode.bench.throughput.device_peaks import device_rates
from robustode.bench.throughput.roofline import DeviceRates, Work


@pytest.mark.parametrize(
    ("operations", "moved", "floor", "binding"),
    [
        (800, 20, 4.0, "bandwidth"),
        (800, 5, 2.0, "arithmetic"),
        (800, 10, 2.0, "bandwidth"),  # both at once
        (0, 10, 2.0, "bandwidth"),
        (400, 0, 1.0, "arithmetic"),
    ],
)
def test_the_slower_of_the_two_is_the_floor(operations, moved, floor, binding):
    rates = DeviceRates(copy_bandwidth=5.0, arithmetic_rate=400.0)
    work = Work(operations=operations, bytes=moved)
    assert rates.floor(work) == floor
    assert rates.binding(work) == binding


def test_work_adds_up():
    parts = [Work(operations=3, bytes=10), Work(operations=4, bytes=1)]
    assert sum(parts, Work()) == Work(operations=7, bytes=11)


def test_rates_follow_from_the_fastest_pass_and_the_fastest_size(monkeypatch):
    """A copy counts what it reads and what it writes; a product of n x n matrices 2 n^3."""
    durations, seen = iter([[0.5, 0.25, 1.0], [1.0, 0.5], [4.0, 2.0]]), []

    def time_passes(run, device, *, seconds, passes):
        run()
        seen.append(torch.get_float32_matmul_precision())
        return np.array(next(durations))

    monkeypatch.setattr(ceilings, "time_passes", time_passes)
    monkeypatch.setattr(ceilings, "COPIED", {"cpu": 1000})
    monkeypatch.setattr(ceilings, "PRODUCTS", {"cpu": (4, 8)})
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found = ceilings._measured.__wrapped__(stubs.CPU, 1)
        assert torch.get_float32_matmul_precision() == "high", "the caller's precision is restored"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen[1:] == ["highest", "highest"], "products without TF32"
    assert found.copy_bandwidth == 2 * 4 * 1000 / 0.25
    assert found.arithmetic_rate == max(2 * 4**3 / 0.5, 2 * 8**3 / 2.0)


def test_a_device_is_measured_once(monkeypatch):
    state = torch.get_rng_state()
    first = device_rates(stubs.CPU)
    assert all(0 < rate < math.inf for rate in (first.copy_bandwidth, first.arithmetic_rate))
    assert torch.equal(torch.get_rng_state(), state)

    def never(*_args, **_kwargs):
        raise AssertionError("it was measured already")

    monkeypatch.setattr(ceilings, "time_passes", never)
    assert device_rates(stubs.CPU) is first
