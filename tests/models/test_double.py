"""Gradients in double precision where single precision has none: the swap, who is refined, what it finds."""

from __future__ import annotations

import contextlib
import itertools
import re
from pathlib import Path

import pytest
import robustode
import torch
from robustode._errors import DataUnavailable
from robustode.attacks import THREATS
from robustode.attacks.autoattack import _apgd_t
from robustode.attacks.core.batch_state import BatchState, under_attack
from robustode.attacks.core.double_precision import in_double
from robustode.attacks.core.losses import margin
from robustode.bench.data import load_data
from robustode.bench.runtime.checked_model import CheckedModel
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
    """It, and images of which one logit, their class's, is exactly 1 in single precision, not in double."""
    model = Saturated(scale)
    images = torch.rand(4000, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    logits = model(images)
    with in_double(model):
        finer = model(images.double())
    rows = ((logits == 1).sum(1) == 1) & (finer.amax(1) < 1)
    rows = rows.nonzero().flatten()[:count]
    assert len(rows) == count
    return model, images[rows], logits[rows].argmax(1)


@pytest.mark.parametrize("spec", list(MODELS), ids=lambda spec: spec.name)
def test_every_model_answers_in_double_precision_and_is_put_back(spec):
    shape, classes = (1, 8, 8), 10
    model = spec.build(shape, classes, **spec.hyperparameters).eval().requires_grad_(False)
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
def test_finite_differences_in_double_precision_break_what_single_precision_cannot(network, monkeypatch):
    """A ball so large that a label's logit has to come back from exactly 1, while others rise to it."""
    net, images, labels = trained(network)
    threat = THREATS.get("autoattack-l2").configure(steps=20, targets=3, queries=1)

    def left(mask: str) -> float:
        model = Masked(net, mask)
        return 100 * float((model(threat(model, images, labels, 0.6, 0)).argmax(1) == labels).double().mean())

    unmasked, refined = left("none"), left("saturated")
    monkeypatch.setattr(BatchState, "switch_to_float64", lambda self: None)
    assert refined <= unmasked + 1
    assert left("saturated") >= unmasked + 4


def test_who_is_refined():
    """Samples the logit of whose class never moved, in answers to other images of theirs."""
    model, images, labels = saturated(6)
    near, far = images + 1e-3, 0.5 + 0.1 * (images - 0.5)
    assert model(near).amax(1).tolist() == [1] * 6
    assert bool((model(far).amax(1) < 1).all())
    with under_attack(model, images, labels, 0) as state:
        state.query_margins(state.rows, torch.cat([near[:3], far[3:]]))
        state.switch_to_float64()
        assert state.use_float64.tolist() == [True] * 3 + [False] * 3


@pytest.mark.parametrize("kind", ["constant", "rounded", "double"])
def test_who_is_not_refined_though_it_stands_still(kind):
    """Double precision shows no more of a logit that is constant by design or rounded, nor of itself."""
    _, images, _ = saturated(6)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 1, bias=False))

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x):
            score = self.net(x) / 10
            if kind == "rounded":
                return torch.cat([(0 * score + 5).round(), score.round()], 1)
            if kind == "double":
                return torch.cat([(30 + score).tanh(), score], 1).double()
            return torch.cat([torch.ones_like(score), score], 1)

    model = Two().double() if kind == "double" else Two()
    with under_attack(CheckedModel(model, 2), images, torch.zeros(6, dtype=torch.long), 0) as state:
        assert state.active.tolist() == [True] * 6
        state.switch_to_float64()
        assert state.saturated.tolist() == [True] * 6
        assert not bool(state.use_float64.any())


class Single(torch.autograd.Function):
    """The identity, whose gradient is formed in single precision alone, or for few samples alone."""

    @staticmethod
    def forward(ctx, x, room):
        ctx.room = room
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if gradient.dtype == torch.float64 and len(gradient) > ctx.room:
            raise RuntimeError("not in double precision")
        return gradient, None


