"""Gradient attacks against analytic optima, and what must never be scored as robust."""

from __future__ import annotations

import pytest
import stubs
import torch
from robustode.attacks import THREATS, distance
from robustode.attacks.algorithms import repeated_runs
from robustode.attacks.algorithms.repeated_runs import TrackedModel, run_repeatedly
from robustode.attacks.core.best_images import BestImages
from robustode.attacks.core.queried_model import QueriedModel
from robustode.bench.evaluation.accuracy import evaluate_cell
from robustode.bench.runtime.checked_model import CheckedModel
from robustode.models import MODELS
from torch import nn

LINF, L2 = ("fgsm-linf", "pgd-linf"), ("fgsm-l2", "pgd-l2")


def linear_problem(count: int = 200):
    """Two classes, logits (0, w.x + b); images far enough from the box that no budget meets it."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(1, 4, 4, generator=generator)
    images = 0.5 + 0.4 * (torch.rand(count, 1, 4, 4, generator=generator) - 0.5)
    model = stubs.two_class(weight, -float((0.5 * weight).sum()))
    with torch.no_grad():
        score = model(images)[:, 1]
    labels = (score > 0).long()
    return model.eval().requires_grad_(False), images, labels, score.abs(), weight.flatten()


def middle(values: torch.Tensor) -> torch.Tensor:
    """A number that half of `values` exceed and none equals."""
    ordered = values.sort().values
    return ordered[len(values) // 2 - 1 :][:2].mean()


def margin(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """z_true - max of the others: negative when broken."""
    with torch.no_grad():
        logits = model(images)
    true = logits.gather(1, labels[:, None])[:, 0]
    return true - logits.scatter(1, labels[:, None], -torch.inf).amax(1)


@pytest.mark.parametrize("name", LINF)
def test_linf_attacks_reach_the_optimum_of_a_linear_model(name):
    model, images, labels, clean, weight = linear_problem()
    eps = float(middle(clean) / weight.abs().sum())
    attacked = THREATS.get(name)(model, images, labels, eps, 0, early_stopping=False)
    best = clean - eps * weight.abs().sum()
    torch.testing.assert_close(margin(model, attacked, labels), best, rtol=0, atol=1e-5)
    broken = margin(model, attacked, labels) < 0
    assert torch.equal(broken, best < 0)
    assert 0.4 < float(broken.double().mean()) < 0.6


@pytest.mark.parametrize(("name", "slack"), [("fgsm-l2", 1e-5), ("pgd-l2", 0.04)])
def test_l2_attacks_reach_the_optimum_of_a_linear_model(name, slack):
    model, images, labels, clean, weight = linear_problem()
    length = weight.norm()
    eps = float(middle(clean) / length)
    attacked = THREATS.get(name)(model, images, labels, eps, 0, early_stopping=False)
    gained = clean - margin(model, attacked, labels)
    assert float(gained.max()) <= eps * float(length) + 1e-5
    assert float(gained.min()) >= eps * float(length) * (1 - slack) - 1e-5
    sure = (clean - eps * length).abs() > slack * eps * length + 1e-5
    broken = margin(model, attacked, labels) < 0
    assert torch.equal(broken[sure], (clean < eps * length)[sure])
    assert int(broken.sum()) > 10
    assert int(sure.sum()) > 150


def test_an_attack_in_the_corner_of_the_box_stays_in_it():
    weight = torch.ones(1, 2, 2)
    model, images = stubs.two_class(weight, 0.5), torch.zeros(1, 1, 2, 2)
    for name in (*LINF, *L2):
        attacked = THREATS.get(name)(model, images, torch.tensor([1]), 0.3, 0)
        assert torch.equal(attacked, images), "darker than black is not an image"


class Valley(nn.Module):
    """Logits (0, (x - 0.52)^2 - 0.0001) of one pixel: broken only near 0.52, and steps jump over it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.flatten(1)
        return torch.cat([torch.zeros_like(x), (x - 0.52).square() - 1e-4], dim=1)


