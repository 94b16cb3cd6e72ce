"""The type in which a model takes its images is found by trying it."""

from __future__ import annotations

import pytest
import torch
from robustode._errors import ContractBroken, ModelFailure
from robustode.attacks.core.image_dtype import image_dtype
from robustode.attacks.core.model_call import ask_model
from torch import Tensor, nn


class Net(nn.Module):
    """One linear layer, with what a subclass adds."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10, dtype=dtype)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1))


class Timed(nn.Module):
    """Integration times in float64 come first among its parameters; the layer is float32."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        times = torch.linspace(0, 1, 2, dtype=torch.float64)
        if kind is nn.Parameter:
            self.times = nn.Parameter(times)
        else:
            self.register_buffer("times", times)
        self.net = Net()

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images) * self.times[-1].float()


class Constants(nn.Module):
    """No parameters: buffers alone, of which one counts."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(64, 10).to(dtype))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return images.flatten(1) @ self.weight


class Spectral(nn.Module):
    """Complex weights on the Fourier transform of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(10, 64, dtype=torch.complex64))

    def forward(self, images: Tensor) -> Tensor:
        return (torch.fft.fft2(images).flatten(1) @ self.weight.T).abs()


class Hidden(nn.Module):
    """float64 in a tensor that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(64, 10, dtype=torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight


MODELS = {
    "float32": (Net, torch.float32),
    "float64": (lambda: Net(torch.float64), torch.float64),
    "bfloat16": (lambda: Net(torch.bfloat16), torch.bfloat16),
    "half": (lambda: Net(torch.float16), torch.float16),
    "a float64 parameter": (lambda: Timed(nn.Parameter), torch.float32),
    "a float64 buffer": (lambda: Timed(Tensor), torch.float32),
    "buffers alone": (lambda: Constants(torch.float64), torch.float64),
    "complex": (Spectral, torch.float32),
    "hidden": (Hidden, torch.float64),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_gets_images_in_the_type_that_it_takes(name):
    build, wanted = MODELS[name]
    model, images = build(), torch.rand(3, 1, 8, 8)
    assert image_dtype(model, images) is None
    for x in (images, images.clone().requires_grad_(True)):
        logits = ask_model(model, x, 10)
        assert logits.shape == (3, 10)
        assert image_dtype(model, images) == wanted
        if x.requires_grad:
            (gradient,) = torch.autograd.grad(logits.double().sum(), x)
            assert gradient.dtype == torch.float32


def test_a_model_that_changes_its_type_is_tried_again():
    model, images = Net(), torch.rand(2, 1, 8, 8)
    assert ask_model(model, images, 10).dtype == torch.float32
    assert ask_model(model.double(), images, 10).dtype == torch.float64
    assert ask_model(model, images.double(), 10).dtype == torch.float64


def test_a_model_that_takes_no_type_says_what_it_raised_in_its_own():
    class Fails(Net):
        def forward(self, images: Tensor) -> Tensor:
            raise ZeroDivisionError(str(images.dtype))

    with pytest.raises(ModelFailure, match=r"ZeroDivisionError: torch\.float64"):
        ask_model(Fails(torch.float64), torch.rand(2, 1, 8, 8), 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_that_changes_its_images_is_refused(dtype):
    class Changes(Net):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.sub_(0.5))

    with pytest.raises(ContractBroken, match="changes its input in place"):
        ask_model(Changes(dtype), torch.rand(2, 1, 8, 8), 10)


def test_a_model_that_returns_its_own_buffer_overwrites_no_answer():
    class Reuses(Net):
        def __init__(self) -> None:
            super().__init__()
            self.answer = torch.empty(2, 10)

        @torch.no_grad()
        def forward(self, images: Tensor) -> Tensor:
            self.answer.copy_(super().forward(images))
            return self.answer

    model, images = Reuses(), torch.rand(4, 1, 8, 8)
    together = torch.cat([ask_model(model, part, 10) for part in images.split(2)])
    assert torch.allclose(together, model.head(images.flatten(1)))
