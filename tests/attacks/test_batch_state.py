"""What every part of AutoAttack uses: best iterates, memory, losses, modes."""

from __future__ import annotations

import pytest
import stubs
import torch
from robustode.attacks import THREATS
from robustode.attacks.core.batch_state import BatchState
from robustode.attacks.core.frozen_model import frozen
from robustode.attacks.core.losses import cross_entropy, margin, targeted_dlr
from robustode.attacks.core.queried_model import QueriedModel
from robustode.bench.runtime.checked_model import CheckedModel
from torch import nn
from torch.nn import functional as F

SMALL = {"steps": 4, "queries": 20, "directions": 2}
PARTS = ("autoattack", "apgd-ce", "apgd-t", "fab-t", "square")
NAMES = [*(f"{part}-{norm}" for part in PARTS for norm in ("linf", "l2")), "spsa-linf"]
every = pytest.mark.parametrize("name", NAMES)


def cut(name: str, **sizes: int):
    threat = THREATS.get(name)
    sizes = {**SMALL, **sizes}
    return threat.configure(**{key: value for key, value in sizes.items() if key in threat.parameters})


def smooth(classes: int, shape=(1, 6, 6), seed: int = 0) -> nn.Module:
    """A small network in float64, whose rows do not depend on one another beyond 1e-15."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        size = shape[0] * shape[1] * shape[2]
        layers = nn.Flatten(), nn.Linear(size, 20), nn.Tanh(), nn.Linear(20, classes)
        return nn.Sequential(*layers).double().eval().requires_grad_(False)


def images_for(model: nn.Module, count: int = 12, shape=(1, 6, 6)):
    images = torch.rand(count, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return images, model(images).argmax(1)


@pytest.mark.parametrize(
    ("count", "room", "sizes"), [(9, 4, [9, 4, 4, 1]), (8, 1, [8, 4, 2, *[1] * 8]), (5, 5, [5])]
)
def test_a_batch_is_halved_until_it_fits(count, room, sizes):
    seen = []

    def double(x, y):
        seen.append(len(x))
        if len(x) > room:
            raise torch.OutOfMemoryError("full")
        return 2 * x, x + y

    model, x = QueriedModel(nn.Identity()), torch.arange(count)
    for _ in range(2):
        twice, total = model.in_batches(double, x, x + 1)
        assert torch.equal(twice, 2 * x)
        assert torch.equal(total, 2 * x + 1)
    assert seen[: len(sizes)] == sizes
    assert max(seen[len(sizes) :]) <= room, "a size that failed is not tried again"


def test_one_sample_that_does_not_fit_is_an_error():
    def never(x):
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        QueriedModel(nn.Identity()).in_batches(never, torch.zeros(4))


def test_the_margin_is_positive_exactly_where_argmax_differs():
    logits = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 2.0, 1.0], [-5.0, -7.0, -6.0]])
    labels = torch.tensor([0, 1, 1, 1])
    found = margin(logits, labels)
    assert torch.equal(found > 0, logits.argmax(1) != labels)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, -1.0, 2.0]).double())
    torch.testing.assert_close(margin(logits - 100, labels), found), "logits need not be positive"


def test_the_loss_is_the_cross_entropy_and_does_not_saturate():
    logits = torch.randn(
        6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    torch.testing.assert_close(
        F.softplus(cross_entropy(logits, labels)), F.cross_entropy(logits, labels, reduction="none")
    )
    (ours,) = torch.autograd.grad(cross_entropy(logits, labels).sum(), logits)
    (theirs,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), logits)
    torch.testing.assert_close(F.normalize(ours), F.normalize(theirs))
    huge = (1e6 * logits.detach().float()).requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(huge, labels).sum(), huge)
    assert bool((gradient.abs().sum(1) > 0.5).all())


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_the_targeted_ratio_has_a_gradient_towards_every_class(classes):
    for target in range(1, classes):
        logits = torch.linspace(1, 0, classes).double()[None].requires_grad_()
        loss = targeted_dlr(logits, torch.tensor([0]), torch.tensor([target]))
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert float(gradient[0, target]) > 0 or float(gradient[0, 0]) < 0
        assert float(gradient.abs().max()) > 0.1
        assert float(loss.detach()) < 0


def test_the_targeted_ratio_is_equation_7():
    z = torch.tensor([[3.0, 1.0, 2.0, -1.0, 0.5]])
    found = targeted_dlr(z, torch.tensor([0]), torch.tensor([4]))
    torch.testing.assert_close(found, torch.tensor([(0.5 - 3) / (3 - (1 + 0.5) / 2)]))


def test_modes_and_flags_are_put_back_module_by_module():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2).eval())
    model[0].bias.requires_grad_(False)

    def fail():
        with frozen(model):
            assert not any(module.training for module in model.modules())
            assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
            model(torch.rand(2, 2)).sum().backward()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [module.training for module in model.modules()] == [True, True, True, False]
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, False, True, True]
    assert all(parameter.grad is None for parameter in model.parameters())
    with frozen(lambda images: images):
        pass


def test_a_wrong_sample_and_one_closer_than_rounding_are_told_apart():
    def model(x):
        return 100 + torch.cat([torch.zeros_like(x), x - 0.5], dim=1).flatten(1)

    images = torch.tensor([0.4, 0.6, 0.4999]).view(3, 1, 1, 1)
    state = BatchState(model, images, torch.tensor([1, 1, 1]), 0)
    assert (state.margin > 0).tolist() == [True, False, True]
    assert state.active.tolist() == [False, True, True], "another batch size could turn the last"


def test_only_better_images_inside_the_budget_are_kept():
    model = stubs.two_class(torch.tensor([[[1.0]]]), -0.5)
    images = torch.tensor([0.8, 0.8, 0.8]).view(3, 1, 1, 1)
    state = BatchState(model, images, torch.tensor([1, 1, 1]), 0)
    asked = torch.tensor([0.7, 0.9, 0.2]).view(3, 1, 1, 1)
    state.query_margins(state.rows, asked, torch.tensor([True, True, False]))
    torch.testing.assert_close(state.best.flatten(), torch.tensor([0.7, 0.8, 0.8]))
    assert bool(state.active.all())


@every
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_a_sample_alone_gives_what_it_gives_in_a_batch(name, classes):
    model = smooth(classes)
    images, labels = images_for(model, 6)
    strength = 0.03 if name.endswith("linf") else 0.15
    threat, seeds = cut(name, steps=8, queries=25, targets=3), [11, 22, 33, 44, 55, 66]
    together = threat(model, images, labels, strength, seeds)
    for i in range(0, 6, 2):
        alone = threat(model, images[i : i + 1], labels[i : i + 1], strength, seeds[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-9)
    again = threat(model, images, labels, strength, seeds)
    assert torch.equal(again, together)
    other = threat(model, images, labels, strength, 5)
    if not name.startswith("fab") and name.endswith("l2"):  # in l-infinity two starts may end in one corner
        assert not torch.equal(other, together)


@every
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 2), (2, 3, 9), (1, 8, 8)])
def test_any_shape_of_image_and_dtype(name, shape):
    for dtype in (torch.float32, torch.float64):
        model = smooth(4, shape).to(dtype)
        images, _ = images_for(smooth(4, shape), 3, shape)
        images = images.to(dtype)
        attacked = cut(name)(model, images, model(images).argmax(1), 0.3, 0)
        assert attacked.dtype == dtype
        assert attacked.shape == images.shape
        assert 0 <= float(attacked.min()) <= float(attacked.max()) <= 1


@every
def test_what_is_wrong_already_is_left_alone_after_being_asked_in_the_batch_and_alone(name):
    model = smooth(4)
    images, labels = images_for(model)
    queried = CheckedModel(model, 4)
    attacked = cut(name)(queried, images, (labels + 1) % 4, 0.1, 0)
    assert torch.equal(attacked, images)
    assert (queried.forwards, queried.backwards) == (24, 0)
