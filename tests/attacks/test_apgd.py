"""Auto-PGD against its algorithm, analytic optima, and the queries it spends."""

from __future__ import annotations

import pytest
import stubs
import torch
from robustode.attacks import THREATS, distance
from robustode.attacks.algorithms.apgd import checkpoints, direction, random_start
from robustode.bench.runtime.checked_model import CheckedModel
from test_gradient import linear_problem, middle
from torch import nn

BOTH = pytest.mark.parametrize("norm", ["linf", "l2"])


def test_the_checkpoints_are_those_of_the_paper():
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(checkpoints(10)) == [3, 5, 6, 7, 8, 9, 10, 10]


@BOTH
def test_a_direction_has_length_one_however_small_the_gradient(norm):
    g = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    g[1] *= 1e-36
    g[2] = 0
    length = distance(direction(g, norm), torch.zeros_like(g), norm)
    torch.testing.assert_close(length, torch.tensor([1.0, 1.0, 0.0]).double(), rtol=1e-6, atol=0)


@BOTH
def test_a_start_is_on_the_sphere_and_a_samples_own(norm):
    x0 = torch.full((3, 2, 5, 5), 0.5)
    start = random_start(x0, [1, 2, 3], 0.3, norm)
    torch.testing.assert_close(distance(start, x0, norm), torch.full((3,), 0.3).double())
    assert torch.equal(start[1:2], random_start(x0[:1], [2], 0.3, norm))
    assert not torch.equal(start[0], start[1])


@BOTH
@pytest.mark.parametrize("part", ["apgd-ce", "apgd-t"])
def test_a_linear_model_is_broken_exactly_where_it_can_be(part, norm):
    model, images, labels, clean, weight = linear_problem()
    reach = clean / (weight.abs().sum() if norm == "linf" else weight.norm())
    eps = float(middle(reach))
    attacked = THREATS.get(f"{part}-{norm}").configure(steps=20)(model, images, labels, eps, 0)
    sure = (reach / eps - 1).abs() > 1e-3
    assert int(sure.sum()) > 190
    assert torch.equal((model(attacked).argmax(1) != labels)[sure], (reach < eps)[sure])


@BOTH
def test_pixels_at_the_edge_of_the_box_move(norm):
    """torchattacks' CW leaves a pixel at 0 or 1 where it is, which is most of MNIST."""
    weight = torch.tensor([[[1.0, -1.0], [1.0, -1.0]]])
    images = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    model = stubs.two_class(weight, 0.9)
    attacked = THREATS.get(f"apgd-ce-{norm}").configure(steps=5)(model, images, torch.tensor([0]), 0.2, 0)
    assert float((attacked - images).abs().min()) > 0.05


class Ridge(nn.Module):
    """Wrong only on a strip so narrow that long steps jump over it; the loss rises towards it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.flatten(1)[:, :1]
        return torch.cat([torch.zeros_like(x), (x - 0.5372).abs() - 3e-4], dim=1)


@BOTH
def test_step_sizes_shrink_until_a_narrow_strip_is_met(norm):
    images, labels = torch.full((1, 1, 1, 1), 0.45), torch.tensor([1])
    attacked = THREATS.get(f"apgd-ce-{norm}")(Ridge(), images, labels, 0.2, 0)
    assert abs(attacked.item() - 0.5372) < 3e-4, "and the image inside it is what is returned"


@BOTH
def test_a_broken_sample_is_asked_no_more(norm):
    """It breaks at the first step: one clean forward, the start, one step, one alone; the other goes on."""
    model = stubs.two_class(torch.ones(1, 2, 2), -2.0)
    images = torch.stack([torch.full((1, 2, 2), 0.501), torch.full((1, 2, 2), 0.9)])
    labels, steps = torch.tensor([1, 1]), 9
    for seed in range(4):
        queried = CheckedModel(model.eval(), 2)
        threat = THREATS.get(f"apgd-ce-{norm}").configure(steps=steps, restarts=3)
        attacked = threat(queried, images, labels, 0.05, seed)
        assert model(attacked).argmax(1).tolist() == [0, 1]
        start = random_start(images[:1], derived(seed), 0.05, norm)
        early = bool((model(start).argmax(1) == 0).all())
        stayed = 1 + 3 * (steps + 1), 3 * steps
        assert queried.forwards == stayed[0] + (3 if early else 4)
        assert queried.backwards == stayed[1] + (1 if early else 2)


def derived(seed: int) -> list[int]:
    from robustode.attacks.core.seeds import derive, per_sample

    return derive(per_sample(seed, 2)[:1], "apgd", "ce 0")


@BOTH
def test_small_gradients_and_huge_logits_do_not_stop_it(norm):
    model, images, labels, clean, weight = linear_problem(60)
    eps = 1.01 * float((clean / (weight.abs().sum() if norm == "linf" else weight.norm())).max())
    for scale in (1e-12, 1e6, 1e20):
        attacked = THREATS.get(f"apgd-ce-{norm}").configure(steps=10)(
            lambda x, scale=scale: scale * model(x), images, labels, eps, 0
        )
        assert bool((model(attacked).argmax(1) != labels).all()), scale
