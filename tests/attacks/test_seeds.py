"""One stream per sample; the caller's generators untouched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from robustode.attacks.core.seeds import derive, per_sample, sample_generators, sample_seeds, seeded

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