@BOTH
@pytest.mark.parametrize("room", [0, 7])
def test_a_model_that_fails_in_double_precision_is_attacked_in_single(norm, room):
    """At once, and after some queries that it did answer: the very images of an attack that never tried."""
    model, images, labels = saturated(12)
    threat = THREATS.get(f"autoattack-{norm}").configure(steps=6, targets=3, queries=8)

    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(Single.apply(x, room))

    found = threat(CheckedModel(Fails(), 4), images, labels, 1e-3, 0)
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(BatchState, "switch_to_float64", lambda self: None)
        assert torch.equal(found, threat(CheckedModel(model, 4), images, labels, 1e-3, 0))


@BOTH
def test_a_refined_sample_does_not_depend_on_the_samples_beside_it(norm):
    model, images, labels = saturated(6)
    others = 0.5 + 0.2 * (images - 0.5)
    mixed = torch.cat([images[:3], others, images[3:]])
    own = torch.cat([labels[:3], model(others).argmax(1), labels[3:]])
    threat = THREATS.get(f"autoattack-{norm}").configure(steps=8, targets=3, queries=1)
    with under_attack(model, mixed, own, 0) as state:
        state.switch_to_float64()
        assert 0 < int(state.use_float64.sum()) < len(mixed), "some of both sorts"
    radius = {"linf": 0.05, "l2": 0.3}[norm]
    together = threat(model, mixed, own, radius, list(range(12)))
    for i in range(12):
        alone = threat(model, mixed[i : i + 1], own[i : i + 1], radius, [i])
        assert torch.allclose(alone, together[i : i + 1], atol=1e-6)


def test_a_refined_sample_is_let_go_once_it_is_broken_and_its_best_image_kept():
    net, images, labels = trained(0)
    queried = CheckedModel(Masked(net, "saturated"), 10)
    with under_attack(queried, images, labels, 0) as state:
        state.switch_to_float64()
        rows = state.use_float64.nonzero().flatten()
        assert len(rows) > 20
        _apgd_t(state, 3.0, "l2", 10, 9)
        margins = margin(queried(state.best), labels)
        assert torch.allclose(state.margin, margins, atol=1e-5)
        assert not bool(state.active[rows].any())
    assert queried.backwards < 450 * 2 + 450 * 10, "the first of nine targets does, for nearly all"


@BOTH
def test_refined_samples_cost_what_is_declared_at_most(norm):
    model, images, labels = saturated(10)
    queried = CheckedModel(model.eval(), 4)
    threat = THREATS.get(f"autoattack-{norm}").configure(steps=15, targets=9, queries=40)
    threat(queried, images, labels, 1e-6, 0)
    forwards, backwards = threat.queries(threat.parameters)
    assert queried.forwards == 10 * (1 + 16 + 2 + 9 * 31 + 40), "two probes, two forwards a step, no FAB"
    assert queried.backwards == 10 * (15 + 2 + 9 * 15)
    assert queried.forwards <= 10 * forwards
    assert queried.backwards <= 10 * backwards


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("paper", "certified", "standard")]


@pytest.mark.parametrize("name", ["digits", "sweep", *SLOW])
def test_no_sample_of_a_published_model_is_refined(name):
    """So their records are those of AutoAttack before it could refine, and keep its version."""
    folder = Path(__file__).parents[2] / "results" / name
    trained = sorted((folder / "checkpoints").glob("*/*.safetensors.xz"))
    assert trained
    for path in trained:
        dataset, seed = re.fullmatch(r"(\w+)-seed(\d+)-\w+\.safetensors\.xz", path.name).groups()
        model = robustode.load_model(folder, path.parent.name, seed=int(seed))
        test = stored(dataset).test.first(500)
        with under_attack(model, test.images, test.labels, 0) as state:
            state.switch_to_float64()
            assert bool(state.saturated.all()), "after one query all of them might be"
            assert not bool(state.use_float64.any())


def stored(dataset: str):
    try:
        return load_data(dataset)
    except DataUnavailable as missing:
        pytest.skip(str(missing))
