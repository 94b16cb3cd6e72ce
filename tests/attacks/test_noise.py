"""The noise has the distribution it says, for each sample from its own stream."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from robustode.attacks import THREATS

GREY = torch.full((64, 1, 28, 28), 0.5)
PIXELS = GREY.numel()
NOISES = ("gaussian", "salt-pepper", "uniform")


def noisy(name: str, images: torch.Tensor, strength: float, seed=0) -> torch.Tensor:
    return THREATS.get(name)(None, images, torch.zeros(len(images)), strength, seed)


def test_gaussian_has_mean_zero_and_its_standard_deviation():
    noise = (noisy("gaussian", GREY, 0.05) - GREY).double()
    assert abs(float(noise.mean())) < 4 * 0.05 / math.sqrt(PIXELS)
    assert float(noise.std()) == pytest.approx(0.05, rel=4 / math.sqrt(2 * PIXELS))
    inside = float((noise.abs() < 0.05).double().mean())
    assert inside == pytest.approx(math.erf(1 / math.sqrt(2)), abs=4 * 0.47 / math.sqrt(PIXELS))


def test_gaussian_is_clipped_and_not_wrapped_or_rescaled():
    result = noisy("gaussian", GREY, 1.0)
    tail = 0.5 * math.erfc(0.5 / math.sqrt(2))
    for end in (0.0, 1.0):
        share = float((result == end).double().mean())
        assert share == pytest.approx(tail, abs=4 * 0.47 / math.sqrt(PIXELS))


@pytest.mark.parametrize("amount", [0.05, 0.2, 1.0])
def test_salt_and_pepper_hit_their_share_and_nothing_else(amount):
    result = noisy("salt-pepper", GREY, amount)
    for end in (0.0, 1.0):
        share = float((result == end).double().mean())
        p = amount / 2
        assert share == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / PIXELS))
    rest = (result != 0) & (result != 1)
    assert bool((result[rest] == 0.5).all())


def test_uniform_fills_its_range_evenly():
    noise = (noisy("uniform", GREY, 0.3) - GREY).double()
    assert float(noise.abs().max()) <= 0.3 + 1e-7
    assert float(noise.abs().max()) > 0.299
    assert abs(float(noise.mean())) < 4 * 0.3 / math.sqrt(3 * PIXELS)
    assert float(noise.square().mean()) == pytest.approx(0.03, rel=4 * math.sqrt(0.8 / PIXELS))


@pytest.mark.parametrize("name", NOISES)
@given(st.permutations(range(6)), st.integers(1, 5))
def test_a_samples_noise_does_not_depend_on_batch_or_order(name, order, cut):
    images = torch.rand(6, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    seeds = [100 + i for i in range(6)]
    together = noisy(name, images, 0.2, seeds)
    shuffled = noisy(name, images[order], 0.2, [seeds[i] for i in order])
    assert torch.equal(shuffled, together[order])
    parts = [noisy(name, images[:cut], 0.2, seeds[:cut]), noisy(name, images[cut:], 0.2, seeds[cut:])]
    assert torch.equal(torch.cat(parts), together)


@pytest.mark.parametrize("name", NOISES)
def test_samples_and_seeds_differ(name):
    result = noisy(name, GREY[:3], 0.2, 0)
    assert not torch.equal(result[0], result[1])
    assert not torch.equal(result, noisy(name, GREY[:3], 0.2, 1))


@pytest.mark.parametrize("name", ["gaussian", "uniform"])
def test_strengths_share_one_stream(name):
    """The noise of a curve is one noise, scaled."""
    small, large = noisy(name, GREY, 0.01) - GREY, noisy(name, GREY, 0.04) - GREY
    torch.testing.assert_close(4 * small, large, rtol=1e-4, atol=1e-6)


@given(st.floats(0.01, 1), st.floats(0.01, 1))
def test_what_little_salt_and_pepper_hits_more_hits_too(one, two):
    few, many = (noisy("salt-pepper", GREY[:2], amount) for amount in sorted((one, two)))
    hit = few != 0.5
    assert torch.equal(few[hit], many[hit])


@pytest.mark.parametrize("name", NOISES)
def test_noise_is_the_same_in_double_precision(name):
    single, double = noisy(name, GREY[:2], 0.1), noisy(name, GREY[:2].double(), 0.1)
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NOISES)
def test_noise_asks_the_model_nothing(name):
    threat = THREATS.get(name)
    assert threat.queries(threat.parameters) == (0, 0)
    assert not threat.needs_gradient
    assert threat.stochastic