def asks(values: list[float]):
    """An attack that asks about images of the given values in turn and returns the last."""

    def attack(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        for value in values[:-1]:
            model(torch.full_like(images, value))
        return torch.full_like(images, values[-1])

    return attack


@pytest.mark.parametrize(
    ("asked", "best"), [([0.6, 0.52, 0.9], 0.52), ([0.9, 0.6, 0.515], 0.515), ([0.7, 0.6, 0.8], 0.6)]
)
@pytest.mark.parametrize("stop", [True, False])
def test_the_best_iterate_is_kept_and_not_the_last(asked, best, stop):
    images, labels = torch.full((1, 1, 1, 1), 0.65), torch.tensor([1])
    result = run_repeatedly(asks(asked), Valley(), images, labels, 0, early_stopping=stop)
    assert result.item() == pytest.approx(best)


def test_the_best_iterate_is_kept_per_sample():
    images, labels = torch.tensor([0.3, 0.7]).view(2, 1, 1, 1), torch.tensor([1, 0])
    best = BestImages(images, dtype=images.dtype, early_stopping=False)
    tracked = TrackedModel(QueriedModel(Valley()), best, images, labels, torch.arange(2))
    for value in (0.52, 0.9):
        tracked(torch.full_like(images, value))
    torch.testing.assert_close(best.images.flatten(), torch.tensor([0.52, 0.9]))
    torch.testing.assert_close(best.score, torch.tensor([1e-4, 0.38**2 - 1e-4]))


def test_broken_samples_take_no_part_in_later_restarts():
    sizes = []

    def attack(model, images, labels):
        sizes.append(len(images))
        return torch.full_like(images, 0.52 if len(sizes) == 1 else 0.9)

    images, labels = torch.tensor([0.3, 0.7, 0.8]).view(3, 1, 1, 1), torch.tensor([1, 1, 0])
    result = run_repeatedly(attack, Valley(), images, labels, 0, early_stopping=True, restarts=5)
    assert sizes == [3, 1]
    torch.testing.assert_close(result.flatten(), torch.tensor([0.52, 0.52, 0.9]))


@pytest.mark.parametrize("name", ["pgd-linf", "pgd-l2"])
def test_what_stops_breaks_the_same_samples_with_fewer_queries(name):
    model, images, labels, clean, weight = linear_problem()
    eps = float(middle(clean) / (weight.abs().sum() if name == "pgd-linf" else weight.norm()))
    broken, forwards, backwards = [], [], []
    for stop in (True, False):
        queried = CheckedModel(model, 2)
        attacked = THREATS.get(name)(queried, images, labels, eps, 0, early_stopping=stop)
        broken.append(model(attacked).argmax(1) != labels)
        forwards.append(queried.forwards)
        backwards.append(queried.backwards)
    assert torch.equal(*broken)
    assert 0.4 < float(broken[0].double().mean()) < 0.6
    assert forwards[0] < forwards[1]
    assert backwards[0] < backwards[1]


@pytest.mark.parametrize("name", ["fgsm-linf", "fgsm-l2"])
def test_fgsm_leaves_alone_what_is_wrong_already(name):
    model, images, labels, *_ = linear_problem(10)
    queried = CheckedModel(model, 2)
    labels[:4] = 1 - labels[:4]
    attacked = THREATS.get(name)(queried, images, labels, 1e-6, 0)
    assert (queried.forwards, queried.backwards) == (10 + 4 + 6, 10)
    assert torch.equal(attacked[:4], images[:4])
    assert not bool((attacked[4:] == images[4:]).flatten(1).all(1).any())


@pytest.mark.parametrize("stop", [True, False])
def test_early_stopping_within_a_run_is_exact(stop):
    """Two pixels on a line, logits (0, x - 0.5): one crosses at its third query, one never does."""
    model = stubs.two_class(torch.ones(1, 1, 1), -0.5)
    images, labels = torch.tensor([0.62, 0.95]).view(2, 1, 1, 1), torch.ones(2, dtype=torch.long)

    def walk(model, images, labels):
        for _ in range(5):
            images = images.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(-model(images)[:, 1].sum(), images)
            images = images.detach() + 0.07 * slope
        return images

    queried = CheckedModel(model, 2)
    found = run_repeatedly(walk, queried, images, labels, 0, early_stopping=stop)
    # asked at 0.62, 0.55, 0.48, and there once more: broken; the other at 0.95, 0.88, ... 0.60, the sixth
    # image without a gradient
    assert (queried.forwards, queried.backwards) == ((3 + 1 + 6, 3 + 5) if stop else (12, 10))
    torch.testing.assert_close(found.flatten(), torch.tensor([0.48 if stop else 0.27, 0.60]))


@pytest.mark.parametrize(("name", "eps"), [("pgd-linf", 0.015), ("pgd-l2", 0.25)])
def test_early_stopping_leaves_samples_broken_as_they_are_stored(name, eps, monkeypatch):
    """Many pixels, each rounded towards the image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = stubs.Linear((1, 28, 28), 10).eval()
    images = torch.rand(1000, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        split = stubs.split_of(images, model(images).argmax(1))
    threat = THREATS.get(name)
    cell = stubs.cell_for(threat, eps, samples=1000)
    options = {"num_classes": 10, "device": stubs.CPU, "environment": {}, "keep": lambda breaks: None}
    stopped = evaluate_cell(cell, model, split, threat, **options)
    monkeypatch.setattr(repeated_runs, "can_stop_early", lambda images: False)
    whole = evaluate_cell(cell, model, split, threat, **options)
    assert torch.equal(*(torch.from_numpy(record.outcomes["correct"]) for record in (stopped, whole)))
    assert 0.2 < whole.outcomes["correct"].mean() < 0.8
    assert stopped.backwards < whole.backwards


@pytest.mark.parametrize("name", ["pgd-linf", "pgd-l2"])
def test_restarts_and_pgd_are_never_worse(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS.get("h-node").build((1, 8, 8), 10).eval().requires_grad_(False)
    images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = model(images).argmax(1)
    eps = 0.05 if name == "pgd-linf" else 0.3
    left = []
    for restarts in (1, 2, 4):
        threat = THREATS.get(name).configure(steps=5, restarts=restarts)
        left.append(margin(model, threat(model, images, labels, eps, 7, early_stopping=False), labels))
    assert bool((left[1] <= left[0]).all())
    assert bool((left[2] <= left[1]).all())
    assert bool((left[0] < margin(model, images, labels)).all())


@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("steps", [1, 4])
def test_pgd_queries_exactly(steps, restarts):
    model, images, labels, *_ = linear_problem(5)
    queried = CheckedModel(model, 2)
    threat = THREATS.get("pgd-linf").configure(steps=steps, restarts=restarts)
    threat(queried, images, labels, 1e-6, 0)
    assert (queried.forwards, queried.backwards) == (5 * (steps + 1) * restarts, 5 * steps * restarts)


def test_pgd_step_size_is_relative_to_the_budget():
    """One step of size 0.5 eps from within the ball moves the margin by at most 1.5 eps |w|_1."""
    model, images, labels, clean, weight = linear_problem()
    for relative, least in ((0.5, -0.5), (2.5, 1.0)):
        threat = THREATS.get("pgd-linf").configure(steps=1, restarts=1, relative_step=relative)
        attacked = threat(model, images, labels, 0.01, 0, early_stopping=False)
        gained = (clean - margin(model, attacked, labels)) / (0.01 * weight.abs().sum())
        assert float(gained.min()) >= least - 1e-3
        assert float(gained.mean()) == pytest.approx(0.4375 if relative == 0.5 else 1.0, abs=0.05)


def test_l2_attacks_use_the_whole_budget_on_a_linear_model():
    model, images, labels, *_ = linear_problem(10)
    for name in L2:
        attacked = THREATS.get(name)(model, images, labels, 0.2, 0, early_stopping=False)
        torch.testing.assert_close(
            distance(attacked, images, "l2"), torch.full((10,), 0.2).double(), rtol=0.01, atol=0
        )


def test_a_flat_model_leaves_the_image_finite():
    """A gradient of exactly zero gives an L2 attack no direction."""
    model = stubs.two_class(torch.zeros(1, 2, 2), 1.0)
    images = torch.full((2, 1, 2, 2), 0.5)
    for name in (*LINF, *L2):
        attacked = THREATS.get(name)(model, images, torch.ones(2, dtype=torch.long), 0.1, 0)
        assert bool(attacked.isfinite().all())
