"""Compiled loops of `_numba`: Shu-Osher steps of tanh flows on tiles of columns that stay in cache.

Every loop that takes time runs along the columns of a tile, so that LLVM turns it into vector
instructions. The functions release the GIL: threads work on disjoint ranges of columns.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ._rational import SATURATED, P, Q

TILE = 512
"""Columns of a tile: a few of n = 8 channels fit the first-level cache, a flow's worth the second."""

_ZERO, _ONE, _SATURATED = np.float32(0), np.float32(1), np.float32(SATURATED)
_P0, _P1, _P2, _P3, _P4 = (np.float32(c) for c in P)
_Q1, _Q2, _Q3, _Q4 = (np.float32(c) for c in Q)

# error_model="numpy": Python's own check for a division by zero would keep tanh from being vectorised.
_compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})


@_compiled
def _tanh(x, width):
    for i in range(x.shape[0]):
        row = x[i]
        for p in range(width):
            z = row[p]
            c = _SATURATED if z > _SATURATED else z
            c = -_SATURATED if c < -_SATURATED else c
            s = c * c
            top = c * (_P0 + s * (_P1 + s * (_P2 + s * (_P3 + s * _P4))))
            t = top / (_ONE + s * (_Q1 + s * (_Q2 + s * (_Q3 + s * _Q4))))
            t = _ONE if t > _ONE or z >= _SATURATED else t
            row[p] = -_ONE if t < -_ONE or z <= -_SATURATED else t  # NaN stays NaN: it compares false


@_compiled
def _fill(y, values, width):
    """Row i of y = values[i]."""
    for i in range(y.shape[0]):
        row, c = y[i], values[i]
        for p in range(width):
            row[p] = c


@_compiled
def _mix(a, x, b, y, out, width):
    """out = a x + b y."""
    for i in range(out.shape[0]):
        xi, yi, row = x[i], y[i], out[i]
        for p in range(width):
            row[p] = a * xi[p] + b * yi[p]


@_compiled
def _read(x, start, out, width):
    """Columns start .. start + width of x into out."""
    for i in range(out.shape[0]):
        xi, row = x[i, start : start + width], out[i]
        for p in range(width):
            row[p] = xi[p]


@_compiled
def _write(x, out, start, width):
    """The columns of x into start .. start + width of out."""
    for i in range(x.shape[0]):
        xi, row = x[i], out[i, start : start + width]
        for p in range(width):
            row[p] = xi[p]


@_compiled
def _times_slope(t, y, width):
    """y = y (1 - t^2), elementwise: through tanh."""
    for i in range(y.shape[0]):
        ti, row = t[i], y[i]
        for p in range(width):
            row[p] *= _ONE - ti[p] * ti[p]


@_compiled
def _add4(c0, c1, c2, c3, x0, x1, x2, x3, y, width):
    for p in range(width):
        y[p] += c0 * x0[p] + c1 * x1[p] + c2 * x2[p] + c3 * x3[p]


@_compiled
def _add1(c, x, y, width):
    for p in range(width):
        y[p] += c * x[p]


@_compiled
def _add_product(M, x, y, width):
    """y += M x."""
    n = M.shape[1]
    for i in range(M.shape[0]):
        for k in range(0, n - 3, 4):
            _add4(
                M[i, k],
                M[i, k + 1],
                M[i, k + 2],
                M[i, k + 3],
                x[k],
                x[k + 1],
                x[k + 2],
                x[k + 3],
                y[i],
                width,
            )
        for k in range(n - n % 4, n):
            _add1(M[i, k], x[k], y[i], width)


@_compiled
def _dot4(x, y0, y1, y2, y3, total, width):
    s0, s1, s2, s3 = _ZERO, _ZERO, _ZERO, _ZERO
    for p in range(width):
        s0 += x[p] * y0[p]
        s1 += x[p] * y1[p]
        s2 += x[p] * y2[p]
        s3 += x[p] * y3[p]
    total[0] += s0
    total[1] += s1
    total[2] += s2
    total[3] += s3


@_compiled
def _dot1(x, y, width):
    s = _ZERO
    for p in range(width):
        s += x[p] * y[p]
    return s


@_compiled
def _add_outer(x, y, total, width):
    """total += x y^T."""
    n = y.shape[0]
    for i in range(x.shape[0]):
        for k in range(0, n - 3, 4):
            _dot4(x[i], y[k], y[k + 1], y[k + 2], y[k + 3], total[i, k : k + 4], width)
        for k in range(n - n % 4, n):
            total[i, k] += _dot1(x[i], y[k], width)


