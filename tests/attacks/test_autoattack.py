"""AutoAttack: its strength, its stages, exact optima, and how it is scored."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import stubs
import torch
from robustode.attacks import THREATS
from robustode.attacks.algorithms.finite_differences import fit_and_attack
from robustode.attacks.core.batch_state import under_attack
from robustode.bench.config.preset import load_preset
from robustode.bench.evaluation.accuracy import evaluate_cell
from robustode.bench.runtime.checked_model import CheckedModel
from torch import nn
from torch.nn import functional as F

BOTH = pytest.mark.parametrize("norm", ["linf", "l2"])


@BOTH
def test_the_strength_is_the_official_one(norm):
    """100 steps each, 9 targets, 5000 queries; torchattacks' own has 10 steps."""
    threat = THREATS.get(f"autoattack-{norm}")
    assert dict(threat.parameters) == {"steps": 100, "targets": 9, "queries": 5000}
    assert threat.queries(threat.parameters) == (1 + 101 + 9 * 101 + 9 * 200 + 5000, 100 + 900 + 900)
    assert dict(THREATS.get(f"apgd-ce-{norm}").parameters) == {"steps": 100, "restarts": 1}
    assert dict(THREATS.get(f"apgd-t-{norm}").parameters) == {"steps": 100, "targets": 9}
    assert dict(THREATS.get(f"fab-t-{norm}").parameters) == {"steps": 100, "targets": 9}
    assert dict(THREATS.get(f"square-{norm}").parameters) == {"queries": 5000, "p_init": 0.8}
    whole = {"steps": 100, "targets": 9, "queries": 5000, "restarts": 4, "gap": 1.05}
    assert dict(THREATS.get(f"curve-{norm}").parameters) == whole
    (asked,) = (attack for attack in load_preset("standard").threats if attack.name == f"curve-{norm}")
    assert not asked.parameters, "what the leaderboard runs is the same"
    assert asked.samples >= 300
    assert asked.samples_on_gpu >= 1000


@BOTH
@pytest.mark.parametrize("classes", [2, 10])
def test_a_linear_model_is_broken_exactly_where_it_can_be(classes, norm):
    generator = torch.Generator().manual_seed(classes)
    model = stubs.Linear((1, 4, 4), classes).double().requires_grad_(False)
    model.head.weight.copy_(torch.randn(classes, 16, generator=generator))
    images = 0.5 + 0.4 * (torch.rand(60, 1, 4, 4, generator=generator, dtype=torch.float64) - 0.5)
    model.head.bias.copy_(-model.head.weight.sum(1) / 2)
    logits = model(images)
    labels = logits.argmax(1)
    normals = model.head.weight[None] - model.head.weight[labels][:, None]
    size = normals.abs().sum(2) if norm == "linf" else normals.norm(dim=2)
    gap = (logits.gather(1, labels[:, None]) - logits) / size.clamp_min(1e-9)
    reach = gap.scatter(1, labels[:, None], torch.inf).amin(1)
    for eps in (float(reach.quantile(0.3)), float(reach.quantile(0.7))):
        threat = THREATS.get(f"autoattack-{norm}").configure(steps=30, queries=20)
        broken = model(threat(model, images, labels, eps, 0)).argmax(1) != labels
        sure = (reach / eps - 1).abs() > 1e-3
        assert int(sure.sum()) >= 55
        assert torch.equal(broken[sure], (reach < eps)[sure])


