"""`autoattack-*` against AutoAttack as its authors set it: the same robust accuracy, within one sample."""

from __future__ import annotations

import pytest
import torch
from robustode.attacks import THREATS
from torch import Tensor, nn
from torch.nn import functional as F

SAMPLES = 50
BUDGETS = {"linf": 0.06, "l2": 0.4}
"""About half of the samples are robust there."""
ORDER = {"linf": torch.inf, "l2": 2}


@pytest.fixture(scope="module")
def net(digits) -> nn.Module:
    """A small network that classifies over 90% of the digits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 10))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        F.cross_entropy(model(digits.train.images), digits.train.labels).backward()
        optimiser.step()
    return model.eval().requires_grad_(False)


def official(torchattacks, model: nn.Module, norm: str, eps: float) -> list:
    """The four attacks of AutoAttack's standard version, with its numbers of steps, targets and queries.

    torchattacks' own AutoAttack takes 10 steps instead of 100 and rescales the schedule of Square.
    """
    norm = {"linf": "Linf", "l2": "L2"}[norm]
    common = {"norm": norm, "eps": eps, "seed": 0, "verbose": False, "n_restarts": 1}
    return [
        torchattacks.APGD(model, steps=100, loss="ce", **common),
        torchattacks.APGDT(model, steps=100, n_classes=10, **common),
        torchattacks.FAB(model, steps=100, multi_targeted=True, n_classes=10, **common),
        torchattacks.Square(model, n_queries=5000, resc_schedule=False, **common),
    ]


def robust(model: nn.Module, images: Tensor, clean: Tensor, labels: Tensor, norm: str, eps: float) -> Tensor:
    """Which samples (N,) stand: images beyond the budget or the box break nothing."""
    apart = torch.linalg.vector_norm((images - clean).double().flatten(1), ORDER[norm], dim=1)
    allowed = (apart <= eps + 1e-6) & (images >= 0).flatten(1).all(1) & (images <= 1).flatten(1).all(1)
    with torch.no_grad():
        return ~allowed | (model(images).argmax(1) == labels)


@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.slow)])
def test_the_official_composition_leaves_the_same_accuracy(net, digits, norm, torchattacks):
    test, eps = digits.test.first(SAMPLES), BUDGETS[norm]
    threat = THREATS.get(f"autoattack-{norm}")
    assert dict(threat.parameters) == {"steps": 100, "targets": 9, "queries": 5000}
    ours = threat(net, test.images.clone(), test.labels, eps, list(range(SAMPLES)))
    stands = robust(net, test.images, test.images, test.labels, norm, 0.0)
    by_us = stands & robust(net, ours, test.images, test.labels, norm, eps)
    by_them = stands.clone()
    with torch.random.fork_rng():
        for attack in official(torchattacks, net, norm, eps):
            rows = by_them.nonzero().flatten()
            images, labels = test.images[rows], test.labels[rows]
            by_them[rows] = robust(net, attack(images.clone(), labels), images, labels, norm, eps)
    us, them = int(by_us.sum()), int(by_them.sum())
    assert abs(us - them) <= 1, f"of {SAMPLES} ours leaves {us}, theirs {them}"
    assert SAMPLES // 5 <= us <= SAMPLES * 4 // 5, "the budget is too small or too large to tell them apart"
