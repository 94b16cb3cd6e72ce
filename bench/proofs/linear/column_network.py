"""A network as columns: an affine stem on patches, a flow on each column alone, a linear head."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ....models import NoCertificate, ODEBlock, PixelNetwork
from ....models.ode.solver import FIXED_GRID
from ....models.ode.statement import describes_calls
from .tableaus import tableau


@dataclass(frozen=True, kw_only=True)
class FlowMatrices:
    """A flow x' = A_j tanh(B_j x + b_j) + C_j x over the j-th of equal parts of time, on a fixed grid.

    Attributes
    ----------
    A, B, C
        Shape (layers, n, n), float64.
    b
        Shape (layers, n).
    h
        Size of a step, in the model's own time.
    steps
        Steps in each layer.
    stages, weights
        The method's Butcher tableau, see `tableau`.
    """

    A: np.ndarray
    B: np.ndarray
    b: np.ndarray
    C: np.ndarray
    h: float
    steps: int
    stages: np.ndarray
    weights: np.ndarray

    @property
    def evaluations(self) -> int:
        """K, the number of evaluations of the field."""
        return len(self.B) * self.steps * len(self.weights)


@dataclass(frozen=True, kw_only=True)
class ColumnNetwork:
    """logits_k = head_k . (flow of u) + bias_k, where column p of u is stem @ (patch p) + offset_p.

    Attributes
    ----------
    stem
        Shape (n, d), float64: acts on the d inputs of a patch.
    offset
        Shape (n, P): what the stem gives column p for an image of zeros.
    patches
        Shape (d, P), the index of each input of each patch among the pixels; the number of pixels where the
        patch reaches over the edge, where the input is 0.
    flow
        The flow of each column.
    head
        Shape (classes, n, P).
    bias
        Shape (classes,).
    pixels
        C H W.
    """

    stem: np.ndarray
    offset: np.ndarray
    patches: np.ndarray
    flow: FlowMatrices
    head: np.ndarray
    bias: np.ndarray
    pixels: int

    def in_patches(self, values: np.ndarray) -> np.ndarray:
        """The values of the pixels, shape (pixels,), in each patch: (d, P); 0 over the edge."""
        patches: np.ndarray = np.append(values, 0.0)[self.patches]
        return patches

    def summed_over_patches(self, values: np.ndarray) -> np.ndarray:
        """The sum over patches of what each has for a pixel: (d, P) to (pixels,)."""
        sums = np.bincount(self.patches.ravel(), values.ravel(), minlength=self.pixels + 1)
        pixels: np.ndarray = sums[: self.pixels]
        return pixels

    def start(self, image: np.ndarray) -> np.ndarray:
        """u of an image (pixels,), shape (n, P)."""
        start: np.ndarray = self.stem @ self.in_patches(image) + self.offset
        return start


@torch.no_grad()
def column_network(model: nn.Module, input_shape: tuple[int, int, int]) -> ColumnNetwork:
    """Return a `PixelNetwork` as columns, in float64.

    Parameters
    ----------
    model
        Whose normalisation, stem, flow and head are those of `PixelNetwork`.
    input_shape
        (C, H, W).

    Raises
    ------
    NoCertificate
        For another network, a flow that does not state its field, or an adaptive solver.
    """
    if not isinstance(model, PixelNetwork) or not describes_calls(model, "lipschitz_parts"):
        raise NoCertificate("the network is not a PixelNetwork as it stands in robustode.models")
    if not model.is_plain():
        raise NoCertificate("the network computes something else than normalisation, stem, flow and head")
    height, width = model.stem.weight.shape[2:]
    size = math.prod(input_shape)
    index = torch.arange(1, size + 1, dtype=torch.float64).view(1, *input_shape)
    patches = F.unfold(index, (height, width), padding=1)[0].long() - 1
    stem = model.stem.weight.double() / model.normalise.std.double()
    bias = None if model.stem.bias is None else model.stem.bias.double()
    black = -model.normalise.mean.double().expand(1, *input_shape)
    offset = F.conv2d(black, stem, bias, padding=1)
    channels, columns = len(stem), patches.shape[1]
    return ColumnNetwork(
        stem=stem.flatten(1).numpy(),
        offset=offset[0].flatten(1).numpy(),
        patches=np.where(patches.numpy() < 0, size, patches.numpy()),
        flow=flow_matrices(model.flow),
        head=model.head.weight.double().view(-1, channels, columns).numpy(),
        bias=model.head.bias.double().numpy(),
        pixels=size,
    )


def flow_matrices(flow: ODEBlock) -> FlowMatrices:
    """Return an `ODEBlock` of tanh fields on a fixed grid as matrices.

    Raises
    ------
    NoCertificate
        For a flow that does not state its field, or an adaptive solver.
    """
    if not flow.has_tanh_fields():
        raise NoCertificate("the flow's layers do not state their matrices (robustode.MatrixField)")
    if flow.solver.method not in FIXED_GRID:
        raise NoCertificate("nothing is proven of an adaptive solver: its steps depend on the input")
    fields = flow.tanh_fields()

    def stacked(tensors: list[Tensor]) -> np.ndarray:
        array: np.ndarray = torch.stack(tensors).detach().double().cpu().numpy()
        return array

    stages, weights = tableau(flow.solver.method)
    steps = flow.steps_per_layer()
    return FlowMatrices(
        A=stacked([field.dense_A() for field in fields]),
        B=stacked([field.B for field in fields]),
        b=stacked([field.b.flatten() for field in fields]),
        C=stacked([field.dense_C() for field in fields]),
        h=float(flow.final_time) / len(fields) / steps,
        steps=steps,
        stages=stages,
        weights=weights,
    )
