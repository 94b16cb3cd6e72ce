"""Certificates: exact where the truth is known, below every attack everywhere, absent where unproven."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import stubs
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from robustode._errors import ModelFailure
from robustode.attacks import THREATS
from robustode.bench.data import Data, Split
from robustode.bench.evaluation.accuracy import evaluate_cell
from robustode.bench.proofs.lipschitz import certify_cell, l2_radius
from robustode.bench.records.record import Cell, Record
from robustode.models import MODELS, LipschitzParts
from robustode.models.ode.lipschitz import convolution_bound
from torch import nn

CERTIFIED = sorted(
    spec.name
    for spec in MODELS
    if "fixed_step" in spec.claims and hasattr(spec.build((1, 8, 8), 10), "lipschitz_parts")
)
CELL = Cell(kind="certificate", dataset="few", index_sha256="0", model="m", model_version="1", batch_size=7)


class Linear(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.head = nn.Linear(64, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.flatten(1))

    def lipschitz_parts(self) -> LipschitzParts:
        return LipschitzParts(body={}, head=self.head.weight.detach().double())


def certify(model: nn.Module, split: Split, classes: int) -> Record:
    cell = dataclasses.replace(CELL, samples=len(split))
    return certify_cell(cell, model, split, num_classes=classes, device=stubs.CPU, environment={})


def build(name: str, seed: int = 0, **overrides) -> nn.Module:
    spec = MODELS.get(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return spec.build((1, 8, 8), 10, **spec.resolve(overrides)).eval()


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_the_certificate_of_a_linear_model_is_its_margin_distance(few: Data, classes):
    torch.manual_seed(0)
    model, split = Linear(classes), few.test
    labels = model(split.images).argmax(1)
    labels[0] = (labels[0] + 1) % classes
    split = dataclasses.replace(split, labels=labels)
    radius = certify(model, split, classes).outcomes["radius"]
    weight, bias = (t.detach().double().numpy() for t in (model.head.weight, model.head.bias))
    for x, y, got in zip(split.images.flatten(1).double().numpy(), labels.tolist(), radius, strict=True):
        z = weight @ x + bias
        exact = min((z[y] - z[j]) / np.linalg.norm(weight[y] - weight[j]) for j in range(classes) if j != y)
        assert got == pytest.approx(max(exact, 0), abs=1e-6)
        assert got <= max(exact, 0)
    assert radius[0] == 0


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 4), st.integers(3, 9), st.sampled_from([1, 3, 5])
)
def test_no_zero_padded_convolution_exceeds_its_bound(seed, inputs, outputs, size, kernel):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, kernel, kernel, dtype=torch.float64, generator=generator)
    basis = torch.eye(inputs * size * size, dtype=torch.float64).view(-1, inputs, size, size)
    matrix = nn.functional.conv2d(basis, weight, padding=kernel // 2).flatten(1)
    exact = float(torch.linalg.matrix_norm(matrix, ord=2))
    bound = convolution_bound(weight, size, size)
    assert exact <= bound * (1 + 1e-9)
    if kernel == 1:
        assert exact == pytest.approx(bound)


@pytest.mark.parametrize("name", CERTIFIED)
def test_no_body_stretches_more_than_it_states(name):
    model = build(name).double()
    bound = math.prod(model.lipschitz_parts().body.values())
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(64, 1, 8, 8, dtype=torch.float64, generator=generator)
    features = []
    model.head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    for scale in (1e-4, 0.3):
        step = scale * torch.randn(x.shape, dtype=torch.float64, generator=generator)
        with torch.no_grad():
            model(x)
            model(x + step)
        far, near = features.pop(), features.pop()
        ratio = (far - near).norm(dim=1) / step.flatten(1).norm(dim=1)
        assert 0 < float(ratio.max()) <= bound


@pytest.mark.parametrize("name", CERTIFIED)
@pytest.mark.parametrize("threat", ["fgsm-l2", "pgd-l2", "fgsm-linf", "pgd-linf", "uniform"])
def test_what_is_certified_is_never_broken(name, threat, few: Data):
    model = build(name)
    with torch.no_grad():
        split = dataclasses.replace(few.test, labels=model(few.test.images).argmax(1))
    radius = certify(model, split, 10).outcomes["radius"]
    assert float(radius.min()) > 0
    attack = THREATS.get(threat)
    scale = 1.0 if attack.norm == "l2" else 8.0
    for eps in (float(np.median(radius)) / scale, float(radius.max()) / scale):
        cell = dataclasses.replace(
            CELL,
            kind="accuracy",
            threat=threat,
            norm=attack.norm,
            strength=eps,
            samples=len(split),
            batch_size=len(split),
        )
        record = evaluate_cell(cell, model, split, attack, num_classes=10, device=stubs.CPU, environment={})
        assert record.outcomes["correct"].all(axis=0)[radius > eps * scale].all()


def test_a_misclassified_sample_has_radius_zero():
    parts = LipschitzParts(body={"all": 2.0}, head=torch.eye(3).double())
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 1.0, 0.0]]).double()
    radius = l2_radius(logits, torch.tensor([0, 0]), parts)
    assert radius.tolist() == pytest.approx([2 / (2 * math.sqrt(2)), 0.0])


def test_two_classes_with_one_weight_are_told_apart_by_the_bias_alone():
    parts = LipschitzParts(body={}, head=torch.ones(2, 3).double())
    radius = l2_radius(torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double(), torch.tensor([0, 0]), parts)
    assert radius.tolist() == [math.inf, 0.0]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: build("node-dopri5"), "adaptive solver's error"),
        (lambda: build("h-node", method="rk4"), "step of rk4"),
        (lambda: build("h-node", width=12), "more than 10 channels"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "states no Lipschitz bounds"),
    ],
)
def test_without_a_bound_there_is_a_reason_and_no_radius(model, reason, few: Data):
    record = certify(model(), few.test, 10)
    assert record.status == "ok"
    assert reason in record.card["no_certificate"]
    assert dict(record.outcomes) == {}


def test_a_bound_that_is_no_number_is_a_failure(few: Data):
    class UnderstatedBound(Linear):
        def lipschitz_parts(self) -> LipschitzParts:
            return LipschitzParts(body={"stem": math.nan}, head=self.head.weight.detach().double())

    with pytest.raises(ModelFailure, match="no finite numbers"):
        certify(UnderstatedBound(10), few.test, 10)


def test_a_certificate_leaves_the_model_as_it_was(few: Data):
    model = build("ch-node").train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    certify(model, few.test, 10)
    assert model.training
    assert {t.dtype for t in model.parameters()} == {torch.float32}
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
