"""The noise of the CH-NODE paper: on the normalised image, clipped to [-1, 1] there."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import stubs
import torch
from hypothesis import given
from hypothesis import strategies as st
from robustode._errors import BudgetViolation, InvalidArgument
from robustode.attacks import THREATS
from robustode.attacks.paper_noise import MEAN, STD
from robustode.bench.config.cells import accuracy_cells, training_cell
from robustode.bench.config.plan import make_plan
from robustode.bench.config.preset import load_preset
from robustode.bench.evaluation.accuracy import evaluate_cell

NOISES = ("paper-gaussian", "paper-salt-pepper")
LOW, HIGH = MEAN - STD, MEAN + STD
PLAIN = torch.full((64, 1, 28, 28), MEAN)
PIXELS = PLAIN.numel()


def noisy(name: str, images: torch.Tensor, strength: float, seed=0) -> torch.Tensor:
    return THREATS.get(name)(None, images, torch.zeros(len(images)), strength, seed)


def test_the_box_is_that_of_the_clipped_image():
    assert pytest.approx(-0.1774) == LOW
    assert pytest.approx(0.4388) == HIGH
    for name in NOISES:
        threat = THREATS.get(name)
        assert threat.box == (LOW, HIGH)
        assert (threat.protocol, threat.family, threat.norm) == ("paper-exact", "noise", None)
        assert threat.stochastic
        assert not threat.needs_gradient


@pytest.mark.parametrize(
    ("pixel", "becomes"),
    [(0.0, 0.0), (0.1307, 0.1307), (0.3, 0.3), (0.4388, 0.4388), (0.5, HIGH), (1.0, HIGH)],
)
def test_a_pixel_that_no_noise_hits(pixel, becomes):
    images = torch.full((4, 1, 10, 10), pixel)
    result = noisy("paper-salt-pepper", images, 1e-9)
    torch.testing.assert_close(result, torch.full_like(images, becomes), rtol=0, atol=1e-7)
    result = noisy("paper-gaussian", images, 1e-16)
    torch.testing.assert_close(result, torch.full_like(images, becomes), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", NOISES)
@given(st.floats(0.0, 1.0, width=32), st.floats(1e-3, 1.0))
def test_no_pixel_leaves_the_box(name, pixel, strength):
    result = noisy(name, torch.full((2, 1, 8, 8), pixel), strength).double()
    assert float(result.min()) >= LOW - 1e-7
    assert float(result.max()) <= HIGH + 1e-7


@pytest.mark.parametrize("variance", [0.001, 0.01])
def test_gaussian_has_its_variance_on_the_normalised_image(variance):
    noise = ((noisy("paper-gaussian", PLAIN, variance) - PLAIN) / STD).double()
    deviation = math.sqrt(variance)
    assert float(noise.abs().max()) < 1, "nothing is clipped here"
    assert abs(float(noise.mean())) < 4 * deviation / math.sqrt(PIXELS)
    assert float(noise.std()) == pytest.approx(deviation, rel=4 / math.sqrt(2 * PIXELS))
    inside = float((noise.abs() < deviation).double().mean())
    assert inside == pytest.approx(math.erf(1 / math.sqrt(2)), abs=4 * 0.47 / math.sqrt(PIXELS))


def test_gaussian_is_clipped_and_not_rescaled():
    result = noisy("paper-gaussian", PLAIN, 1.0)  # normalised 0, standard deviation 1
    tail = 0.5 * math.erfc(1 / math.sqrt(2))
    for end in (LOW, HIGH):
        share = float(((result - end).abs() < 1e-6).double().mean())
        assert share == pytest.approx(tail, abs=4 * math.sqrt(tail * (1 - tail) / PIXELS))


@pytest.mark.parametrize("amount", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("pixel", [0.0, 0.3, 1.0])
def test_salt_and_pepper_hit_their_share_half_and_half(amount, pixel):
    result = noisy("paper-salt-pepper", torch.full_like(PLAIN, pixel), amount)
    salt, pepper = ((result - end).abs() < 1e-6 for end in (HIGH, LOW))
    p = amount / 2
    near = 4 * math.sqrt(p * (1 - p) / PIXELS)
    assert float(pepper.double().mean()) == pytest.approx(p, abs=near)
    unhit = result[~pepper & ~salt]
    if pixel == 1.0:  # what is not hit is clipped to where salt puts it
        assert not len(unhit)
    else:
        assert float(salt.double().mean()) == pytest.approx(p, abs=near)
        torch.testing.assert_close(unhit, torch.full_like(unhit, pixel), rtol=0, atol=1e-7)


@given(st.floats(0.01, 1), st.floats(0.01, 1))
def test_what_little_salt_and_pepper_hits_more_hits_too(one, two):
    few, many = (noisy("paper-salt-pepper", PLAIN[:2], amount) for amount in sorted((one, two)))
    hit = (few - MEAN).abs() > 0.1
    assert torch.equal(few[hit], many[hit])


def test_the_gaussian_of_all_variances_is_one_noise_scaled():
    small, large = (noisy("paper-gaussian", PLAIN, v) - MEAN for v in (0.0025, 0.01))
    torch.testing.assert_close(2 * small, large, rtol=1e-4, atol=1e-6)


def test_it_is_the_pixel_noise_in_other_units_until_it_is_clipped():
    paper = noisy("paper-gaussian", PLAIN[:4], 0.01, 3)
    pixel = noisy("gaussian", torch.full((4, 1, 28, 28), 0.5), 0.1 * STD, 3)
    torch.testing.assert_close(paper - MEAN, pixel - 0.5, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NOISES)
@given(st.permutations(range(6)), st.integers(1, 5))
def test_a_samples_noise_does_not_depend_on_batch_or_order(name, order, cut):
    images = torch.rand(6, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    seeds = [100 + i for i in range(6)]
    together = noisy(name, images, 0.2, seeds)
    assert torch.equal(noisy(name, images[order], 0.2, [seeds[i] for i in order]), together[order])
    parts = [noisy(name, images[:cut], 0.2, seeds[:cut]), noisy(name, images[cut:], 0.2, seeds[cut:])]
    assert torch.equal(torch.cat(parts), together)


@pytest.mark.parametrize("name", NOISES)
def test_samples_and_seeds_differ(name):
    result = noisy(name, PLAIN[:3], 0.2, 0)
    assert not torch.equal(result[0], result[1])
    assert not torch.equal(result, noisy(name, PLAIN[:3], 0.2, 1))


@pytest.mark.parametrize("name", NOISES)
def test_it_is_the_same_in_double_precision(name):
    single, double = noisy(name, PLAIN[:2], 0.1), noisy(name, PLAIN[:2].double(), 0.1)
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-6)


def test_an_amount_above_one_is_refused_and_a_variance_above_one_is_not():
    with pytest.raises(InvalidArgument, match=r"amount must be at least 0 and at most 1, not 1\.5"):
        noisy("paper-salt-pepper", PLAIN[:1], 1.5)
    assert bool(noisy("paper-gaussian", PLAIN[:1], 1.5).isfinite().all())


# --- in the harness -----------------------------------------------------------------------------

PRESET = (
    stubs.PRESET
    + """
