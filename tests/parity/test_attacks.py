"""Our attacks against torchattacks and adv-lib: same model, images and budget.

Theirs may break at most one sample in fifty more than ours.
"""

from __future__ import annotations

import math

import pytest
import torch
from robustode.attacks import THREATS, closest, distance
from robustode.attacks.algorithms.repeated_runs import run_repeatedly
from robustode.bench.runtime.checked_model import CheckedModel
from torch import Tensor

SHARE = 1 / 50
"""By how much the robust accuracy under their attack may be lower."""
BUDGETS = {"linf": (0.05, 0.1, 0.15), "l2": (0.3, 0.6, 1.0)}
STEPS = 40


def robust_accuracy(model, images: Tensor, labels: Tensor, clean: Tensor, norm: str, eps: float) -> float:
    """Share of samples still classified correctly; images outside the box or the budget are refused."""
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    assert float(distance(images, clean, norm).max()) <= eps * (1 + 1e-5)
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).double().mean())


def their_gradient_attack(torchattacks, kind: str, norm: str, model, eps: float, steps: int = STEPS):
    if kind == "fgsm" and norm == "linf":
        return torchattacks.FGSM(model, eps=eps)
    if kind == "fgsm":
        return torchattacks.PGDL2(model, eps=eps, alpha=eps, steps=1, random_start=False)
    attack = torchattacks.PGD if norm == "linf" else torchattacks.PGDL2
    return attack(model, eps=eps, alpha=2.5 * eps / steps, steps=steps)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
def test_torchattacks_breaks_no_more(trained, attacked, torchattacks, kind, norm):
    threat, accuracies = THREATS.get(f"{kind}-{norm}"), []
    if kind == "pgd":
        threat = threat.configure(steps=STEPS, restarts=1)
    images, labels = attacked.images, attacked.labels
    for eps in BUDGETS[norm]:
        ours = threat(trained, images.clone(), labels, eps, 0)
        theirs = their_gradient_attack(torchattacks, kind, norm, trained, eps)(images.clone(), labels)
        a, b = (robust_accuracy(trained, x, labels, images, norm, eps) for x in (ours, theirs))
        assert b >= a - SHARE, f"eps {eps}: ours leaves {a:.1%}, torchattacks {b:.1%}"
        accuracies += [a, b]
    assert min(accuracies) < 0.8, "the budgets are too small to tell the attacks apart"
    assert max(accuracies) > 0.2, "the budgets are too large to tell the attacks apart"


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
def test_fgsm_and_pgd_give_the_images_of_torchattacks(trained, attacked, torchattacks, kind, norm, stop):
    """Bit by bit, with as many queries: what was stored when they went through torchattacks is valid."""
    threat, restarts = THREATS.get(f"{kind}-{norm}"), 1
    if kind == "pgd":
        threat, restarts = threat.configure(steps=6, restarts=2), 2
    images, labels, seeds = attacked.images, attacked.labels, list(range(len(attacked)))
    for eps in BUDGETS[norm]:

        def theirs(model, images, labels, eps=eps):
            return their_gradient_attack(torchattacks, kind, norm, model, eps, 6)(images, labels)

        one, other = CheckedModel(trained, 10), CheckedModel(trained, 10)
        ours = threat(one, images, labels, eps, seeds, early_stopping=stop)
        wanted = run_repeatedly(theirs, other, images, labels, seeds, early_stopping=stop, restarts=restarts)
        assert torch.equal(ours, wanted)
        assert one.meter() == other.meter()
        assert not torch.equal(ours, images)


@pytest.mark.parametrize("name", ["fmn-linf", "fmn-l2", "ddn-l2"])
def test_adv_lib_finds_no_closer_images(trained, attacked, adv_lib, name):
    kind, norm = name.split("-")
    images, labels = attacked.images, attacked.labels
    threat = THREATS.get(name).configure(steps=STEPS, restarts=1)
    _, ours = closest(threat, trained, images.clone(), labels, 0)
    if kind == "fmn":
        # From images of another class: on a smooth model its l2 radius else converges to the boundary from
        # inside, and no adversarial image is ever found.
        start = torch.stack([images[labels != label][0] for label in labels])
        order = math.inf if norm == "linf" else 2
        found = adv_lib.fmn(trained, images.clone(), labels, norm=order, steps=STEPS, starting_points=start)
    else:
        found = adv_lib.ddn(trained, images.clone(), labels, steps=STEPS, levels=None)
    with torch.no_grad():
        broken = trained(found).argmax(1) != labels
    assert float(broken.double().mean()) > 0.9
    theirs = torch.where(broken, distance(found, images, norm), torch.inf)
    for eps in BUDGETS[norm]:
        a, b = (float((distances > eps).double().mean()) for distances in (ours, theirs))
        assert b >= a - SHARE, f"eps {eps}: ours leaves {a:.1%}, adv-lib {b:.1%}"
    assert 0.1 < float((ours > BUDGETS[norm][1]).double().mean()) < 0.9
