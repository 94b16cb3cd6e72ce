"""Adaptive path on a CPU, compiled by numba: a Dormand-Prince step of a tanh field, and its gradient.

A field comes as ``F`` = (B, b, A, C, linear), transposed as ``T`` = (B^T, A^T, C^T); B and b are padded
arrays over the layers, A and C what `cpu_tiles.set_matrix_product` takes. `rows` = (index, value, count):
row s holds the indices of the stages that stage s is a combination of, their weights times h, and their
number; `row` is one such row. What a tile adds to a norm or to a gradient by h is summed in float32 along a
row and in float64 over rows, and stored in the tile's row of `sums`: no result depends on the number of
threads.
"""

from __future__ import annotations

import numpy as np

from .cpu_tiles import (
    TILE,
    add_matrix_product,
    add_outer,
    add_row_sums,
    compiled_helper,
    compiled_kernel,
    mix,
    read_columns,
    set_dense_product,
    set_matrix_product,
    tanh,
    tanh_vjp,
    write_columns,
)

_ZERO, _ONE = np.float32(0), np.float32(1)
_LARGEST = np.finfo(np.float32).max


@compiled_helper
def combine_stages(scale, base, k, row, out, width):
    """out = scale base + the stages of `row`, weighted; it is filled up with zeros times its own first."""
    index, value, count = row
    j0, j1, j2, c0, c1, c2 = index[0], index[1], index[2], value[0], value[1], value[2]
    for i in range(out.shape[0]):
        for p in range(width):
            out[i, p] = scale * base[i, p] + (c0 * k[j0, i, p] + (c1 * k[j1, i, p] + c2 * k[j2, i, p]))
    if count > 3:
        j0, j1, j2, c0, c1, c2 = index[3], index[4], index[5], value[3], value[4], value[5]
        for i in range(out.shape[0]):
            for p in range(width):
                out[i, p] += c0 * k[j0, i, p] + (c1 * k[j1, i, p] + c2 * k[j2, i, p])


@compiled_helper
def stage_row(rows, s):
    """Row `s` of `rows`."""
    index, value, count = rows
    return index[s], value[s], count[s]


@compiled_helper
def field(u, t, F, layer, zeros, out, width):
    """t = tanh(B u + b); out = A t + C u."""
    B, b, A, C, linear = F
    set_dense_product(B[layer], b[layer], u, t, width)
    tanh(t, width)
    set_matrix_product(A, layer, t, out, zeros, width)
    if linear:
        add_matrix_product(C, layer, u, out, width)


@compiled_helper
def field_vjp(g, u, t, F, T, layer, zeros, dz, out, needs_grad, totals, width):
    """out = the field's transposed Jacobian at u times g; adds to the gradients of its matrices."""
    (BT, AT, CT), (needs_B, needs_A, needs_C), (dB, db, dA, dC) = T, needs_grad, totals
    set_matrix_product(AT, layer, g, dz, zeros, width)
    tanh_vjp(t, dz, width)
    if needs_B:
        add_outer(dz, u, dB[layer], width)
        add_row_sums(dz, db[layer], width)
    if needs_A:
        add_outer(g, t, dA[layer], width)
    if needs_C:
        add_outer(g, u, dC[layer], width)
    set_dense_product(BT[layer], zeros, dz, out, width)
    if F[4]:
        add_matrix_product(CT, layer, g, out, width)


@compiled_helper
def dot_difference(x, y, z, rows, width):
    """x . (y - z)."""
    total = 0.0
    for i in range(rows):
        part = _ZERO
        for p in range(width):
            part += x[i, p] * (y[i, p] - z[i, p])
        total += np.float64(part)
    return total


@compiled_helper
def count_nonfinite(x, width):
    """How many entries are not finite."""
    count = _ZERO
    for i in range(x.shape[0]):
        for p in range(width):
            count += _ZERO if abs(x[i, p]) <= _LARGEST else _ONE
    return count


