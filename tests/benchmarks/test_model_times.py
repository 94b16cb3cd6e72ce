"""Whole models on a batch of MNIST size: passes, one step of an attack, and the size of the batch."""

from __future__ import annotations

import pytest
import torch
from robustode.attacks import THREATS
from robustode.bench.evaluation.accuracy import frozen
from robustode.bench.runtime.checked_model import CheckedModel
from robustode.bench.throughput.measure import inference
from timed import CLASSES, EAGER, EVERY, build, eager, images
from torch.nn import functional as F

architecture = pytest.mark.parametrize("name", EVERY)
STEP = THREATS.get("pgd-linf").configure(steps=1, restarts=1)
PRESET_BATCH = 100
"""What every preset evaluates and attacks with."""


@pytest.mark.benchmark(group="model forward")
@architecture
def test_forward(against, device, scale, name):
    pixels, _ = images(scale.batch, device)
    model = build(name, device)
    with frozen(model):
        run = inference(model, pixels, CLASSES)
        against(run, eager(run), what=name, name=EAGER, batch=scale.batch)


@pytest.mark.benchmark(group="model forward and backward")
@architecture
def test_forward_and_backward(against, device, scale, name):
    pixels, labels = images(scale.batch, device)
    model = build(name, device)

    def gradients() -> None:
        torch.autograd.grad(F.cross_entropy(model(pixels), labels), list(model.parameters()))

    against(gradients, eager(gradients), what=name, name=EAGER, batch=scale.batch)


@pytest.mark.benchmark(group="one PGD step")
@architecture
def test_pgd_step(against, device, scale, name):
    model = build(name, device)
    with frozen(model):
        attack, queried = pgd_step(model, scale.batch, device)
        before = queried.forwards
        attack()
        assert queried.forwards == before + 2 * scale.batch
        against(attack, eager(attack), what=name, name=EAGER, batch=scale.batch)


@pytest.mark.benchmark(group="batch size: inference, per sample")
@pytest.mark.parametrize("batch", [25, 50, 200, 400])
def test_inference_of_a_batch(against, device, tried, batch):
    usual, batch = (2, 4) if tried else (PRESET_BATCH, batch)
    model = build("ch-node", device)
    with frozen(model):
        runs = [inference(model, images(n, device)[0], CLASSES) for n in (batch, usual)]
        name = f"batch of {usual}"
        against(*runs, what="ch-node", name=name, batch=batch, per_sample=batch / usual)


@pytest.mark.benchmark(group="batch size: one PGD step, per sample")
@pytest.mark.parametrize("batch", [25, 50, 200, 400])
def test_pgd_step_on_a_batch(against, device, tried, batch):
    usual, batch = (2, 4) if tried else (PRESET_BATCH, batch)
    model = build("ch-node", device)
    with frozen(model):
        attacks = [pgd_step(model, n, device)[0] for n in (batch, usual)]
        name = f"batch of {usual}"
        against(*attacks, what="ch-node", name=name, batch=batch, per_sample=batch / usual)


def pgd_step(model: torch.nn.Module, batch: int, device: torch.device):
    pixels, labels = images(batch, device)
    queried = CheckedModel(model, CLASSES)
    return (lambda: STEP(queried, pixels, labels, 0.1, 0, early_stopping=False)), queried
