"""A network that is no function of the image is found out before the first number."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import robustode
import stubs
import torch
from robustode._errors import InconsistentModelWarning, UnknownName
from robustode.bench.evaluation.consistency import inconsistencies
from torch import Tensor, nn


class Net(nn.Module):
    """A small network whose logits pass through `fault`."""

    def __init__(self, fault: Callable[[Any, Tensor, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        self.fault, self.calls = fault, 0
        self.register_buffer("average", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        logits = self.body(images)
        return self.fault(self, logits, images) if self.fault else logits


def drifting(self: Any, logits: Tensor, images: Tensor) -> Tensor:
    self.average.mul_(0.999).add_(0.001 * images.mean())
    return logits + self.average


def half_precision_without_gradients(self: Any, logits: Tensor, images: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=not torch.is_grad_enabled()):
        return self.body(images).float()


UNSTEADY: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "noise": lambda self, z, x: z + 0.1 * torch.randn_like(z),
    "numpy's noise": lambda self, z, x: z + 0.1 * np.random.randn(),
    "python's noise": lambda self, z, x: z * random.random(),
    "dropout": lambda self, z, x: nn.functional.dropout(z, 0.5),
    "rare dropout": lambda self, z, x: nn.functional.dropout(z, 1e-6),
    "a rare event": lambda self, z, x: z * (2 if torch.rand(()) < 1e-6 else 1),
    "a counter": lambda self, z, x: z * (1 + 1e-4 * self.calls),
    "every 17th call": lambda self, z, x: z.flip(1) if self.calls % 17 == 0 else z,
    "a running average": drifting,
    "grad mode": lambda self, z, x: z * (1.01 if torch.is_grad_enabled() else 1),
    "images with gradients": lambda self, z, x: z * (1.01 if x.requires_grad else 1),
    "half precision without gradients": half_precision_without_gradients,
}
COUPLED: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "the mean of the batch": lambda self, z, x: z - z.mean(0, keepdim=True),
    "the largest of the batch": lambda self, z, x: z / z.abs().max(),
    "the position": lambda self, z, x: z * (1 + 0.01 * torch.arange(len(z)))[:, None],
    "the first": lambda self, z, x: torch.cat([z[:1] * 1.01, z[1:]]),
    "the last of many": lambda self, z, x: z * torch.where(torch.arange(len(z)) < 50, 1.0, 1.01)[:, None],
    "a batch of one": lambda self, z, x: z * (1.01 if len(z) == 1 else 1),
    "a large batch": lambda self, z, x: z * (1.01 if len(z) > 64 else 1),
    "the neighbour": lambda self, z, x: z + 0.01 * z.roll(1, 0),
}


def found(model: nn.Module, images: Tensor, batch_size: int = 100) -> list[str]:
    return list(
        inconsistencies(
            model.eval(), images, num_classes=10, batch_size=batch_size, device=torch.device("cpu")
        )
    )


@pytest.mark.parametrize("name", UNSTEADY)
def test_answers_that_change_from_pass_to_pass(digits, name):
    assert "determinism" in found(Net(UNSTEADY[name]), digits.validation.images)


@pytest.mark.parametrize("name", COUPLED)
def test_answers_that_depend_on_the_batch(digits, name):
    assert found(Net(COUPLED[name]), digits.validation.images) == ["batch-independence"]


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(32, track_running_stats=False), nn.BatchNorm1d(32)])
def test_batch_norm_without_running_statistics(digits, layer):
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), layer, nn.Linear(32, 10))
    expected = [] if layer.track_running_stats else ["batch-independence"]
    assert found(body, digits.validation.images) == expected


def test_a_solver_that_picks_its_steps_for_the_whole_batch(digits):
    import torchdiffeq

    class Adaptive(Net):
        def forward(self, images: Tensor) -> Tensor:
            state = torchdiffeq.odeint(
                lambda t, y: torch.tanh(3 * y.roll(1, 1)), images.flatten(1), torch.tensor([0.0, 3.0]),
                rtol=1e-2, atol=1e-2,
            )[-1]  # fmt: skip
            return self.body(state)

    assert found(Adaptive(), digits.validation.images) == ["batch-independence"]


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.stem, self.head = nn.Linear(8, 16), nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(self.stem(images[:, 0])).mean(1))


def unused_noise(self: Any, logits: Tensor, images: Tensor) -> Tensor:
    torch.rand(3), random.random(), np.random.rand()
    return logits


def seeded_noise(self: Any, logits: Tensor, images: Tensor) -> Tensor:
    torch.manual_seed(0)
    return logits + torch.randn(10)


def cached(self: Any, logits: Tensor, images: Tensor) -> Tensor:
    self.average.fill_(float(logits.detach().mean()))
    return logits


@pytest.mark.parametrize(
    "model",
    [
        Net(),
        Net(unused_noise),
        Net(seeded_noise),
        Net(cached),
        Net(lambda self, z, x: 1e-6 * z),
        Net(lambda self, z, x: 0 * z),
        Net(lambda self, z, x: z.double()),
        Net(lambda self, z, x: 1e4 + z),
        Transformer(),
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.Flatten(), nn.Linear(288, 10)),
    ],
)
def test_a_function_of_the_image_is_none_of_these(digits, model):
    assert found(model, digits.validation.images) == []
    assert found(model, digits.validation.images[:3], batch_size=1) == []


def test_what_a_model_does_before_it_fails_is_no_matter(digits):
    fails = stubs.Faulty((1, 8, 8), 10, lambda z, x: z / 0 * 0)
    assert found(fails, digits.validation.images) == []


def test_asking_leaves_buffers_and_random_numbers_as_they_were(digits):
    model = Net(drifting).eval()
    states = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    found(model, digits.validation.images)
    assert not model.average.requires_grad
    assert float(model.average) == 0.0
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tobytes(), random.getstate()) == states[1:]
    assert not model.training


# --- robustode.evaluate -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "audit"),
    [(UNSTEADY["dropout"], "determinism"), (COUPLED["the mean of the batch"], "batch-indep")],
)
def test_evaluate_warns(fault, audit):
    with pytest.warns(InconsistentModelWarning, match=f"^mine: .*audit {audit}") as caught:
        robustode.evaluate(Net(fault), threats="clean", samples=20, name="mine")
    (mine,) = [w for w in caught if w.category is InconsistentModelWarning]
    assert mine.filename == __file__


def test_what_is_meant_is_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error", InconsistentModelWarning)
        robustode.evaluate(
            Net(UNSTEADY["dropout"]), threats="clean", samples=20, expected_failures=["determinism"]
        )
        robustode.evaluate(Net(), threats="clean", samples=20)
    with pytest.raises(UnknownName, match="determinism"):
        robustode.evaluate(Net(), threats="clean", samples=20, expected_failures=["determinist"])


def test_a_category_of_its_own_can_be_silenced():
    assert robustode.InconsistentModelWarning is InconsistentModelWarning
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", robustode.InconsistentModelWarning)
        robustode.evaluate(Net(UNSTEADY["noise"]), threats="clean", samples=20)
