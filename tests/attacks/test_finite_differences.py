"""Slopes from differences of logits: the aim, the directions, the fit, and what they find together."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from robustode.attacks.algorithms import finite_differences as _slopes
from robustode.attacks.algorithms.finite_differences import (
    broyden_update,
    fit_and_attack,
    maximise_linear,
    orthogonal_directions,
)
from robustode.attacks.core.batch_state import BatchState, under_attack
from robustode.attacks.core.norms import distance
from torch import nn

BOTH = pytest.mark.parametrize("norm", ["linf", "l2"])


class Steps(nn.Module):
    """A linear model whose logits are rounded to `grain`, and so have no gradient."""

    def __init__(self, weight: torch.Tensor, grain: float) -> None:
        super().__init__()
        self.weight, self.grain = nn.Parameter(weight, requires_grad=False), grain

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return ((images - 0.5).flatten(1) @ self.weight.T / self.grain).round() * self.grain


def steps(grain: float, classes: int = 4):
    """Such a model in float64 with 40 images and the labels that it gives them."""
    generator = torch.Generator().manual_seed(5)
    model = Steps(torch.randn(classes, 36, generator=generator, dtype=torch.float64), grain)
    images = torch.rand(40, 1, 6, 6, generator=generator, dtype=torch.float64)
    return model, images, model(images).argmax(1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["linf", "l2"]), st.sampled_from([1e-3, 0.2, 1.0, 3.0]))
def test_no_other_point_of_the_ball_and_the_box_is_farther_along(seed, norm, eps):
    """The conditions of Karush, Kuhn and Tucker: pixels off the box's edge move by one lambda times g."""
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.rand(3, 1, 4, 4, generator=generator, dtype=torch.float64)
    x0 = torch.where(torch.rand(x0.shape, generator=generator) < 0.5, x0.round(), x0)
    g = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    g[0, 0, 0] = 0
    x = maximise_linear(g, x0, eps, norm)
    assert bool(((x >= 0) & (x <= 1)).all())
    assert bool((distance(x, x0, norm) <= eps * (1 + 1e-12)).all())
    assert torch.equal(x[0, 0, 0], x0[0, 0, 0])
    free = (x > 0) & (x < 1) & (g != 0)
    for row in range(3):
        moved = (x - x0)[row][free[row]]
        if norm == "linf":
            assert torch.allclose(moved.abs(), torch.tensor(eps).double())
        elif len(moved):
            assert float(distance(x, x0, norm)[row]) == pytest.approx(eps)
            rate = moved / g[row][free[row]]
            assert torch.allclose(rate, rate[:1])
            edge = ~free[row] & (g[row] != 0)
            assert bool(((x - x0)[row][edge].abs() <= rate[0] * g[row][edge].abs() * (1 + 1e-9)).all())
        else:
            assert torch.equal(x[row][g[row] != 0], (g[row][g[row] != 0] > 0).double())


def test_every_basis_is_orthonormal_and_each_sample_has_its_own():
    x = torch.zeros(2, 3, 2, 2, dtype=torch.float64)
    sweep = orthogonal_directions(x, [1, 2], 0, 24)
    one = torch.eye(12, dtype=torch.float64)
    for sample in sweep:
        for basis in sample.split(12):
            assert torch.allclose(basis @ basis.T, one)
    assert not torch.equal(sweep[0].abs() * sweep[0].sign(), sweep[1])
    assert not torch.equal(sweep[0, :12], sweep[0, 12:])
    assert torch.equal(orthogonal_directions(x[1:], [2], 7, 9)[0], sweep[1, 7:16])


def test_a_linear_model_is_fitted_exactly_once_every_direction_is_seen():
    generator = torch.Generator().manual_seed(3)
    truth = torch.randn(2, 3, 12, generator=generator, dtype=torch.float64)
    moves = torch.randn(2, 12, 12, generator=generator, dtype=torch.float64)
    jacobian = torch.zeros_like(truth)
    missed = [float((truth - jacobian).norm())]
    for part in moves.split(4, 1):
        jacobian = broyden_update(jacobian, part, part @ truth.mT, 0)
        assert torch.allclose(part @ jacobian.mT, part @ truth.mT), "what was seen is explained"
        missed.append(float((truth - jacobian).norm()))
    assert missed == sorted(missed, reverse=True), "the smallest change never leads away"
    assert torch.allclose(broyden_update(jacobian * 0, moves, moves @ truth.mT, 0), truth)
    shrunk = broyden_update(jacobian * 0, moves, moves @ truth.mT, 10.0)
    assert float(shrunk.norm()) < float(truth.norm())


@BOTH
def test_a_rounded_linear_model_is_broken_where_its_twin_can_be(norm):
    model, images, labels = steps(0.5)
    narrow = Steps(model.weight, 1e-9)
    eps = 0.05 if norm == "linf" else 0.3
    with under_attack(model, images, labels, 0) as state:
        fit_and_attack(state, eps, norm, queries=1000, targets=3)
    aims = [
        maximise_linear((model.weight[k] - model.weight[labels]).view_as(images), images, eps, norm)
        for k in range(4)
    ]
    gaps = torch.stack(
        [(z := narrow(aim))[:, k] - z.gather(1, labels[:, None])[:, 0] for k, aim in enumerate(aims)]
    )
    best = gaps.scatter(0, labels[None], -torch.inf).amax(0)
    assert int((best > 0.5).sum()) >= 5
    assert int((best < -0.5).sum()) >= 5
    assert not bool(state.active[best > 0.5].any()), "rounding two logits hides half a grain of each"
    assert bool(state.active[best < -0.5].all())
    assert bool((distance(state.best, images, norm) <= eps * (1 + 1e-9)).all())


@BOTH
def test_a_sample_alone_fares_as_in_any_company(norm, monkeypatch):
    model, images, labels = steps(0.5)
    eps = 0.04 if norm == "linf" else 0.2

    def attacked(rows: slice) -> BatchState:
        with under_attack(model, images[rows], labels[rows], list(range(40))[rows]) as state:
            fit_and_attack(state, eps, norm, queries=300, targets=3)
        return state

    together = attacked(slice(None))
    assert 0 < int(together.active.sum()) < 40
    for row in (0, 7, 21):
        alone = attacked(slice(row, row + 1))
        assert torch.allclose(alone.best[0], together.best[row], atol=1e-9, rtol=0)
    monkeypatch.setattr(_slopes, "_ENTRIES", 36 * 32 * 3)
    assert torch.allclose(attacked(slice(None)).best, together.best, atol=1e-9, rtol=0)


def test_a_sample_that_showed_a_gradient_is_not_asked_about():
    model, images, labels = steps(0.5)
    with under_attack(model, images, labels, 0) as state:
        state.zero_gradient[:] = False
        before = state.margin.clone()
        fit_and_attack(state, 0.3, "l2", queries=300, targets=3)
    assert torch.equal(state.margin, before)