@compiled_kernel
def trial(y0, f0, y1, f1, F, layer, rows, error, last, ends, tolerance, sums, low, high):
    """A step from y0, with f0 = f(y0): columns of its y1 and f1 = f(y1); or where it `ends`, of `last` alone.

    `sums` gets that of the error over the tolerance, squared, and how many entries of y1 are not finite.
    """
    n = F[0].shape[2]
    k, zeros = np.zeros((7, n, TILE), np.float32), np.zeros(n, np.float32)
    y, u, t, e = (
        np.zeros((n, TILE), np.float32),
        np.zeros((n, TILE), np.float32),
        np.zeros((n, TILE), np.float32),
        np.zeros((n, TILE), np.float32),
    )
    rtol, atol = tolerance
    for start in range(low, high, TILE):
        width = min(TILE, high - start)
        read_columns(y0, start, y, width)
        read_columns(f0, start, k[0], width)
        for s in range(1, 7):
            combine_stages(_ONE, y, k, stage_row(rows, s), u, width)
            field(u, t, F, layer, zeros, k[s], width)
        combine_stages(_ZERO, y, k, error, e, width)
        total = 0.0
        for i in range(y0.shape[0]):
            part = _ZERO
            for p in range(width):
                before, after = abs(y[i, p]), abs(u[i, p])
                larger = before if after <= before else after  # NaN stays NaN
                r = e[i, p] / (atol + rtol * larger)
                part += r * r
            total += np.float64(part)
        sums[start // TILE, 0] = total
        sums[start // TILE, 1] = count_nonfinite(u, width)
        if ends:
            combine_stages(_ONE, y, k, last, u, width)
        else:
            write_columns(k[6], f1, start, width)
        write_columns(u, y1, start, width)


@compiled_kernel
def vjp_step(
    y0,
    g,
    F,
    T,
    layer,
    rows,
    columns,
    weights,
    stages,
    slope,
    shift,
    size_gradient,
    needs_grad,
    totals,
    sums,
    low,
    high,
):
    """Replace g, the gradient after a step y0 + sum_s weights[s] k_s, by the gradient before it.

    `columns` are `rows` transposed. The stages are computed again. Where `size_gradient`, `sums` gets the
    gradient by h: g times the stages of the row `slope`, and `shift` = 1 / h times what the stages' inputs
    add.
    """
    n = F[0].shape[2]
    inputs, tanhs = np.zeros((7, n, TILE), np.float32), np.zeros((7, n, TILE), np.float32)
    k, zeros = np.zeros((7, n, TILE), np.float32), np.zeros((n, TILE), np.float32)
    gy, v, dz = (
        np.zeros((n, TILE), np.float32),
        np.zeros((n, TILE), np.float32),
        np.zeros((n, TILE), np.float32),
    )
    for start in range(low, high, TILE):
        width = min(TILE, high - start)
        read_columns(y0, start, inputs[0], width)
        read_columns(g, start, gy, width)
        for s in range(stages):
            if s > 0:
                combine_stages(_ONE, inputs[0], k, stage_row(rows, s), inputs[s], width)
            field(inputs[s], tanhs[s], F, layer, zeros[:, 0], k[s], width)
        total = 0.0
        if size_gradient:
            combine_stages(_ZERO, gy, k, slope, v, width)
            total += dot_difference(gy, v, zeros, g.shape[0], width)
        for s in range(stages - 1, -1, -1):  # k[r] is the gradient of the input of stage r where r > s
            if s == stages - 1:
                mix(weights[s], gy, _ZERO, gy, v, width)
            else:
                combine_stages(weights[s], gy, k, stage_row(columns, s), v, width)
            field_vjp(v, inputs[s], tanhs[s], F, T, layer, zeros[:, 0], dz, k[s], needs_grad, totals, width)
            if size_gradient and s > 0 and shift > 0:
                total += shift * dot_difference(k[s], inputs[s], inputs[0], g.shape[0], width)
        for s in range(stages):
            mix(_ONE, gy, _ONE, k[s], gy, width)
        write_columns(gy, g, start, width)
        if size_gradient:
            sums[start // TILE, 0] = total