def test_with_the_box_in_the_way_it_is_exact_too():
    """Black and white images: half of the steps that a gradient asks for leave the box."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(1, 5, 5, generator=generator, dtype=torch.float64)
    images = (torch.rand(80, 1, 5, 5, generator=generator, dtype=torch.float64) > 0.5).double()
    model = stubs.two_class(weight.float(), 0.0).double().requires_grad_(False)
    score = model(images)[:, 1]
    labels = (score > 0).long()
    eps, sign = 0.25, torch.where(labels == 1, -1.0, 1.0)[:, None, None, None]
    corner = (images + eps * sign * weight.float().double().sign()).clamp(0, 1)
    reachable = model(corner).argmax(1) != labels
    threat = THREATS.get("autoattack-linf").configure(steps=25, queries=20)
    broken = model(threat(model, images, labels, eps, 0)).argmax(1) != labels
    assert torch.equal(broken, reachable)
    assert 10 < int(reachable.sum()) < 70


@functools.cache
def trained():
    """A small smooth network fitted to the digits, and its first 100 test images."""
    from robustode.bench.data import load_data

    data = load_data("digits")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(150):
        optimiser.zero_grad()
        F.cross_entropy(net(data.train.images), data.train.labels).backward()
        optimiser.step()
    test = data.test.first(100)
    return net.eval().requires_grad_(False), test.images, test.labels


@functools.cache
def robust(name: str, eps: float, **sizes: int) -> float:
    """Accuracy of the trained network under a threat; what was measured once is kept."""
    net, images, labels = trained()
    attacked = THREATS.get(name).configure(**sizes)(net, images, labels, eps, 0)
    return float((net(attacked).argmax(1) == labels).double().mean())


SIZES = {"steps": 40, "targets": 3, "queries": 1200}


def test_attacks_with_and_without_gradients_agree_on_a_smooth_model():
    white = robust("autoattack-linf", 0.05, **SIZES)
    square = robust("square-linf", 0.05, queries=1200)
    spsa = robust("spsa-linf", 0.05, steps=15, directions=24)
    assert white <= square <= white + 0.04
    assert white <= spsa <= white + 0.04


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.4)])
def test_finite_differences_fitted_to_logits_agree_with_gradients_in_both_norms(norm, eps):
    """The last stage alone, which asks for no gradient at all."""
    net, images, labels = trained()
    queried = CheckedModel(net, 10)
    with under_attack(queried, images, labels, 0) as state:
        fit_and_attack(state, eps, norm, queries=1200, targets=9)
    left = float((net(state.best).argmax(1) == labels).double().mean())
    assert queried.backwards == 0
    white = robust(f"autoattack-{norm}", eps, **SIZES)
    assert abs(left - white) <= 0.04


def test_square_alone_is_weak_in_l2():
    """Of 100 images it leaves at most 15 more than AutoAttack, which never breaks fewer."""
    white, square = robust("autoattack-l2", 0.4, **SIZES), robust("square-l2", 0.4, queries=1200)
    assert white <= square <= white + 0.15


@BOTH
def test_autoattack_is_no_weaker_than_any_part(norm):
    eps = 0.05 if norm == "linf" else 0.4
    autoattack_stages = robust(f"autoattack-{norm}", eps, steps=15, targets=4, queries=200)
    for part in ("apgd-ce", "apgd-t", "fab-t"):
        sizes = {"steps": 15} if part == "apgd-ce" else {"steps": 15, "targets": 4}
        assert autoattack_stages <= robust(f"{part}-{norm}", eps, **sizes)
    assert autoattack_stages <= robust(f"pgd-{norm}", eps, steps=15)


def test_only_survivors_go_on_to_the_next_stage():
    """Forwards per sample: fewer for those that break early, all declared ones for those that never do."""
    net, images, labels = trained()
    right = net(images).argmax(1) == labels
    images, labels = images[right][:20], labels[right][:20]
    threat = THREATS.get("autoattack-linf").configure(steps=5, targets=2, queries=10)
    spent = []
    for i in range(20):
        queried = CheckedModel(net, 10)
        attacked = threat(queried, images[i : i + 1], labels[i : i + 1], 0.06, [i])
        spent.append((queried.forwards, queried.backwards, bool(net(attacked).argmax(1) != labels[i])))
    assert {s[2] for s in spent} == {True, False}
    full = threat.queries(threat.parameters)
    assert all(s[:2] == full for s in spent if not s[2])
    assert all(s[0] < full[0] for s in spent if s[2])
    queried = CheckedModel(net, 10)
    threat(queried, images, labels, 0.06, list(range(20)))
    assert (queried.forwards, queried.backwards) == (sum(s[0] for s in spent), sum(s[1] for s in spent))


@pytest.mark.parametrize("name", ["square-linf", "square-l2", "spsa-linf"])
def test_a_search_is_an_attack_and_not_noise(name):
    """Spent on what is right only, as the gradient attacks are, and with a norm in its record."""
    net, images, labels = trained()
    wrong = labels.clone()
    wrong[::3] = (wrong[::3] + 1) % 10
    sizes = {"queries": 10} if name.startswith("square") else {"steps": 2, "directions": 3}
    threat = THREATS.get(name).configure(**sizes)
    cell = stubs.cell_for(threat, 1e-6, 100)
    split = stubs.split_of(images, wrong)
    record = evaluate_cell(cell, net, split, threat, num_classes=10, device=stubs.CPU, environment={})
    right = int((net(images).argmax(1) == wrong).sum())
    forwards, _ = threat.queries(threat.parameters)
    assert record.accuracy == pytest.approx(right / 100)
    assert (record.forwards, record.backwards) == (100 + right * (forwards + 1), 0)
    assert cell.family == "search"
    assert cell.norm == threat.norm
    assert np.all(record.outcomes["norm"][0] <= 2e-6)
