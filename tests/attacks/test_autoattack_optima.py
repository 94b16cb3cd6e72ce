"""AutoAttack against exact distances, at a radius per sample, on either side of its distance."""

from __future__ import annotations

import optima
import pytest
import torch
from robustode.attacks import distance
from robustode.attacks.algorithms.apgd import apgd
from robustode.attacks.autoattack import _targeted_runs, autoattack_stages
from robustode.attacks.core.batch_state import BatchState, under_attack
from robustode.attacks.core.losses import cross_entropy
from robustode.bench.runtime.checked_model import CheckedModel
from test_minimal_optima import relu_network
from torch import nn

BOTH = pytest.mark.parametrize("norm", ["linf", "l2"])


def standing(model, images, labels, radii, norm, steps: int) -> torch.Tensor:
    """Who survives AutoAttack, bool (N,); what broke the others is checked."""
    with under_attack(model, images, labels, 0) as state:
        autoattack_stages(state, radii, norm, steps, 9, 100)
    broken = state.margin > 0  # some of them by less than storing the image takes away
    assert torch.equal(broken, model(state.best).argmax(1) != labels)
    assert bool((distance(state.best, images, norm) <= radii * (1 + 1e-9))[broken].all())
    return ~broken


@BOTH
@pytest.mark.parametrize("classes", [2, 3, 5, 10])
def test_a_linear_model_is_broken_on_the_far_side_of_the_distance_alone(classes, norm):
    layer = optima.linear_layer(30, classes, classes).double()
    model, images = nn.Sequential(nn.Flatten(), layer), optima.images_of_both_kinds(15, 30, 7).double()
    labels = model(images).argmax(1)
    exact = torch.from_numpy(optima.linear_distances(layer, images, labels, norm))
    assert bool(exact.isfinite().all())
    radii = torch.cat([(1 - 1e-3) * exact, (1 + 1e-3) * exact])
    left = standing(model, images.repeat(2, 1, 1, 1), labels.repeat(2), radii, norm, 30)
    assert left.tolist() == [True] * 30 + [False] * 30


NETWORKS = [(2, 4, 3, 42), (4, 4, 2, 5), (3, 5, 4, 7), (4, 3, 2, 34)]
"""Pixels, hidden units, classes, seed.

Of the last one some samples' adversarial images lie at the tip of a ridge, a hundred-thousandth of the ball
at 1.02 times the distance. The attack's seed is 0 here: with seeds 1 to 3 it leaves up to two of sixteen
samples of that network standing, one of the first with seed 3, and one of the second with seeds 2 and 3.
"""


@BOTH
@pytest.mark.parametrize("network", NETWORKS)
def test_a_relu_network_is_broken_on_the_far_side_of_the_distance_alone(network, norm):
    first, last = (layer.double() for layer in relu_network(*network))
    model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)
    images = optima.images_of("inside", 16, network[0], 3).double()
    labels = model(images).argmax(1)
    exact = torch.from_numpy(optima.relu_distances(first, last, images, labels, norm))
    near = exact.isfinite()
    assert int(near.sum()) >= 12
    images, labels, exact = images[near], labels[near], exact[near]
    assert bool(standing(model, images, labels, 0.98 * exact, norm, 15).all())
    assert not bool(standing(model, images, labels, 1.02 * exact, norm, 100).any())


def test_with_two_classes_the_runs_that_are_left_start_elsewhere():
    """Nine runs towards one class, each from a start of its own; with ten classes none is left."""

    class Classes:
        def __init__(self, count: int) -> None:
            self.logits = torch.zeros(1, count)

    assert list(_targeted_runs(Classes(10), 9)) == [(rank, 0) for rank in range(1, 10)]
    assert list(_targeted_runs(Classes(4), 7)) == [(1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (3, 1), (1, 2)]
    assert list(_targeted_runs(Classes(2), 3)) == [(1, 0), (1, 1), (1, 2)]
    assert list(_targeted_runs(Classes(1), 9)) == []


class Flat(nn.Module):
    """Without a slope until the first pixel passes 0.7, and wrong from 0.78 on."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.flatten(1)[:, :1]
        return torch.cat([torch.zeros_like(x), 0.05 - 0.6 * (x - 0.7).relu()], dim=1)


@BOTH
def test_a_start_without_a_gradient_is_drawn_again_where_one_has_been_seen(norm):
    images, labels = torch.full((40, 1, 3, 3), 0.5), torch.ones(40, dtype=torch.long)

    def run(seen: bool, eps: float) -> tuple[BatchState, CheckedModel]:
        queried = CheckedModel(Flat(), 2)
        with under_attack(queried, images, labels, 0) as state:
            state.zero_gradient[:] = not seen
            apgd(
                state,
                lambda logits, rows: cross_entropy(logits, labels[rows]),
                eps,
                norm,
                steps=40,
                purpose="x",
            )
        return state, queried

    assert not bool(run(True, 0.4 if norm == "linf" else 0.7)[0].active.any())
    unseen, _ = run(False, 0.4)
    assert int(unseen.active.sum()) >= 10
    assert torch.equal(unseen.active, unseen.zero_gradient), "they end at once, as they did"
    _, queried = run(True, 0.27)  # too small: the slope is met, the boundary is not
    assert (queried.forwards, queried.backwards) == (40 * (1 + 41), 40 * 40)
