"""A few of many indices: first and last among them, none twice, evenly spread."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from robustode.models.ode.spread import evenly_spread


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [
        (0, 3, []),
        (1, 3, [0]),
        (3, 3, [0, 1, 2]),
        (3, 9, [0, 1, 2]),
        (9, 3, [0, 4, 8]),
        (10, 4, [0, 3, 6, 9]),
        (10, 1, [0]),
    ],
)
def test_the_indices_of_small_counts(count, most, expected):
    assert evenly_spread(count, most) == expected


@given(st.integers(2, 5000), st.integers(2, 300))
def test_as_many_as_there_may_be_from_end_to_end(count, most):
    found = evenly_spread(count, most)
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert (len(found), found[0], found[-1]) == (min(count, most), 0, count - 1)
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 2


def test_the_callers_settings_change_nothing():
    with torch.device("meta"):
        assert evenly_spread(9, 3) == [0, 4, 8]
