"""Square: its schedule, its windows, its streams; and SPSA's estimate."""

from __future__ import annotations

import pytest
import stubs
import torch
from robustode.attacks import THREATS
from robustode.attacks.algorithms.spsa import slope
from robustode.attacks.algorithms.square import (
    BLOCK,
    _corner,
    _propose_l2,
    _propose_linf,
    _tiles,
    eta_pattern,
    eta_rectangle,
    fraction,
)
from robustode.attacks.core.batch_state import BatchState
from robustode.bench.runtime.checked_model import CheckedModel
from test_gradient import linear_problem


def test_the_schedule_is_the_papers_and_not_rescaled_to_the_queries():
    steps = [0, 10, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]
    shares = [0.8, 0.8, 0.4, 0.2, 0.1, 0.05, 0.025, 0.0125, 0.00625, 0.003125, 0.0015625]
    assert [fraction(step, 0.8) for step in steps] == pytest.approx(shares)


def test_squares_reach_every_pixel_the_last_row_and_column_included():
    """torchattacks never puts one against the right or lower edge."""
    x0 = torch.full((400, 1, 5, 7), 0.5)
    u = torch.rand(400, 3, generator=torch.Generator().manual_seed(0))
    changed = (_propose_linf(x0, x0, 0.1, 2.0, u) != x0).flatten(2).any(0)
    assert bool(changed.all())
    assert set(_corner(torch.linspace(0, 1 - 2**-24, 99), 7, 2).tolist()) == set(range(6))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 9), (2, 2, 2), (1, 1, 4)])
@pytest.mark.parametrize("side", [0.3, 3.0, 20.0])
def test_a_proposal_keeps_its_budget_and_its_own_window(shape, side):
    channels = shape[0]
    x0 = 0.3 + 0.4 * torch.rand(6, *shape, generator=torch.Generator().manual_seed(0))
    u = torch.rand(6, 6 + channels, generator=torch.Generator().manual_seed(1))
    x = _propose_linf(x0, x0, 0.2, side, u[:, : 2 + channels])
    area = (x != x0).any(1).flatten(1).sum(1)
    s = min(max(round(side), 1), *shape[1:])
    assert area.tolist() == [s * s] * 6
    start = _tiles(x0, 0.2, list(range(6)))
    for image in (start, _propose_l2(start, x0, 0.2, side, u)):
        length = (image - x0).flatten(1).norm(dim=1)
        torch.testing.assert_close(length, torch.full((6,), 0.2))


@pytest.mark.parametrize("s", [1, 2, 3, 4, 5, 9])
def test_the_hills_are_those_of_torchattacks(s, torchattacks):
    theirs = torchattacks.Square(torch.nn.Linear(1, 1))
    theirs.device = "cpu"
    torch.testing.assert_close(eta_rectangle(s, s + 2).float(), theirs.eta_rectangles(s, s + 2))
    if s > 1:
        with torch.random.fork_rng(devices=[]):
            eta = theirs.eta(s)
        ours = eta_pattern(s).float()
        assert torch.allclose(ours, eta) or torch.allclose(ours.T, eta)
    assert float(eta_pattern(s).norm()) == pytest.approx(1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_queries_end_for_a_sample_where_it_breaks(norm):
    seen = []

    def model(images):
        seen.append(len(images))
        x = images.flatten(1)[:, :1]
        gone = torch.full_like(x, float(len(seen) == 4 or len(x) == 1))
        return torch.cat([torch.ones_like(x) * 0.5, 1 - gone * (torch.arange(len(x)) < 2)[:, None]], 1)

    images = torch.full((5, 1, 6, 6), 0.5)
    threat = THREATS.get(f"square-{norm}").configure(queries=BLOCK + 7)
    threat(model, images, torch.ones(5, dtype=torch.long), 0.1, 0)
    assert seen == [5] * 4 + [1] * 2 + [3] * (BLOCK + 7 + 1 - 4)


def test_on_a_linear_model_squares_come_close_to_the_optimum():
    model, images, labels, clean, weight = linear_problem(40)
    eps = float(clean.median() / weight.abs().sum())
    attacked = THREATS.get("square-linf").configure(queries=600)(model, images, labels, eps, 0)
    gained = 1.05 * clean < eps * weight.abs().sum()
    broken = model(attacked).argmax(1) != labels
    assert not broken[clean > eps * weight.abs().sum()].any()
    assert bool(broken[gained].all())


def test_the_estimated_slope_of_a_linear_model_is_its_gradient():
    weight = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(0))
    model = stubs.two_class(weight, 1.0 - float(weight.sum() / 2))
    images = torch.full((2, 1, 3, 3), 0.5)
    state = BatchState(model, images, model(images).argmax(1), 0)
    g = slope(state, state.rows, images, 0.1, 400, "test").flatten(1)
    sign = torch.where(state.labels == 1, -1.0, 1.0)[:, None]
    cosine = torch.cosine_similarity(g, sign * weight.flatten()[None], dim=1)
    assert float(cosine.min()) > 0.98
    assert float(cosine[0]) != float(cosine[1]), "each sample has signs of its own"


def test_spsa_breaks_a_linear_model_and_counts_its_queries():
    model, images, labels, clean, weight = linear_problem(10)
    eps = 1.2 * float((clean / weight.abs().sum()).max())
    threat = THREATS.get("spsa-linf").configure(steps=30, directions=20, rate=eps / 5)
    queried = CheckedModel(model, 2)
    attacked = threat(queried, images, labels, eps, 0)
    assert bool((model(attacked).argmax(1) != labels).all())
    assert 10 * 42 <= queried.forwards < 10 * threat.queries(threat.parameters)[0]
    assert queried.backwards == 0
