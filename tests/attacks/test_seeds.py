"""One stream per sample; the caller's generators untouched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from robustode.attacks.core.seeds import (
    Purpose,
    derive,
    per_sample,
    sample_generators,
    sample_seeds,
    seeded,
    stream_generator,
    stream_seeds,
)

CPU = torch.device("cpu")


@given(st.lists(st.tuples(st.integers(-(2**40), 2**63), st.integers(0, 2**40)), unique=True, max_size=20))
def test_every_pair_of_seed_and_index_has_its_own_seed(pairs):
    seeds = [sample_seeds(seed, [index])[0] for seed, index in pairs]
    distinct = {(seed % 2**64, index) for seed, index in pairs}
    assert len(set(seeds)) == len(distinct)
    assert all(0 <= seed < 2**128 for seed in seeds)


def test_a_seed_gives_the_same_stream_and_another_seed_another():
    first, again, other = (rng.random(5) for rng in sample_generators([7, 7, 8]))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_stream_is_pinned():
    """Philox keyed by the seed: numpy promises it for good, and stored records rely on it."""
    assert sample_seeds(1, [2]) == [(1 << 64) | 2]
    expected = np.random.Generator(np.random.Philox(key=(1 << 64) | 2)).standard_normal(3)
    (found,) = (rng.standard_normal(3) for rng in sample_generators([(1 << 64) | 2]))
    np.testing.assert_array_equal(found, expected)


@given(st.lists(st.integers(0, 2**128 - 1), min_size=1, max_size=6), st.integers(1, 9))
def test_what_one_sample_draws_leaves_the_next_alone(seeds, count):
    """An odd number of 32-bit draws leaves half a word behind: it must not reach the next stream."""
    for seed, rng in zip(seeds, sample_generators(seeds), strict=True):
        alone = np.random.Generator(np.random.Philox(key=seed))
        for method in ("random", "standard_normal"):
            expected = getattr(alone, method)(count, dtype=np.float32)
            np.testing.assert_array_equal(getattr(rng, method)(count, dtype=np.float32), expected)


def test_one_seed_serves_a_batch_by_position():
    assert per_sample(3, 2) == sample_seeds(3, [0, 1])
    assert per_sample([5, 6], 2) == [5, 6]
    with pytest.raises(ValueError, match="2 seeds for 3 samples"):
        per_sample([5, 6], 3)


def draw(seed, restart: int = 0) -> list[float]:
    with seeded(seed, restart=restart, device=CPU):
        return torch.rand(3).tolist()


def test_blocks_repeat_and_differ_by_seed_and_restart():
    assert draw([1, 2]) == draw([1, 2])
    distinct = [draw(1), draw(2), draw([1, 2]), draw([2, 1]), draw(1, restart=1)]
    assert len({tuple(values) for values in distinct}) == len(distinct)


def test_the_callers_generator_is_restored_also_after_an_error():
    state = torch.get_rng_state()
    draw(1)

    def stop() -> None:
        with seeded(1, restart=0, device=CPU):
            torch.rand(1)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert torch.equal(torch.get_rng_state(), state)


def test_derived_seeds_differ_by_seed_and_purpose_and_are_pinned():
    seeds = [0, 1, 2**128 - 1]
    found = {s for purpose in (("a",), ("a", 1), ("a", 2), ("b",)) for s in derive(seeds, *purpose)}
    assert len(found) == 12
    assert all(0 <= seed < 2**128 for seed in found)
    assert derive([7], "square", 3) == derive([5, 7], "square", 3)[1:]
    assert derive([1], "apgd", "ce 0") == [159311405957919802605707359926886758298]


FAR = st.integers(-3, 3) | st.integers(2**31 - 2, 2**31 + 2) | st.integers(2**32 - 2, 2**32 + 2)
"""Around the ends of 32 bits: a seed shifted by them must not meet the next one."""


@given(
    st.sets(st.tuples(st.sampled_from(Purpose), FAR | st.integers(), FAR, st.integers(0, 2**40)), max_size=30)
)
def test_no_two_purposes_seeds_steps_and_samples_share_a_stream(streams):
    found = {stream_seeds(*purpose_seed_step, [index])[0] for *purpose_seed_step, index in streams}
    assert len(found) == len(streams)
    assert all(0 <= seed < 2**128 for seed in found)


def test_no_two_streams_of_small_numbers_meet():
    count = 8
    found = [
        seed
        for purpose in Purpose
        for of_seed in range(count)
        for step in range(count)
        for seed in stream_seeds(purpose, of_seed, step, range(count))
    ]
    assert len(set(found)) == len(Purpose) * count**3
    found += derive(found, "apgd", "ce 0")
    assert len(set(found)) == 2 * len(Purpose) * count**3


def test_the_streams_of_the_evaluation_are_those_of_the_stored_records():
    assert stream_seeds(Purpose.EVALUATION, 0, 2, [5, 7]) == [(2 << 64) | 5, (2 << 64) | 7]
    assert stream_seeds(Purpose.EVALUATION, 3, 1, [9]) == [(3 << 96) | (1 << 64) | 9]


def test_the_streams_of_training_are_pinned():
    """Published weights rely on them."""
    assert stream_seeds(Purpose.TRAINING, 0, 2, [5]) == [153887350263661587967400959969416795225]


def test_generators_differ_by_purpose_seed_and_use():
    uses = [(purpose, seed, what) for purpose in Purpose for seed in (0, 1) for what in ("a", "b")]
    seeds = [stream_generator(*use).initial_seed() for use in uses]
    assert len({*seeds, *range(100)}) == len(uses) + 100, "nor are they those of initial weights or an epoch"
