"""What is timed, and the baselines it is timed against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from robustode.bench.data import Data, Split, default_root, load_data
from robustode.bench.training.train import fit_normalisation, training_step
from robustode.models import MODELS, use_ode_backend
from robustode.models.ode.block import ODEBlock
from torch import Tensor, nn

SHAPE, CLASSES = (1, 28, 28), 10
EVERY = [spec.name for spec in MODELS]
FIXED_GRID = [spec.name for spec in MODELS if "fixed_step" in spec.claims]
EAGER = "eager torchdiffeq"
LOOP = "hand-written loop"


def build(name: str, device: torch.device) -> nn.Module:
    """The registered model at MNIST size, from seed 0, in eval mode."""
    spec = MODELS.get(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return spec.build(SHAPE, CLASSES, **spec.resolve()).eval().to(device)


def images(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Uniform images (count, 1, 28, 28) and labels that go round the classes."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, *SHAPE, generator=generator).to(device), (torch.arange(count) % CLASSES).to(
        device
    )


def state_of(model: nn.Module, batch: int, device: torch.device) -> Tensor:
    """What the model's flow is given for a batch: (8, batch * 784) for the pixel networks."""
    seen: list[Tensor] = []
    handle = model.flow.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(images(batch, device)[0])
    handle.remove()
    return seen[0].detach().contiguous()


def eager(call: Callable[[], Any]) -> Callable[[], Any]:
    """`call` with the compiled flow turned off: every layer through torchdiffeq."""

    def run() -> Any:
        with use_ode_backend("torchdiffeq"):
            return call()

    return run


def loop(flow: ODEBlock) -> Callable[[Tensor], Tensor]:
    """The flow as one writes it by hand: layers, steps, stages, and plain torch inside."""
    steps = flow.steps_per_layer()
    h = flow.final_time / len(flow.layers) / steps
    method = flow.solver.method
    assert method in ("euler", "heun2")

    def run(x: Tensor) -> Tensor:
        for field in flow.fields():
            for _ in range(steps):
                slope = field(x)
                x = x + h * slope if method == "euler" else x + h / 2 * (slope + field(x + h * slope))
        return x

    return run


def dataset(train: int, test: int, *, real: bool) -> Data:
    """MNIST, or images like it where it is not at hand; the validation set is a tenth of the training set."""
    if real and (default_root() / "MNIST").exists():
        full = load_data("mnist")
        return replace(
            full,
            train=full.train.first(train),
            validation=full.validation.first(train // 10),
            test=full.test.first(test),
        )

    def split(count: int) -> Split:
        pixels, labels = images(max(1, count), torch.device("cpu"))
        return Split(images=pixels, labels=labels, indices=np.arange(len(labels)))

    return Data(
        name="synthetic",
        num_classes=CLASSES,
        train=split(train),
        validation=split(train // 10),
        test=split(test),
        index_sha256="0" * 64,
    )


def trained(name: str, data: Data, device: torch.device) -> nn.Module:
    """The model after one epoch: attacks stop at samples that are misclassified as they are."""
    model = build(name, device)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    fit_normalisation(model, data)
    model.train()
    for x, y in zip(data.train.images.split(100), data.train.labels.split(100), strict=True):
        training_step(model, x.to(device), y.to(device), optimiser, CLASSES)
    return model.eval()


class Recorder(nn.Module):
    """A model that notes the size of each query and whether a gradient was asked for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.passes: list[tuple[int, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.passes.append((len(x), x.requires_grad and torch.is_grad_enabled()))
        return self.model(x)


def replay(model: nn.Module, passes: list[tuple[int, bool]], pixels: Tensor) -> None:
    """The same queries of the bare model and nothing else."""
    for count, wants in passes:
        if wants:
            x = pixels[:count].clone().requires_grad_()
            torch.autograd.grad(model(x).sum(), x)
        else:
            with torch.no_grad():
                model(pixels[:count])