@_compiled
def _add_sums(x, total, width):
    """total += the sums of the rows of x."""
    for i in range(x.shape[0]):
        row, s = x[i], _ZERO
        for p in range(width):
            s += row[p]
        total[i] += s


@_compiled
def _euler(u, t, B, b, G, E, linear, zeros, out, width):
    """t = tanh(B u + b); out = E u + G t, where E = I unless `linear`."""
    _fill(t, b, width)
    _add_product(B, u, t, width)
    _tanh(t, width)
    if linear:
        _fill(out, zeros, width)
        _add_product(E, u, out, width)
    else:
        _read(u, 0, out, width)
    _add_product(G, t, out, width)


@_compiled
def forward(x, out, B, b, G, E, linear, alpha, steps, low, high):
    """Columns low .. high of `out` from those of `x`: `steps` steps in each layer."""
    n = x.shape[0]
    zeros = np.zeros(n, np.float32)
    state, u = np.empty((n, TILE), np.float32), np.empty((n, TILE), np.float32)
    v, t = np.empty((n, TILE), np.float32), np.empty((n, TILE), np.float32)
    for start in range(low, high, TILE):
        width = min(TILE, high - start)
        _read(x, start, state, width)
        for layer in range(B.shape[0]):
            for _ in range(steps):
                _euler(state, t, B[layer], b[layer], G[layer], E[layer], linear, zeros, u, width)
                for stage in range(1, alpha.shape[0]):
                    _euler(u, t, B[layer], b[layer], G[layer], E[layer], linear, zeros, v, width)
                    _mix(alpha[stage], state, _ONE - alpha[stage], v, u, width)
                state, u = u, state
        _write(state, out, start, width)


@_compiled
def backward(x, g_out, g_in, B, b, G, E, BT, GT, ET, linear, alpha, steps, wants, dB, db, dG, dE, low, high):
    """Columns low .. high of `g_in`, and what they add to dB, db, dG, dE where these are wanted.

    BT, GT, ET are the transposed matrices. The inputs and the tanh of every stage are computed again, tile
    by tile: nothing but the flow's input is kept between the passes.
    """
    n, stages = x.shape[0], alpha.shape[0]
    count = B.shape[0] * steps * stages
    zeros = np.zeros(n, np.float32)
    inputs, tanhs = np.empty((count, n, TILE), np.float32), np.empty((count, n, TILE), np.float32)
    state, v = np.empty((n, TILE), np.float32), np.empty((n, TILE), np.float32)
    g, kept, dz = (
        np.empty((n, TILE), np.float32),
        np.empty((n, TILE), np.float32),
        np.empty((n, TILE), np.float32),
    )
    for start in range(low, high, TILE):
        width = min(TILE, high - start)
        _read(x, start, state, width)
        j = 0
        for layer in range(B.shape[0]):
            for _ in range(steps):
                _read(state, 0, inputs[j], width)
                for stage in range(stages):
                    u, t = inputs[j], tanhs[j]
                    _euler(u, t, B[layer], b[layer], G[layer], E[layer], linear, zeros, v, width)
                    j += 1
                    to = inputs[j] if stage + 1 < stages else state
                    _mix(alpha[stage], state, _ONE - alpha[stage], v, to, width)
        _read(g_out, start, g, width)
        for layer in range(B.shape[0] - 1, -1, -1):
            for _ in range(steps):
                _fill(kept, zeros, width)
                for stage in range(stages - 1, -1, -1):
                    j -= 1
                    u, t = inputs[j], tanhs[j]
                    if alpha[stage] > 0:
                        _mix(_ONE, kept, alpha[stage], g, kept, width)
                        _mix(_ZERO, kept, _ONE - alpha[stage], g, g, width)
                    _fill(dz, zeros, width)
                    _add_product(GT[layer], g, dz, width)
                    _times_slope(t, dz, width)
                    if wants:
                        _add_outer(g, t, dG[layer], width)
                        _add_outer(dz, u, dB[layer], width)
                        _add_sums(dz, db[layer], width)
                        if linear:
                            _add_outer(g, u, dE[layer], width)
                    if linear:
                        _fill(v, zeros, width)
                        _add_product(ET[layer], g, v, width)
                        g, v = v, g
                    _add_product(BT[layer], dz, g, width)
                if stages > 1:
                    _mix(_ONE, g, _ONE, kept, g, width)
        _write(g, g_in, start, width)
