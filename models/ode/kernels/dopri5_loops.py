"""Compiled loops of `dopri5`: a Dormand-Prince step of a tanh field on tiles of columns, and its transpose.

A field comes as ``F`` = (B, b, A, C, linear), transposed as ``T`` = (B^T, A^T, C^T); B and b are padded
arrays over the layers, A and C what `cpu_loops._set` takes. A `rows` = (index, value, count) holds at row s
the indices of the stages that stage s is made of, their weights times h, and how many there are; `row` is
one of them. What a tile adds to a norm or a derivative by h, rows in float32 and their sum in
float64, is left in its row of `sums`, so the result does not depend on the number of threads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from .cpu_loops import (
    TILE,
    _add,
    _add_outer,
    _add_sums,
    _compiled,
    _mix,
    _read,
    _set,
    _set_product,
    _tanh,
    _times_slope,
    _write,
)

_ZERO, _ONE = np.float32(0), np.float32(1)
SOURCES = ("rational_tanh.py", "cpu_loops.py", "dopri5_loops.py", "initial_step_loops.py")
_LARGEST = np.finfo(np.float32).max

_inner = njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})


def _entry(function: Any) -> Any:
    """Compile `function`, cached until a file that its helpers may come from changes.

    numba itself compares the one file that holds `function`, so a loop would outlive its own helpers.
    """
    kernel = _compiled(function)
    files = [(Path(__file__).parent / name).stat() for name in SOURCES]
    stored = getattr(getattr(kernel, "_cache", None), "_cache_file", None)
    if stored is not None:  # not with NUMBA_DISABLE_JIT
        stored._source_stamp = [(file.st_mtime, file.st_size) for file in files]
    return kernel


@_inner
def _combine(scale, base, k, row, out, width):
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


@_inner
def _row(rows, s):
    index, value, count = rows
    return index[s], value[s], count[s]


@_inner
def _field(u, t, F, layer, zeros, out, width):
    """t = tanh(B u + b); out = A t + C u."""
    B, b, A, C, linear = F
    _set_product(B[layer], b[layer], u, t, width)
    _tanh(t, width)
    _set(A, layer, t, out, zeros, width)
    if linear:
        _add(C, layer, u, out, width)


@_inner
def _pull(g, u, t, F, T, layer, zeros, dz, out, wants, totals, width):
    """out = the field's transposed Jacobian at u times g; adds to the gradients of its matrices."""
    (BT, AT, CT), (wants_B, wants_A, wants_C), (dB, db, dA, dC) = T, wants, totals
    _set(AT, layer, g, dz, zeros, width)
    _times_slope(t, dz, width)
    if wants_B:
        _add_outer(dz, u, dB[layer], width)
        _add_sums(dz, db[layer], width)
    if wants_A:
        _add_outer(g, t, dA[layer], width)
    if wants_C:
        _add_outer(g, u, dC[layer], width)
    _set_product(BT[layer], zeros, dz, out, width)
    if F[4]:
        _add(CT, layer, g, out, width)


@_inner
def _dot(x, y, z, rows, width):
    """x . (y - z)."""
    total = 0.0
    for i in range(rows):
        part = _ZERO
        for p in range(width):
            part += x[i, p] * (y[i, p] - z[i, p])
        total += np.float64(part)
    return total


@_inner
def _strange(x, width):
    """How many entries are not finite."""
    count = _ZERO
    for i in range(x.shape[0]):
        for p in range(width):
            count += _ZERO if abs(x[i, p]) <= _LARGEST else _ONE
    return count


@_entry
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
        _read(y0, start, y, width)
        _read(f0, start, k[0], width)
        for s in range(1, 7):
            _combine(_ONE, y, k, _row(rows, s), u, width)
            _field(u, t, F, layer, zeros, k[s], width)
        _combine(_ZERO, y, k, error, e, width)
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
        sums[start // TILE, 1] = _strange(u, width)
        if ends:
            _combine(_ONE, y, k, last, u, width)
        else:
            _write(k[6], f1, start, width)
        _write(u, y1, start, width)


@_entry
def pull_step(
    y0, g, F, T, layer, rows, columns, weights, stages, slope, shift, timed, wants, totals, sums, low, high
):
    """The gradient g, in place, from after a step y0 + sum_s weights[s] k_s to before it.

    `columns` are `rows` transposed. The stages are computed again. Where `timed`, `sums` gets the derivative
    by h: g times the stages of the row `slope`, and `shift` = 1 / h times what the stages' inputs add.
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
        _read(y0, start, inputs[0], width)
        _read(g, start, gy, width)
        for s in range(stages):
            if s > 0:
                _combine(_ONE, inputs[0], k, _row(rows, s), inputs[s], width)
            _field(inputs[s], tanhs[s], F, layer, zeros[:, 0], k[s], width)
        total = 0.0
        if timed:
            _combine(_ZERO, gy, k, slope, v, width)
            total += _dot(gy, v, zeros, g.shape[0], width)
        for s in range(stages - 1, -1, -1):  # k[r] is the gradient of the input of stage r where r > s
            if s == stages - 1:
                _mix(weights[s], gy, _ZERO, gy, v, width)
            else:
                _combine(weights[s], gy, k, _row(columns, s), v, width)
            _pull(v, inputs[s], tanhs[s], F, T, layer, zeros[:, 0], dz, k[s], wants, totals, width)
            if timed and s > 0 and shift > 0:
                total += shift * _dot(k[s], inputs[s], inputs[0], g.shape[0], width)
        for s in range(stages):
            _mix(_ONE, gy, _ONE, k[s], gy, width)
        _write(gy, g, start, width)
        if timed:
            sums[start // TILE, 0] = total
