"""Exact distances to the decision boundary of small models, by solvers that share nothing with the attacks.

Linear models: bisection over the multiplier. ReLU networks of one hidden layer: every activation pattern is
a polyhedron on which the logits are affine, so the distance is the least of a few linear programmes
(L-infinity) or least-distance programmes (l2; Lawson and Hanson, Solving Least Squares Problems, chapter 23).
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from scipy.optimize import linprog, nnls
from torch import Tensor, nn


def halfspaces(w: np.ndarray, gap: np.ndarray, x: np.ndarray, norm: str) -> np.ndarray:
    """Row by row the least length of d with w.d >= gap and x + d in [0, 1]; infinity where there is none."""
    direction = np.sign(w) if norm == "linf" else w / np.linalg.norm(w, axis=1, keepdims=True)

    def move(multiplier: np.ndarray) -> np.ndarray:
        return np.clip(x + multiplier[:, None] * direction, 0, 1) - x

    def crosses(multiplier: np.ndarray) -> np.ndarray:
        return (w * move(multiplier)).sum(1) >= gap

    low, high = np.zeros(len(w)), np.full(len(w), 1.0 if norm == "linf" else 1e6)
    reachable = crosses(high)
    for _ in range(90):
        middle = (low + high) / 2
        across = crosses(middle)
        low, high = np.where(across, low, middle), np.where(across, middle, high)
    length = np.linalg.norm(move(high), ord=np.inf if norm == "linf" else 2, axis=1)
    return np.where(reachable, length, np.inf)


def linear_distances(model: nn.Linear, images: Tensor, labels: Tensor, norm: str) -> np.ndarray:
    """Exact distances of `images` (N, C, H, W) for a linear layer."""
    weight, bias = model.weight.detach().double().numpy(), model.bias.detach().double().numpy()
    found = []
    for x, y in zip(images.flatten(1).double().numpy(), labels.tolist(), strict=True):
        z = weight @ x + bias
        others = [k for k in range(len(z)) if k != y]
        found.append(halfspaces(weight[others] - weight[y], z[y] - z[others], x, norm).min())
    return np.array(found)


def polyhedron(G: np.ndarray, h: np.ndarray, norm: str) -> float:
    """Least length of d with G d >= h; infinity when there is none."""
    n = G.shape[1]
    if norm == "linf":
        bounded = [[s * row for row in np.eye(n)] for s in (1, -1)]  # t - d >= 0 and t + d >= 0
        rows = np.block([[G, np.zeros((len(G), 1))], *[[-np.array(b), np.ones((n, 1))] for b in bounded]])
        answer = linprog(
            np.eye(n + 1)[n], A_ub=-rows, b_ub=-np.concatenate([h, np.zeros(2 * n)]), bounds=(None, None)
        )
        return float(answer.fun) if answer.status == 0 else np.inf
    E, f = np.vstack([G.T, h]), np.eye(n + 1)[n]
    u, rest = nnls(E, f)
    r = E @ u - f
    return float(np.linalg.norm(r[:n] / r[n])) if rest > 1e-9 else np.inf


def relu_distances(
    first: nn.Linear, last: nn.Linear, images: Tensor, labels: Tensor, norm: str
) -> np.ndarray:
    """Exact distances for last(relu(first(x))), by every activation pattern and other class."""
    W, b, V, c = (p.detach().double().numpy() for p in (*first.parameters(), *last.parameters()))
    found = []
    for x, y in zip(images.flatten(1).double().numpy(), labels.tolist(), strict=True):
        box_G, box_h = np.vstack([np.eye(len(x)), -np.eye(len(x))]), np.concatenate([-x, x - 1])
        best = np.inf
        for pattern in itertools.product((0, 1), repeat=len(b)):
            on = np.array(pattern)
            sign = 2 * on - 1
            for k in (k for k in range(len(c)) if k != y):
                gain = (V[k] - V[y]) * on
                G = np.vstack([sign[:, None] * W, gain @ W, box_G])
                gap = -(gain @ (W @ x + b) + c[k] - c[y])
                h = np.concatenate([-sign * (W @ x + b), [gap], box_h])
                if polyhedron(G, h, "l2") < best * (len(x) ** 0.5 if norm == "linf" else 1):
                    best = min(best, polyhedron(G, h, norm))  # else too far in l2, which is soon known
        found.append(best)
    return np.array(found)


def linear_layer(inputs: int, classes: int, seed: int, scale: float = 1.0) -> nn.Linear:
    """A random layer whose logits are balanced at the middle of the box, times `scale`."""
    layer = nn.Linear(inputs, classes)
    weight = torch.randn(classes, inputs, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        layer.weight.copy_(scale * weight)
        layer.bias.copy_(-scale * weight.sum(1) / 2)
    return layer.requires_grad_(False)


def images_of(kind: str, count: int, inputs: int, seed: int) -> Tensor:
    """Images (count, 1, 1, inputs): ``inside`` the box, or with four pixels of five at the ``edge``."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, 1, inputs, generator=generator)
    if kind == "edge":
        at_edge = torch.rand(images.shape, generator=generator) < 0.8
        images = torch.where(at_edge, images.round(), images)
    return images


def images_of_both_kinds(count: int, inputs: int, seed: int) -> Tensor:
    """Images (2 count, 1, 1, inputs): first those ``inside`` the box, then those at the ``edge``."""
    return torch.cat([images_of(kind, count, inputs, seed) for kind in ("inside", "edge")])
