"""FAB: projections onto planes in the box, and the boundary it finds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from robustode.attacks import THREATS, distance
from robustode.attacks.algorithms.fab import step_to_plane
from scipy.optimize import linprog, minimize
from test_gradient import linear_problem, middle

BOTH = pytest.mark.parametrize("norm", ["linf", "l2"])


def planes(count: int, size: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(count, size, generator=generator, dtype=torch.float64)
    p = torch.where(torch.rand(count, size, generator=generator) < 0.3, p.round(), p)
    w = torch.randn(count, size, generator=generator, dtype=torch.float64)
    inside = torch.rand(count, size, generator=generator, dtype=torch.float64)
    return p, w, (w * (p - inside)).sum(1)


@BOTH
@given(size=st.integers(1, 40), seed=st.integers(0, 10**6))
def test_a_step_ends_on_the_plane_in_the_box_and_is_as_short_as_torchattacks(norm, size, seed, torchattacks):
    p, w, c = planes(8, size, seed)
    d = step_to_plane(p, w, c, norm)
    torch.testing.assert_close((w * d).sum(1), -c, rtol=0, atol=1e-9)
    assert -1e-9 <= float((p + d).min()) <= float((p + d).max()) <= 1 + 1e-9
    theirs = getattr(torchattacks.attacks.fab, f"projection_{norm}")(p, w, (w * p).sum(1) - c)
    order = torch.inf if norm == "linf" else 2
    ours, other = (torch.linalg.vector_norm(x, ord=order, dim=1) for x in (d, theirs))
    assert float((ours - other).max()) <= 1e-5


@pytest.mark.parametrize("seed", range(5))
def test_a_step_is_the_shortest_by_an_independent_solver(seed):
    p, w, c = planes(1, 6, seed)
    d = step_to_plane(p, w, c, "linf")[0]
    n = w[0].numpy()
    rows = torch.cat([torch.eye(6), -torch.eye(6)]).numpy()
    limits = torch.cat([rows_ := torch.tensor(rows), -torch.ones(12, 1)], 1).numpy()
    assert len(rows_) == 12
    found = linprog(
        [0] * 6 + [1], A_ub=limits, b_ub=[0] * 12, A_eq=[[*n, 0]], b_eq=[-float(c[0])],
        bounds=[*((-float(a), 1 - float(a)) for a in p[0]), (0, None)],
    )  # fmt: skip
    assert float(d.abs().max()) == pytest.approx(found.fun, abs=1e-8)
    d = step_to_plane(p, w, c, "l2")[0]
    best = minimize(
        lambda x: x @ x, d.numpy(), jac=lambda x: 2 * x, method="SLSQP",
        bounds=[(-float(a), 1 - float(a)) for a in p[0]],
        constraints={"type": "eq", "fun": lambda x: n @ x + float(c[0]), "jac": lambda x: n},
    )  # fmt: skip
    assert float(d @ d) <= best.fun + 1e-8


@BOTH
def test_a_plane_out_of_reach_and_a_normal_of_zero(norm):
    p = torch.tensor([[0.2, 0.7], [0.2, 0.7]])
    d = step_to_plane(p, torch.tensor([[1.0, -2.0], [0.0, 0.0]]), torch.tensor([-100.0, 1.0]), norm)
    torch.testing.assert_close(d, torch.tensor([[0.8, -0.7], [0.0, 0.0]]))


@BOTH
def test_the_size_of_a_gradient_does_not_matter(norm):
    """torchattacks takes entries below 1e-8 for zero."""
    p, w, c = (t.float() for t in planes(6, 9, 0))
    small = step_to_plane(p, 1e-30 * w, 1e-30 * c, norm)
    torch.testing.assert_close(small, step_to_plane(p, w, c, norm), rtol=1e-4, atol=1e-6)


@BOTH
def test_a_linear_model_is_broken_exactly_where_it_can_be(norm):
    model, images, labels, clean, weight = linear_problem()
    reach = clean / (weight.abs().sum() if norm == "linf" else weight.norm())
    eps = float(middle(reach))
    attacked = THREATS.get(f"fab-t-{norm}").configure(steps=30)(model, images, labels, eps, 0)
    sure = (reach / eps - 1).abs() > 0.01
    assert int(sure.sum()) > 180
    assert torch.equal((model(attacked).argmax(1) != labels)[sure], (reach < eps)[sure])
    assert float(distance(attacked, images, norm).max()) <= eps * (1 + 1e-6)
