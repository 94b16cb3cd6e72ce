"""The network around the dynamics of most models: input normalisation, convolutional stem, linear head."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from .ode.block import ODEBlock
from .ode.lipschitz import LipschitzParts, NoCertificate, convolution_bound
from .ode.statement import describes_calls, stated_solver_bound
from .ode.tanh_field import MatrixField


class Normalise(nn.Module):
    """(x - mean) / std per channel, inside the model, so that attacks act on pixels in [0, 1].

    Training calls `fit` of every `Normalise` with its training images.

    Parameters
    ----------
    channels
        C.

    Attributes
    ----------
    mean, std
        Buffers, shape (1, C, 1, 1), part of the checkpoint; 0.5 until `fit`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, channels, 1, 1), 0.5))
        self.register_buffer("std", torch.full((1, channels, 1, 1), 0.5))

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Set mean and standard deviation per channel from `images`, shape (N, C, H, W)."""
        std, mean = torch.std_mean(images.double(), dim=(0, 2, 3), keepdim=True)
        self.mean.copy_(mean)
        self.std.copy_(std.clamp_min(1e-3))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) in [0, 1] to standardised images of the same shape."""
        return (images - self.mean) / self.std


class PixelNetwork(nn.Module):
    """Normalisation, 3x3 convolution to n channels, a flow on the channels of every pixel, linear head.

    The flow sees the state as (n, N H W), one column for every pixel of every sample, so that a layer
    shared by all pixels is one matrix product.

    Parameters
    ----------
    input_shape
        (C, H, W).
    num_classes
        Number of logits, at least 2.
    flow
        Maps (n, N H W) to the same shape, column by column; its layers hold K and b.
    width
        n, the state dimension per pixel.
    smoothing
        Weight of the penalty on the change of K and b between those layers that are a `ChannelLayer`.

    References
    ----------
    Zakwan, Xu, Ferrari-Trecate, "Robust classification using contractive Hamiltonian neural ODEs",
    IEEE Control Systems Letters 2022, arXiv 2203.11805, section IV.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        flow: ODEBlock,
        *,
        width: int,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        channels, height, breadth = input_shape
        self.image_size = (height, breadth)
        self.normalise = Normalise(channels)
        self.stem = nn.Conv2d(channels, width, kernel_size=3, padding=1)
        self.flow = flow
        self.head = nn.Linear(width * height * breadth, num_classes)
        self.smoothing = smoothing

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) in [0, 1] to logits (N, num_classes)."""
        features = self.stem(self.normalise(images)).transpose(0, 1)
        final = self.flow(features.reshape(len(features), -1)).reshape(features.shape)
        logits: Tensor = self.head(final.transpose(0, 1).flatten(1))
        return logits

    def lipschitz_parts(self) -> LipschitzParts:
        """Return bounds for an l2 certificate: normalisation and stem together, then the solver's map.

        Raises
        ------
        NoCertificate
            When no bound of the solver's map is known: an adaptive method, or a wide state; and when a
            subclass, a hook or another stem or head changes what `forward` computes.
        """
        if not describes_calls(self, "lipschitz_parts") or not self.is_plain():
            raise NoCertificate("the network computes something else than normalisation, stem, flow and head")
        stem = convolution_bound(self.stem.weight / self.normalise.std, *self.image_size)
        bounds = {"stem": stem, "flow": stated_solver_bound(self.flow)}
        return LipschitzParts(body=bounds, head=self.head.weight.detach().double())

    def is_plain(self) -> bool:
        """Whether the parts around the flow are those that `lipschitz_parts` speaks of."""
        stem, head = self.stem, self.head
        if not (isinstance(stem, nn.Conv2d) and isinstance(head, nn.Linear)):
            return False
        like = (stem.stride, stem.padding, stem.dilation, stem.groups, stem.padding_mode)
        own = type(self.normalise).forward, type(stem).forward, type(head).forward
        return like == ((1, 1), (1, 1), (1, 1), 1, "zeros") and own == (
            Normalise.forward,
            nn.Conv2d.forward,
            nn.Linear.forward,
        )

    def penalty(self) -> Tensor:
        """Return the scalar that training adds to the loss: `smoothness_penalty` of the flow's layers."""
        layers = [layer for layer in self.flow.layers if isinstance(layer, ChannelLayer)]
        if not layers:
            return self.head.weight.new_zeros(())
        step = self.flow.final_time / len(self.flow.layers)
        return smoothness_penalty(layers, step=step, weight=self.smoothing)


class ChannelLayer(MatrixField):
    """Weights of one layer in time: K, shape (n, n), and b, shape (n, 1).

    K is drawn from N(0, gain^2 / n), so that its largest singular value is near 2 gain at any width, and b
    from N(0, offset^2).
    """

    def __init__(self, width: int, *, gain: float = 1.0, offset: float = 0.0) -> None:
        super().__init__()
        self.K = nn.Parameter(torch.randn(width, width) * gain / width**0.5)
        self.b = nn.Parameter(offset * torch.randn(width, 1) if offset else torch.zeros(width, 1))


def smoothness_penalty(layers: Sequence[ChannelLayer], *, step: float, weight: float) -> Tensor:
    """Return weight * step / 2 * sum_j (|K_{j+1} - K_j|^2 + |b_{j+1} - b_j|^2) over consecutive layers.

    References
    ----------
    Galimberti, Furieri, Xu, Ferrari-Trecate, "Hamiltonian deep neural networks guaranteeing
    non-vanishing gradients by design", arXiv 2105.13205, section V.
    """
    total = layers[0].K.new_zeros(())
    for this, following in pairwise(layers):
        total = total + (following.K - this.K).square().sum() + (following.b - this.b).square().sum()
    return 0.5 * weight * step * total
