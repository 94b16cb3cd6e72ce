"""Adaptive path on a CPU, compiled by numba: the norms behind the first step size, and their gradients.

Operands are those of `dopri5_loops`.
"""

from __future__ import annotations

import numpy as np

from .cpu_tiles import TILE, compiled_helper, compiled_kernel, mix, read_columns, write_columns
from .dopri5_loops import count_nonfinite, dot_difference, field, field_vjp

_ZERO, _ONE = np.float32(0), np.float32(1)


@compiled_helper
def sum_of_scaled_squares(x, y, z, tolerance, rows, width):
    """Sum of the squares of (x - y) / (atol + rtol |z|)."""
    rtol, atol = tolerance
    total = 0.0
    for i in range(rows):
        part = _ZERO
        for p in range(width):
            r = (x[i, p] - y[i, p]) / (atol + rtol * abs(z[i, p]))
            part += r * r
        total += np.float64(part)
    return total


@compiled_kernel
def initial_norms(y0, f0, F, layer, tolerance, sums, low, high):
    """Columns of f0 = f(y0); `sums` gets y0 and f0 over the tolerance, squared, and what is not finite."""
    n, rows = F[0].shape[2], y0.shape[0]
    zeros, u = np.zeros((n, TILE), np.float32), np.zeros((n, TILE), np.float32)
    t, k = np.zeros((n, TILE), np.float32), np.zeros((n, TILE), np.float32)
    for start in range(low, high, TILE):
        width = min(TILE, high - start)
        read_columns(y0, start, u, width)
        field(u, t, F, layer, zeros[:, 0], k, width)
        write_columns(k, f0, start, width)
        sums[start // TILE, 0] = sum_of_scaled_squares(u, zeros, u, tolerance, rows, width)
        sums[start // TILE, 1] = sum_of_scaled_squares(k, zeros, u, tolerance, rows, width)
        sums[start // TILE, 2] = count_nonfinite(u, width)


@compiled_kernel
def second_norm(y0, f0, h0, F, layer, tolerance, sums, low, high):
    """`sums` gets f(y0 + h0 f0) - f0 over the tolerance, squared."""
    n = F[0].shape[2]
    zeros, u = np.zeros(n, np.float32), np.zeros((n, TILE), np.float32)
    v, t = np.zeros((n, TILE), np.float32), np.zeros((n, TILE), np.float32)
    k, k0 = np.zeros((n, TILE), np.float32), np.zeros((n, TILE), np.float32)
    for start in range(low, high, TILE):
        width = min(TILE, high - start)
        read_columns(y0, start, u, width)
        read_columns(f0, start, k0, width)
        mix(_ONE, u, h0, k0, v, width)
        field(v, t, F, layer, zeros, k, width)
        sums[start // TILE, 0] = sum_of_scaled_squares(k, k0, u, tolerance, y0.shape[0], width)


@compiled_kernel
def vjp_norms(
    y0, g, F, T, layer, tolerance, h0, factors, only_h0_gradient, needs_grad, totals, sums, low, high
):
    """Add to g the gradient of a function of the norms; `factors` are its derivatives over the norms' own.

    The norms are those of y0, f0 = f(y0) and f1 - f0 over the tolerance, f1 = f(y0 + h0 f0). Where
    `only_h0_gradient`, only the gradient by h0 through the last of them is computed, into `sums`.
    """
    n, rows = F[0].shape[2], y0.shape[0]
    (rtol, atol), (a0, a1, a2) = tolerance, factors
    zeros, u = np.zeros(n, np.float32), np.zeros((n, TILE), np.float32)
    k0, t0 = np.zeros((n, TILE), np.float32), np.zeros((n, TILE), np.float32)
    v, t1 = np.zeros((n, TILE), np.float32), np.zeros((n, TILE), np.float32)
    d, d1 = np.zeros((n, TILE), np.float32), np.zeros((n, TILE), np.float32)  # f1 - f0 and its gradient
    gy, gv = np.zeros((n, TILE), np.float32), np.zeros((n, TILE), np.float32)
    dz, gf = np.zeros((n, TILE), np.float32), np.zeros((n, TILE), np.float32)
    none, through_f1 = np.zeros((n, TILE), np.float32), a2 != _ZERO
    for start in range(low, high, TILE):
        width = min(TILE, high - start)
        read_columns(y0, start, u, width)
        field(u, t0, F, layer, zeros, k0, width)
        if through_f1:
            mix(_ONE, u, h0, k0, v, width)
            field(v, t1, F, layer, zeros, d, width)
            mix(_ONE, d, -_ONE, k0, d, width)
            for i in range(rows):
                for p in range(width):
                    scale = atol + rtol * abs(u[i, p])
                    d1[i, p] = a2 * d[i, p] / (scale * scale)
            field_vjp(d1, v, t1, F, T, layer, zeros, dz, gv, needs_grad, totals, width)
            if only_h0_gradient:
                sums[start // TILE, 0] = dot_difference(gv, k0, none, rows, width)
                continue
        read_columns(g, start, gy, width)
        for i in range(rows):
            for p in range(width):
                x, f, e = u[i, p], k0[i, p], d[i, p]
                scale = atol + rtol * abs(x)
                square = scale * scale
                scale_gradient = -rtol * (a0 * x * x + a1 * f * f + a2 * e * e) / (square * scale)
                signed = scale_gradient if x > _ZERO else (-scale_gradient if x < _ZERO else _ZERO)
                gy[i, p] += gv[i, p] + (a0 * x / square + signed)
                gf[i, p] = (a1 * f / square - d1[i, p]) + h0 * gv[i, p]
        field_vjp(gf, u, t0, F, T, layer, zeros, dz, gv, needs_grad, totals, width)
        mix(_ONE, gy, _ONE, gv, gy, width)
        write_columns(gy, g, start, width)
        if not through_f1:
            gv[:] = _ZERO