[[threats]]
name = "paper-gaussian"
strengths = [0.05, 0.2]
draws = 3
samples = 40

[[threats]]
name = "paper-salt-pepper"
strengths = [0.2]
draws = 3
samples = 40
"""
)


class Remembers(stubs.Linear):
    """Keeps every image it is shown."""

    def __init__(self) -> None:
        super().__init__((1, 8, 8), 10)
        self.seen: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(images.clone())
        return super().forward(images)


def evaluated(cell, model, split, threat):
    return evaluate_cell(
        cell, model, split, threat, num_classes=10, device=stubs.CPU, environment={"created": "now"}
    )


def test_the_harness_takes_it_and_records_its_protocol(tmp_path, few):
    plan = make_plan(load_preset(str(stubs.preset_file(tmp_path, PRESET))))
    training = training_cell(plan, plan.specs[0], 0, few)
    cells = accuracy_cells(plan, training, "c" * 64, None, few)
    assert [(c.threat, c.protocol, c.norm) for c in cells[-3:]] == [
        ("paper-gaussian", "paper-exact", None),
        ("paper-gaussian", "paper-exact", None),
        ("paper-salt-pepper", "paper-exact", None),
    ]
    assert {c.protocol for c in cells[:-3]} == {"pixel"}
    for cell in cells[-3:]:
        model = Remembers()
        record = evaluated(cell, model, few.test, THREATS.get(cell.threat))
        assert record.cell.protocol == "paper-exact"
        assert record.outcomes["correct"].shape == (3, 40)
        assert "norm" not in record.outcomes
        shown = torch.cat(model.seen)
        assert len(shown) == record.forwards == 3 * 40
        assert record.backwards == 0
        assert LOW - 1e-6 <= float(shown.min()) < 0
        assert float(shown.max()) <= HIGH + 1e-6


def test_an_outcome_does_not_depend_on_the_batch_size(few):
    threat = THREATS.get("paper-gaussian")
    cell = stubs.cell_for(threat, 0.2, 40, draws=2, protocol=threat.protocol)
    model = stubs.Linear((1, 8, 8), 10)
    one, two = (
        evaluated(dataclasses.replace(cell, batch_size=size), model, few.test, threat) for size in (40, 7)
    )
    np.testing.assert_array_equal(*(stubs.predicted(record, few.test) for record in (one, two)))


@pytest.mark.parametrize("shift", [-0.1, 0.6])
def test_a_threat_in_pixels_that_leaves_its_box_is_still_refused(few, shift):
    pixel = dataclasses.replace(THREATS.get("gaussian"), craft=lambda m, x, y, s, seed: x + shift)
    with pytest.raises(BudgetViolation, match=r"left its budget of 0\.2 or the box \[0, 1\]"):
        evaluated(stubs.cell_for(pixel, 0.2, 40), stubs.linear((1, 8, 8), 10), few.test, pixel)


@pytest.mark.parametrize("value", [LOW - 1e-3, HIGH + 1e-3, 1.0])
def test_its_own_box_is_checked_too(few, value):
    wild = dataclasses.replace(
        THREATS.get("paper-gaussian"), craft=lambda m, x, y, s, seed: torch.full_like(x, value)
    )
    with pytest.raises(BudgetViolation, match=r"the box \[-0\.1774, 0\.4388\]"):
        evaluated(stubs.cell_for(wild, 0.2, 40), stubs.linear((1, 8, 8), 10), few.test, wild)


@pytest.mark.parametrize("name", NOISES)
def test_no_noise_at_all_can_be_evaluated(few, name):
    threat = THREATS.get(name)
    record = evaluated(stubs.cell_for(threat, 0.0, 40), stubs.linear((1, 8, 8), 10), few.test, threat)
    assert record.outcomes["correct"].shape == (1, 40)
