"""Linear lower bounds of an image's margins: pixel by pixel, joined in one linear function of the image."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....models.ode.kernels.cpu_tiles import BLOCK
from . import loops as _loops
from .column_network import ColumnNetwork, FlowMatrices
from .least_value import least_in_ball, least_in_box
from .loops import TILE

loops: Any = _loops  # compiled: they have no Python types


class LinearBounds:
    """Lower bounds of margins of `network` by linear bounds of its flow, for one image at a time.

    Parameters
    ----------
    network
        See `column_network`.
    norm
        ``linf`` or ``l2``.
    strength
        Radius of the ball, in units of pixel values.
    iterations
        How often the tangents of a class that is not proven are moved towards where the last bound is least:
        optimised slopes as in Xu et al., "Fast and complete", ICLR 2021, arXiv 2011.13824, by fixed-point
        steps in place of gradients.

    References
    ----------
    Zhang et al., "Efficient neural network robustness certification with general activation functions",
    NeurIPS 2018, arXiv 1811.00866, theorem 3.2 and corollary 3.3.
    """

    def __init__(self, network: ColumnNetwork, *, norm: str, strength: float, iterations: int = 10) -> None:
        self.network, self.norm, self.strength, self.iterations = network, norm, strength, iterations
        self._flow = _operands(network.flow)
        self._A, self._C = _padded(network.flow.A), _padded(network.flow.C)
        self._S = _padded(network.stem)
        self._ST = np.ascontiguousarray(self._S.T[: network.stem.shape[1]])

    def margins(self, image: np.ndarray, label: int) -> np.ndarray:
        """Return a lower bound of logit[label] - logit[k] over ball and box, for every class k.

        Parameters
        ----------
        image
            Shape (pixels,), float64 in [0, 1].
        label
            The sample's class.

        Returns
        -------
        numpy.ndarray
            Shape (classes,), float64; infinite for `label`. What float32 rounds is not part of it.
        """
        network = self.network
        low, high = np.maximum(-image, -self.strength), np.minimum(1 - image, self.strength)
        start = self._columns(network.start(image), self._S.shape[0])
        box_low, box_high = (self._columns(network.in_patches(side)) for side in (low, high))
        z_low = np.empty((start.shape[1] // TILE, network.flow.evaluations, len(start), TILE))
        z_high = np.empty_like(z_low)
        loops.enclose(start, box_low, box_high, self._ST, self._flow, z_low, z_high)
        bounds = np.full(len(network.head), np.inf)
        for k in range(len(network.head)):
            if k != label:
                w = self._columns(network.head[label] - network.head[k], len(start))
                apart = float(network.bias[label] - network.bias[k])
                bounds[k] = apart + self._least(w, start, z_low, z_high, low, high, -apart)
        return bounds

    def _least(
        self,
        w: np.ndarray,
        start: np.ndarray,
        z_low: np.ndarray,
        z_high: np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
        enough: float,
    ) -> float:
        """A lower bound of the sum of w . (final state); iterations end once it exceeds `enough`."""
        columns = self.network.patches.shape[1]
        tiles, evaluations, n, _ = z_low.shape
        chosen, slopes = np.empty((tiles, evaluations, 2, n, TILE)), np.empty((len(self._ST), start.shape[1]))
        at, z, best = (z_low + z_high) / 2, np.empty_like(z_low), -np.inf
        for iteration in range(self.iterations + 1):
            constant = loops.linear_bound(w, start, self._ST, self._flow, z_low, z_high, at, chosen, slopes)
            g = self.network.summed_over_patches(slopes[:, :columns])
            if self.norm == "l2":
                least, v = least_in_ball(g, low, high, self.strength)
            else:
                least, v = least_in_box(g, low, high)
            best = max(best, constant + least)
            if best > enough or iteration == self.iterations:
                break
            moved = self._columns(self.network.in_patches(v), self._S.shape[1])
            loops.relaxed_values(moved, start, self._S, self._A, self._C, self._flow, chosen, z)
            share = 2 / (iteration + 2)
            at = (1 - share) * at + share * z
        return best

    @staticmethod
    def _columns(values: np.ndarray, rows: int | None = None) -> np.ndarray:
        """Values (n, P) filled up with zeros to whole tiles, and to `rows` rows."""
        more = 0 if rows is None else rows - len(values)
        return np.ascontiguousarray(np.pad(values, [(0, more), (0, -values.shape[1] % TILE)]))


def _padded(matrices: np.ndarray) -> np.ndarray:
    """Matrices (..., n, m) filled up with zeros to whole blocks of the compiled products."""
    *others, rows, columns = matrices.shape
    more = [(0, 0)] * len(others) + [(0, -rows % BLOCK), (0, -columns % BLOCK)]
    return np.ascontiguousarray(np.pad(matrices, more))


def _operands(flow: FlowMatrices) -> tuple[Any, ...]:
    """A flow as the compiled loops take it."""
    A, B, C = (_padded(matrices) for matrices in (flow.A, flow.B, flow.C))
    b = np.ascontiguousarray(np.pad(flow.b, [(0, 0), (0, -flow.b.shape[1] % BLOCK)]))
    AT, BT, CT = (np.ascontiguousarray(matrices.swapaxes(1, 2)) for matrices in (A, B, C))
    method = flow.h, flow.steps, flow.stages, flow.weights
    return B, b, AT, BT, CT, bool(flow.C.any()), *method, np.zeros(b.shape[1])
