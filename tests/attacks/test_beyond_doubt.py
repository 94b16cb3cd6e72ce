"""An attack stops at a break that the harness confirms: stored, alone, by more than rounding; not before."""

from __future__ import annotations

import pytest
import stubs
import torch
from robustode.attacks import THREATS
from robustode.attacks.algorithms import repeated_runs
from robustode.attacks.core.batch_state import BatchState
from robustode.attacks.core.best_images import BestImages
from robustode.attacks.core.beyond_doubt import STEPS, as_stored, broken_beyond_doubt
from robustode.attacks.core.curve_search import CurveSearch
from robustode.attacks.core.losses import margin
from robustode.attacks.core.queried_model import QueriedModel
from robustode.bench.evaluation.accuracy import evaluate_cell
from robustode.bench.evaluation.curve import evaluate_curve
from robustode.bench.records import adversarial_examples
from torch import nn

EPS = 0.1
LEFT, RIGHT = 0.4, 0.6


class Trap(nn.Module):
    """One pixel u, unperturbed 0.5: both ends of the ball look broken, and only the right one is.

    On the way to either the other logit rises. At the left end it leads by `lead`, on logits of the size
    `offset`, and in the way of `kind` this is undone; at the right end it leads by 0.02.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.asked = kind, []
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64 if kind == "double" else torch.float32))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        u = images.flatten(1)[:, :1]
        self.asked.append(u.detach().flatten())
        right, zero = u - 0.58, torch.zeros_like(u)
        if self.kind in ("stored", "double"):  # storing the end of the ball moves it inside by 7.6e-6
            left, offset = 1e3 * (0.400005 - u), zero
        elif self.kind == "rounding":  # a lead of one last digit
            offset = torch.where(u < 0.5, torch.full_like(u, 1e4), zero)
            left = (
                torch.where(u < 0.41, torch.full_like(u, 1e-3), -0.1 + zero) + (0.5 - u) - (0.5 - u).detach()
            )
        elif self.kind == "tie":
            left, offset = (0.41 - u).clamp_max(0.0), zero
        else:  # alone it is none
            left, offset = (0.45 - u) - (0.2 if len(u) == 1 else 0.0), zero
        lead = torch.where(u < 0.5, left, right)
        return (
            torch.cat([offset + lead, offset], 1)
            if self.kind == "tie"
            else torch.cat([offset, offset + lead], 1)
        )


def problem(kind: str, count: int = 12):
    images = torch.full((count, 1, 1, 1), 0.5)
    return Trap(kind), images, torch.full((count,), int(kind == "tie"))


KINDS = ("stored", "double", "rounding", "tie", "batch")
SIZES = {"restarts": 12, "steps": 5, "queries": 60, "targets": 3, "directions": 2}
ATTACKS = ("pgd-linf", "pgd-l2", "apgd-ce-linf", "apgd-ce-l2", "square-linf", "autoattack-linf", "curve-linf")


def configured(name: str):
    threat = THREATS.get(name)
    sizes = {k: v for k, v in SIZES.items() if k in threat.parameters}
    return threat.configure(**sizes)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_break_in_doubt_does_not_end_the_attack(kind, name):
    model, images, labels = problem(kind)
    threat, split = configured(name), stubs.split_of(images, labels)
    options = {"num_classes": 2, "device": stubs.CPU, "environment": {}}
    if threat.grid_matters:
        grid = {"strengths": [EPS], "reported": [EPS]}
        cell = stubs.cell_for(threat, EPS, 12, parameters={**threat.parameters, **grid})
        (record,) = evaluate_curve([cell], model, split, threat, keep=lambda c, b: None, **options)
    else:
        cell = stubs.cell_for(threat, EPS, 12)
        record = evaluate_cell(cell, model, split, threat, keep=lambda breaks: None, **options)
    u = torch.cat(model.asked)
    assert name.startswith("curve") or bool((u < LEFT + 1e-4).any()), "no sample ran into the trap"
    assert not record.outcomes["correct"].any(), "and all can be broken"


@pytest.mark.parametrize("stop", [True, False], ids=["stopping", "to the end"])
@pytest.mark.parametrize("on_gpu", [True, False], ids=["as on a GPU", "on a CPU"])
@pytest.mark.parametrize("kind", ["stored", "rounding", "batch"])
def test_restarts_go_on_after_a_break_in_doubt_wherever_it_is_looked_for(kind, on_gpu, stop, monkeypatch):
    monkeypatch.setattr(repeated_runs, "can_stop_early", lambda images: not on_gpu)
    model, images, labels = problem(kind)
    seen = []
    for restarts in (1, 12):
        model.asked.clear()
        threat = THREATS.get("pgd-linf").configure(steps=5, restarts=restarts)
        seen.append(threat(model, images, labels, EPS, 0, early_stopping=stop).flatten() > 0.58)
    assert not bool(seen[0].all())
    if stop or kind != "batch":  # else the largest margin is wanted, whoever confirms it
        assert bool(seen[1].all())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_sure_comes_before_what_is_not_whatever_the_margins(kind):
    """The right end leads by 0.02; at the left one the margin is 5, or on logits of 10,000, or alone none."""
    model, images, labels = problem(kind, 2)
    state = BatchState(model, images, labels, 0)
    state.query_margins(state.rows, torch.full_like(images, LEFT))
    assert bool(state.active.all())
    assert bool((state.margin > 0).all())
    state.query_margins(state.rows, torch.full_like(images, RIGHT - 0.001))
    assert not bool(state.active.any())
    assert bool((state.best > 0.59).all())
    curve = CurveSearch(model, images, labels, 0, [EPS], "linf")
    observe = curve.observer(curve.all_samples)
    for value, sure in ((LEFT + 1e-7, False), (RIGHT - 0.001, True), (LEFT + 1e-7, True)):
        x = torch.full_like(images, value)
        observe(x, model(x).detach(), None)
        assert bool(curve.broken.all()) == sure
        assert bool((curve.best > 0.59).all()) == sure


def test_without_early_stopping_the_largest_margin_counts():
    best = BestImages(torch.zeros(1, 1, 1, 1), early_stopping=False)
    rows, sure = torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.bool)
    best.offer(rows, torch.full((1, 1, 1, 1), 0.1), torch.ones(1), sure=sure)
    best.offer(rows, torch.full((1, 1, 1, 1), 0.2), 2 * torch.ones(1))
    assert best.images.item() == pytest.approx(0.2)
    assert best.active.tolist() == best.broken.tolist() == [True]


def test_an_image_outside_the_budget_is_never_beyond_doubt():
    model, images, labels = problem("stored", 2)
    x = torch.full_like(images, 0.9)
    inside = torch.tensor([True, False])
    assert broken_beyond_doubt(QueriedModel(model), x, model(x), images, labels, inside).tolist() == [
        True,
        False,
    ]


def test_large_logits_are_doubted_by_their_size_and_small_ones_are_not():
    def model(x):
        z = torch.zeros(len(x), 2, dtype=x.dtype)
        return z + torch.stack([scale * torch.ones_like(x.flatten()), scale + lead * x.flatten()], 1)

    images, x = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    label = torch.zeros(1, dtype=torch.long)
    for scale, lead, dtype, sure in (
        (1e6, 1.0, torch.float32, False),
        (1e6, 1.0, torch.float64, True),
        (1e-3, 1e-6, torch.float32, True),
        (1e9, 1e-3, torch.float64, True),
        (1e12, 1e-3, torch.float64, False),
    ):
        one, other = images.to(dtype), x.to(dtype)
        found = broken_beyond_doubt(QueriedModel(model), other, model(other), one, label)
        assert found.tolist() == [sure], (scale, lead, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_an_attack_calls_stored_is_what_the_records_store(dtype):
    assert STEPS == adversarial_examples.STEPS
    generator = torch.Generator().manual_seed(0)
    clean = (torch.randint(0, 256, (50, 1, 5, 5), generator=generator) / 255).to(dtype)
    images = (clean + 0.3 * torch.randn(clean.shape, generator=generator).to(dtype)).clamp(0, 1)
    steps = adversarial_examples.perturbation_steps(images.numpy(), clean.numpy())
    stored = torch.from_numpy(adversarial_examples.add_steps(clean.numpy(), steps))
    assert torch.equal(as_stored(images, clean), stored.to(dtype))
    assert not torch.equal(stored.to(dtype), images)


def test_a_sample_whose_break_is_sure_costs_one_query_more_and_no_other_does():
    for weight, extra in ((1.0, 1), (-1.0, 0)):
        model = stubs.two_class(torch.tensor([[[weight]]]), -0.5 * weight - 0.05)
        images, labels = torch.full((3, 1, 1, 1), 0.5), torch.zeros(3, dtype=torch.long)
        queried = QueriedModel(model)
        state = BatchState(queried, images, labels, 0)
        found = state.query_margins(state.rows, torch.full_like(images, 0.6))
        assert queried.forwards == 3 * (2 + extra)
        assert bool((found > 0).all()) == bool(extra)
        assert margin(model(state.best), labels).gt(0).all() == bool(extra)
