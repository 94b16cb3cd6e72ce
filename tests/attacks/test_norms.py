"""Distances, projections and violations, by hand and by property."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from robustode.attacks import BUDGET_TOLERANCE, distance, project, violation
from robustode.attacks.core.norms import onto_ball

NORMS = ("linf", "l2")
pixels = hnp.arrays(np.float32, (2, 1, 2, 3), elements=st.floats(0, 1, width=32))
anything = hnp.arrays(np.float32, (2, 1, 2, 3), elements=st.floats(-2, 3, width=32))


def test_distances_by_hand():
    a = torch.zeros(2, 1, 2, 2)
    b = a.clone()
    b[1, 0, 0, 0], b[1, 0, 1, 1] = 0.3, -0.4
    torch.testing.assert_close(distance(a, b, "linf"), torch.tensor([0.0, 0.4]).double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(distance(a, b, "l2"), torch.tensor([0.0, 0.5]).double(), rtol=0, atol=1e-7)


def test_distances_are_taken_in_double_precision():
    a = torch.full((1, 1, 32, 32), 1.0)
    b = torch.full((1, 1, 32, 32), 1.0 - 2**-24)
    assert distance(a, b, "l2").item() == 32 * 2**-24
    assert distance(a, b, "l2").dtype == torch.float64


@pytest.mark.parametrize("norm", NORMS)
@given(start=anything, center=pixels, radius=st.floats(0, 2))
def test_projection_lands_inside_and_stays(norm, start, center, radius):
    start, center = torch.from_numpy(start), torch.from_numpy(center)
    once = project(start, center, radius, norm)
    assert float(violation(once, center, radius, norm).max()) <= BUDGET_TOLERANCE
    torch.testing.assert_close(project(once, center, radius, norm), once, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@given(start=pixels, center=pixels)
def test_what_is_inside_is_not_moved(norm, start, center):
    start, center = torch.from_numpy(start), torch.from_numpy(center)
    radius = float(distance(start, center, norm).max()) * 1.001 + 1e-6
    torch.testing.assert_close(project(start, center, radius, norm), start, rtol=0, atol=1e-6)


@given(start=pixels, center=pixels, other=pixels, radius=st.floats(0.01, 2), away=st.floats(1, 9))
def test_the_projection_is_the_nearest_point_of_ball_and_box(start, center, other, radius, away):
    """Its variational inequality: <x - z, u - z> <= 0 for every u that ball and box hold."""
    center, other = torch.from_numpy(center).double(), torch.from_numpy(other).double()
    start = center + away * (torch.from_numpy(start).double() - 0.5)
    nearest = project(start, center, radius, "l2")
    held = onto_ball(other, center, radius, "l2")  # on the way from one point of the box to another
    obtuse = ((start - nearest) * (held - nearest)).flatten(1).sum(1)
    assert float(obtuse.max()) <= 1e-9


def test_the_projection_spends_the_whole_budget_where_the_box_is_met():
    """One pixel has 0.1 of room and a budget of 0.5: the other two share what is left of it."""
    center = torch.tensor([[[[0.1, 0.5, 0.5]]]], dtype=torch.float64)
    start = center + torch.tensor([[[[-1.0, 0.8, 0.8]]]], dtype=torch.float64)
    share = ((0.5**2 - 0.1**2) / 2) ** 0.5
    want = center + torch.tensor([[[[-0.1, share, share]]]], dtype=torch.float64)
    torch.testing.assert_close(project(start, center, 0.5, "l2"), want)
    clipped = onto_ball(start, center, 0.5, "l2").clamp(0, 1)
    assert float(distance(clipped, center, "l2")) < 0.39, "clipping last leaves a fifth of it"
    corner = torch.tensor([[[[0.0, 1.0, 1.0]]]], dtype=torch.float64)
    torch.testing.assert_close(project(9 * (start - center) + center, center, 2.0, "l2"), corner)


def test_projection_onto_the_l2_ball_keeps_the_direction():
    center = torch.full((1, 1, 1, 2), 0.5)
    moved = project(torch.tensor([[[[0.8, 0.9]]]]), center, 0.25, "l2")
    torch.testing.assert_close(moved, torch.tensor([[[[0.5 + 0.15, 0.5 + 0.2]]]]))


def test_projection_onto_the_linf_ball_is_per_pixel():
    center = torch.tensor([[[[0.5, 0.05]]]])
    moved = project(torch.tensor([[[[0.8, -0.9]]]]), center, 0.1, "linf")
    torch.testing.assert_close(moved, torch.tensor([[[[0.6, 0.0]]]]))


def test_violations_by_hand():
    center = torch.full((4, 1, 1, 2), 0.5)
    other = center.clone()
    other[0, 0, 0] = torch.tensor([0.6, 0.4])  # inside
    other[1, 0, 0] = torch.tensor([0.9, 0.5])  # 0.2 too far in linf
    other[2, 0, 0] = torch.tensor([1.3, 0.5])  # 0.3 outside the box, 0.6 too far
    other[3, 0, 0] = torch.tensor([-0.25, 0.5])
    np.testing.assert_allclose(violation(other, center, 0.2, "linf"), [0, 0.2, 0.6, 0.55], atol=1e-7)
    np.testing.assert_allclose(violation(other, center, 9.0, None), [0, 0, 0.3, 0.25], atol=1e-7)


@pytest.mark.parametrize("norm", [*NORMS, None])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_non_finite_image_violates_by_infinity(norm, value):
    center = torch.full((2, 1, 2, 2), 0.5)
    other = center.clone()
    other[1, 0, 0, 0] = value
    assert violation(other, center, 1.0, norm).tolist() == [0.0, torch.inf]
