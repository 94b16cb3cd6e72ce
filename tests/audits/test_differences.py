"""Audits that differentiate ask off kinks, and a model that has no float64 is told so."""

from __future__ import annotations

import dataclasses

import pytest
import stubs
import torch
from gallery.base import Case, context_of, sound_model
from robustode._errors import NotAsked
from robustode.attacks.core.double_precision import in_double
from robustode.bench.audits.differences import (
    JITTER,
    central_differences,
    cosines,
    off_kinks,
    orthonormal_basis,
)
from robustode.bench.audits.library import audit_names
from robustode.bench.audits.registry import AUDITS, AuditResult
from robustode.bench.runtime.float64 import in_float64
from torch import Tensor, nn

audit_names()  # registers every check
IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def look(name: str, model: nn.Module) -> AuditResult:
    return AUDITS.get(name)(context_of(Case(model), 0))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_images_are_moved_a_little_within_the_box():
    images = IMAGES.round()
    moved = off_kinks(images, generator())
    assert float((moved - images).abs().max()) <= 2 * JITTER + 1e-6
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1
    assert (moved != images).double().mean() > 0.99


def test_central_differences_are_the_slopes():
    weight = torch.randn(64, dtype=torch.float64)
    basis = orthonormal_basis(64, 16, generator())
    found = central_differences(lambda x: (x.flatten(1) @ weight).square(), IMAGES.double(), basis, 1e-5)
    slopes = 2 * (IMAGES.double().flatten(1) @ weight)[:, None] * (basis @ weight)
    assert torch.allclose(found, slopes, rtol=1e-6)
    assert torch.allclose(cosines(found, slopes), torch.ones(4, dtype=torch.float64))


def pooled(bias: bool, pool: type = nn.MaxPool2d, activation: type = nn.ReLU) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=bias),
        activation(),
        pool(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=bias),
        activation(),
        pool(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    ).eval()


class Sorted(nn.Module):
    """GroupSort: pairs of features in order, which tie where both see the background alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.Linear(1024, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(images)
        return self.head(features.view(len(images), 8, 2, 8, 8).sort(2).values.flatten(1))


class Median(nn.Module):
    """The median of each neighbourhood, and the largest deviation from the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        around = nn.functional.unfold(images, 3, padding=1)
        return self.head(
            around.median(1).values + (images - images.mean((2, 3), keepdim=True)).abs().flatten(1)
        )


KINKS = {
    "max pooling": lambda: pooled(True),
    "max pooling, no bias": lambda: pooled(False),
    "ReLU without a bias": lambda: pooled(False, nn.AvgPool2d),
    "GroupSort": Sorted,
    "median": Median,
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", KINKS)
def test_ties_on_flat_background_are_no_fault_of_the_gradient(name, seed):
    torch.manual_seed(seed)
    found = look("gradient-fidelity", KINKS[name]())
    assert found.verdict == "pass", found.sentence
    assert found.value > 0.999


class Clipped(nn.Module):
    """Backpropagation through a clamp that the backward pass forgets on half of the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.model = pooled(True)
        self.register_buffer("seen", (torch.arange(64) % 2).view(1, 1, 8, 8).float())

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images * self.seen + (images * (1 - self.seen)).detach())


class StraightThrough(nn.Module):
    """Rounds its features and has the gradient pass as if it had not."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(images.flatten(1))
        return self.head(features + ((4 * features).round() / 4 - features).detach())


@pytest.mark.parametrize("build", [Clipped, StraightThrough])
def test_moving_images_off_kinks_hides_no_wrong_gradient(build):
    found = look("gradient-fidelity", build())
    assert found.verdict == "flag", found.sentence


class Positive(nn.Module):
    """ReLU without biases: every ReLU of a black image is at its kink."""

    def __init__(self) -> None:
        super().__init__()
        self.model = pooled(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def test_a_zero_gradient_at_a_kink_alone_does_not_count():
    context = context_of(Case(Positive()), 0)
    black = dataclasses.replace(context, images=torch.zeros_like(context.images))
    assert AUDITS.get("zero-gradients")(black).verdict == "pass"


# --- float64 -------------------------------------------------------------------------------------


class Single(nn.Module):
    """A constant in float32 that nothing converts, before a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = torch.randn(64, 16), nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.tanh(images.flatten(1) @ self.weight))


class Casting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1)).float()


class Closure(nn.Module):
    """Its layer is reached through a function made when it was built: a deep copy would keep the old one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(64, 16), nn.Linear(16, 10)
        self.field = lambda x: self.layer(x).tanh()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.field(images.flatten(1)))


class Uncopied(Casting):
    """Holds a tensor with a graph, of which torch makes no deep copy."""

    def __init__(self) -> None:
        super().__init__()
        self.last = self.head.weight * 2

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1))


@pytest.mark.parametrize("build", [Single, Casting])
def test_a_check_that_needs_float64_is_not_asked_of_a_model_without(build):
    model = build().eval()
    found = look("gradient-fidelity", model)
    assert found.verdict == "not asked"
    assert "cannot be asked in float64" in found.sentence
    assert look("zero-gradients", model).verdict == "pass", "float64 only gives a reason there"
    with pytest.raises(NotAsked), in_float64(model, IMAGES):
        raise AssertionError
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("build", [Closure, Uncopied])
@pytest.mark.parametrize("name", ["gradient-fidelity", "zero-gradients"])
def test_a_model_is_asked_in_float64_itself_and_not_a_copy(build, name):
    model = build().eval()
    before = [p.data_ptr() for p in model.parameters()]
    found = look(name, model)
    assert found.verdict == "pass", found.sentence
    assert [p.data_ptr() for p in model.parameters()] == before


def test_a_half_precision_model_passes():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    for dtype in (torch.bfloat16, torch.float16):
        for name in ("gradient-fidelity", "zero-gradients", "batch-independence", "finite", "determinism"):
            found = look(name, model.to(dtype).eval())
            assert found.verdict == "pass", f"{name}: {found.sentence}"


def test_complex_weights_are_widened_too():
    model = nn.ParameterDict({"w": nn.Parameter(torch.randn(3, dtype=torch.complex64))})
    with in_double(model):
        assert model["w"].dtype == torch.complex128
    assert model["w"].dtype == torch.complex64


def test_a_sound_model_still_passes():
    assert look("gradient-fidelity", sound_model(0)).value > 0.9999
    assert look("lipschitz-bound", stubs.Linear((1, 8, 8), 10).eval()).verdict == "not applicable"
