"""Gradients in double precision where single precision has none: the swap, who is refined, what it finds."""

from __future__ import annotations

import contextlib
import itertools

import pytest
import torch
from robustode.attacks import THREATS
from robustode.attacks._double import in_double
from robustode.attacks._survivors import Survivors, under_attack
from robustode.bench.queries import QueriedModel
from robustode.models import MODELS
from test_masks import Masked, trained
from torch import nn

BOTH = pytest.mark.parametrize("norm", ["linf", "l2"])


class Saturated(nn.Module):
    """tanh of the logits w_k (x - 1/2) of a linear model: its decisions, until a logit rounds to 1."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(4, 36, generator=generator), requires_grad=False)
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (self.scale * ((images - 0.5).flatten(1) @ self.weight.T)).tanh()


def saturated(count: int, scale: float = 5.0):
    """It, and images of which one logit, that of their class, is exactly 1 in single precision."""
    model = Saturated(scale)
    images = torch.rand(2000, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    logits = model(images)
    rows = ((logits == 1).sum(1) == 1).nonzero().flatten()[:count]
    assert len(rows) == count
    return model, images[rows], logits[rows].argmax(1)


@pytest.mark.parametrize("spec", list(MODELS), ids=lambda spec: spec.name)
def test_every_model_answers_in_double_precision_and_is_put_back(spec):
    shape, classes = (1, 8, 8), 10
    model = spec.build(shape, classes, **spec.hyperparameters).eval()
    images = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    tensors = list(itertools.chain(model.parameters(), model.buffers()))
    before = [(tensor.data_ptr(), tensor.dtype, tensor.clone()) for tensor in tensors]
    single = model(images)
    with in_double(model):
        x = images.double().requires_grad_(True)
        double = model(x)
        (gradient,) = torch.autograd.grad(double.sum(), x)
    assert double.dtype == gradient.dtype == torch.float64
    assert torch.allclose(double.float(), single, rtol=1e-4, atol=1e-4)
    assert torch.equal(model(images), single)
    for tensor, (place, dtype, values) in zip(
        itertools.chain(model.parameters(), model.buffers()), before, strict=True
    ):
        assert (tensor.data_ptr(), tensor.dtype) == (place, dtype)
        assert torch.equal(tensor, values)


def test_it_is_put_back_after_an_error_and_shared_tensors_stay_shared():
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, layer, nn.BatchNorm1d(3))
    running, counted = model[2].running_mean, model[2].num_batches_tracked
    with contextlib.suppress(ZeroDivisionError), in_double(model):
        assert {p.dtype for p in model.parameters()} == {torch.float64}
        assert model[2].running_mean.dtype == torch.float64
        assert model[2].num_batches_tracked is counted, "whole numbers stay"
        raise ZeroDivisionError
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model[2].running_mean is running


@pytest.mark.parametrize("network", [0, 1])
def test_slopes_in_double_precision_break_what_single_precision_cannot(network, monkeypatch):
    """A ball so large that a label's logit has to come back from exactly 1, while others rise to it."""
    net, images, labels = trained(network)
    threat = THREATS.get("autoattack-l2").configure(steps=20, targets=3, queries=1)

    def left(mask: str) -> float:
        model = Masked(net, mask)
        return 100 * float((model(threat(model, images, labels, 0.6, 0)).argmax(1) == labels).double().mean())

    twin, refined = left("none"), left("saturated")
    monkeypatch.setattr(Survivors, "refine", lambda self: None)
    assert refined <= twin + 1
    assert left("saturated") >= twin + 4


def test_who_is_refined():
    """Samples the logit of whose class never moved, in answers to other images of theirs."""
    model, images, labels = saturated(6)
    near, far = images + 1e-3, 0.5 + 0.1 * (images - 0.5)
    assert model(near).amax(1).tolist() == [1] * 6
    assert bool((model(far).amax(1) < 1).all())
    with under_attack(model, images, labels, 0) as survivors:
        survivors.ask(survivors.rows, torch.cat([near[:3], far[3:]]))
        survivors.refine()
        assert survivors.fine.tolist() == [True] * 3 + [False] * 3
    with under_attack(model.double(), images.double(), labels, 0) as survivors:
        survivors.refine()
        assert not bool(survivors.fine.any()), "there is nothing finer"


@pytest.mark.parametrize("kind", ["function", "hidden tensor"])
def test_a_model_that_cannot_be_asked_in_double_precision_is_attacked_as_before(kind):
    model, images, labels = saturated(4)

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = [model.weight.detach()]

        def forward(self, x):
            return (5 * ((x - 0.5).flatten(1) @ self.weights[0].T)).tanh()

    other = Hidden() if kind == "hidden tensor" else lambda x: model(x)
    for asked in (other, QueriedModel(other, 4)) if isinstance(other, nn.Module) else (other,):
        with under_attack(asked, images, labels, 0) as survivors:
            survivors.refine()
            assert bool(survivors.still.all())
            assert not bool(survivors.fine.any())


@BOTH
def test_refined_samples_cost_what_is_declared_at_most(norm):
    model, images, labels = saturated(10)
    queried = QueriedModel(model.eval(), 4)
    threat = THREATS.get(f"autoattack-{norm}").configure(steps=15, targets=9, queries=40)
    threat(queried, images, labels, 1e-6, 0)
    forwards, backwards = threat.queries(threat.parameters)
    assert queried.forwards == 10 * (1 + 16 + 9 * 31 + 40) + 1, "a probe, two forwards a step, no FAB"
    assert queried.backwards == 10 * 15 * (1 + 9)
    assert queried.forwards <= 10 * forwards
    assert queried.backwards <= 10 * backwards
