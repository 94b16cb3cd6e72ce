"""The least value of a linear function over a ball around an image and the box of valid images."""

from __future__ import annotations

import math

import numpy as np

ITERATIONS = 50


def least_in_box(g: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the least g . v over low <= v <= high, and the v, for arrays (pixels,)."""
    v = np.where(g > 0, low, high)
    return float(g @ v), v


def least_in_ball(
    g: np.ndarray, low: np.ndarray, high: np.ndarray, radius: float
) -> tuple[float, np.ndarray]:
    """Return a lower bound of g . v over |v|_2 <= radius and low <= v <= high, low <= 0 <= high; and a v.

    It is the dual min_v g . v + mu / 2 (|v|^2 - radius^2), a bound for every mu > 0; at the best mu the v
    lies on the sphere, or the box is inside the ball.
    """
    value, v = least_in_box(g, low, high)
    length = float(np.linalg.norm(g))
    if math.sqrt(v @ v) <= radius or length == 0:
        return value, v
    best, mu = -np.inf, length / radius
    for _ in range(ITERATIONS):
        free = -g / mu
        v = np.clip(free, low, high)
        best = max(best, float(g @ v + mu / 2 * (v @ v - radius**2)))
        if abs(math.sqrt(v @ v) / radius - 1) < 1e-9:
            break
        # The mu at which |v| is the radius if the same pixels stay at their ends.
        inside = free == v
        left = radius**2 - float(v[~inside] @ v[~inside])
        mu = float(np.linalg.norm(g[inside])) / math.sqrt(left) if left > 0 and inside.any() else 2 * mu
    return max(value, best), v
