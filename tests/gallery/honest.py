"""Other people's networks, trained for a few seconds: honest ones, which no audit may flag."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .base import Case, load


@dataclass(frozen=True)
class Honest:
    """An honest network: its factory, the dataset it is trained on and for how long.

    Attributes
    ----------
    heavy
        Whether training and audits take more than a few seconds together.
    """

    build: Callable[[int], nn.Module]
    dataset: str = "digits"
    epochs: int = 8
    rate: float = 2e-3
    samples: int = 1000
    heavy: bool = False

    def case(self, seed: int) -> Case:
        """The trained network as a case of the gallery."""
        return Case(_trained(self, seed), dataset=self.dataset)


@functools.lru_cache(maxsize=4)
def _trained(honest: Honest, seed: int) -> nn.Module:
    data = load(honest.dataset)
    train = data.train.first(honest.samples)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = honest.build(data.input_shape[1]).train()
        with torch.no_grad():
            model(train.images[:2])
        steps = honest.epochs * (len(train) // 50)
        optimiser = torch.optim.Adam(model.parameters(), lr=honest.rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, honest.rate, steps)
        for _ in range(honest.epochs):
            for rows in torch.randperm(len(train)).split(50):
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(train.images[rows]), train.labels[rows]).backward()
                optimiser.step()
                schedule.step()
    return model.eval().requires_grad_(False)


def lenet(size: int) -> nn.Module:
    """LeNet-5 with ReLU and max pooling; on small images with padding throughout."""
    padding = 0 if size >= 28 else 2
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.LazyLinear(120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def max_pool(size: int) -> nn.Module:
    """A plain CNN with max pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.LazyLinear(10),
    )


def batch_norm(size: int) -> nn.Module:
    """Batch normalisation with running statistics."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.LazyLinear(10),
    )


def dropout(size: int) -> nn.Module:
    """Dropout between layers, off in eval mode."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.LeakyReLU(),
        nn.Dropout2d(0.2),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.LazyLinear(64),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(64, 10),
    )


def gelu(size: int) -> nn.Module:
    """GELU after a convolution and in a perceptron with layer normalisation."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.LazyLinear(64),
        nn.LayerNorm(64),
        nn.GELU(),
        nn.Linear(64, 10),
    )


class Transformer(nn.Module):
    """Rows as tokens; without gradients, nn.TransformerEncoder takes its fused path in eval mode."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.embed = nn.Linear(size, 32)
        self.position = nn.Parameter(0.02 * torch.randn(1, size, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(images[:, 0]) + self.position).mean(1))


class Recurrent(nn.Module):
    """A GRU over the rows of an image."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.cell = nn.GRU(size, 48, batch_first=True)
        self.head = nn.Linear(48, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.cell(images[:, 0])[0][:, -1])


def lipschitz(size: int) -> nn.Module:
    """A 1-Lipschitz network of deel-torchlip: spectral normalisation and GroupSort, logits times 10."""
    from deel import torchlip

    class Scaled(nn.Module):
        def forward(self, logits: Tensor) -> Tensor:
            return 10 * logits

    body = torchlip.Sequential(
        nn.Flatten(),
        torchlip.SpectralLinear(size * size, 64),
        torchlip.GroupSort2(),
        torchlip.SpectralLinear(64, 32),
        torchlip.GroupSort2(),
        torchlip.SpectralLinear(32, 10),
    )
    return nn.Sequential(body, Scaled())


def resnet18(size: int) -> nn.Module:
    """ResNet-18 of torchvision, its first convolution for one channel."""
    from torchvision.models import resnet18 as build

    model = build(num_classes=10)
    model.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return model


def mobilenet(size: int) -> nn.Module:
    """MobileNet V2 of torchvision at half width, its first convolution for one channel."""
    from torchvision.models import mobilenet_v2

    model = mobilenet_v2(num_classes=10, width_mult=0.5)
    first = model.features[0][0]
    model.features[0][0] = nn.Conv2d(1, first.out_channels, 3, 1, 1, bias=False)
    return model


HONEST: dict[str, Honest] = {
    "lenet": Honest(lenet),
    "max_pool": Honest(max_pool),
    "batch_norm": Honest(batch_norm),
    "dropout": Honest(dropout, epochs=15),
    "gelu": Honest(gelu),
    "transformer": Honest(Transformer, epochs=20),
    "gru": Honest(Recurrent, epochs=20),
    "lipschitz": Honest(lipschitz, epochs=20, rate=1e-2),
    "lenet_mnist": Honest(lenet, "mnist", epochs=4, samples=5000, heavy=True),
    "max_pool_mnist": Honest(max_pool, "mnist", epochs=3, samples=5000, heavy=True),
    "resnet18": Honest(resnet18, "mnist", epochs=3, samples=3000, heavy=True),
    "mobilenet": Honest(mobilenet, "mnist", epochs=5, samples=2000, rate=5e-3, heavy=True),
}
