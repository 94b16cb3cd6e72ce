"""Compiled loops of `cpu`: Shu-Osher steps of tanh flows on tiles of columns that stay in cache.

Every loop that takes time runs along the columns of a tile, so that LLVM turns it into vector
instructions. The functions release the GIL: threads work on disjoint ranges of columns.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .rational_tanh import SATURATED, P, Q

TILE = 256
"""Columns of a tile: a few of n = 8 channels fit the first-level cache, a flow's worth the second."""
BLOCK = 8
"""Rows that a product takes at once: with n = 8 a whole column of the state."""

_ZERO, _ONE, _SATURATED = np.float32(0), np.float32(1), np.float32(SATURATED)
_P0, _P1, _P2, _P3, _P4 = (np.float32(c) for c in P)
_Q1, _Q2, _Q3, _Q4 = (np.float32(c) for c in Q)

# error_model="numpy": Python's own check for a division by zero would keep tanh from being vectorised.
_compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})


@_compiled
def _tanh(x, width):
    for i in range(x.shape[0]):
        for p in range(width):
            z = x[i, p]
            c = _SATURATED if z > _SATURATED else z
            c = -_SATURATED if c < -_SATURATED else c
            s = c * c
            top = c * (_P0 + s * (_P1 + s * (_P2 + s * (_P3 + s * _P4))))
            t = top / (_ONE + s * (_Q1 + s * (_Q2 + s * (_Q3 + s * _Q4))))
            t = _ONE if t > _ONE or z >= _SATURATED else t
            x[i, p] = -_ONE if t < -_ONE or z <= -_SATURATED else t  # NaN stays NaN: it compares false


@_compiled
def _mix(a, x, b, y, out, width):
    """out = a x + b y."""
    for i in range(out.shape[0]):
        for p in range(width):
            out[i, p] = a * x[i, p] + b * y[i, p]


@_compiled
def _read(x, start, out, width):
    """Columns start .. start + width of x into out."""
    for i in range(min(x.shape[0], out.shape[0])):
        row = x[i, start : start + width]  # an index of start + p might be negative, for all LLVM knows
        for p in range(width):
            out[i, p] = row[p]


@_compiled
def _write(x, out, start, width):
    """The columns of x into start .. start + width of out."""
    for i in range(out.shape[0]):
        row = out[i, start : start + width]
        for p in range(width):
            row[p] = x[i, p]


@_compiled
def _times_slope(t, y, width):
    """y = y (1 - t^2), elementwise: through tanh."""
    for i in range(y.shape[0]):
        for p in range(width):
            y[i, p] *= _ONE - t[i, p] * t[i, p]


@_compiled
def _set_product(M, b, x, y, width):
    """y = M x + b, the columns of M taken by the block."""
    for i in range(M.shape[0]):
        m0, m1, m2, m3 = M[i, 0], M[i, 1], M[i, 2], M[i, 3]
        m4, m5, m6, m7, c = M[i, 4], M[i, 5], M[i, 6], M[i, 7], b[i]
        for p in range(width):
            y[i, p] = (
                c
                + ((m0 * x[0, p] + m1 * x[1, p]) + (m2 * x[2, p] + m3 * x[3, p]))
                + ((m4 * x[4, p] + m5 * x[5, p]) + (m6 * x[6, p] + m7 * x[7, p]))
            )
    for k in range(BLOCK, M.shape[1], BLOCK):
        _add_block(M[:, k : k + BLOCK], x[k : k + BLOCK], y, width)


@_compiled
def _add_product(M, x, y, width):
    """y += M x."""
    for k in range(0, M.shape[1], BLOCK):
        _add_block(M[:, k : k + BLOCK], x[k : k + BLOCK], y, width)


@_compiled
def _add_block(M, x, y, width):
    for i in range(M.shape[0]):
        m0, m1, m2, m3 = M[i, 0], M[i, 1], M[i, 2], M[i, 3]
        m4, m5, m6, m7 = M[i, 4], M[i, 5], M[i, 6], M[i, 7]
        for p in range(width):
            y[i, p] += ((m0 * x[0, p] + m1 * x[1, p]) + (m2 * x[2, p] + m3 * x[3, p])) + (
                (m4 * x[4, p] + m5 * x[5, p]) + (m6 * x[6, p] + m7 * x[7, p])
            )


@_compiled
def _set_pairs(index, value, x, y, width):
    """y = M x, where row i of M holds value[i, 0] and value[i, 1] at columns index[i, 0] and index[i, 1]."""
    for i in range(index.shape[0]):
        j, k, a, b = index[i, 0], index[i, 1], value[i, 0], value[i, 1]
        for p in range(width):
            y[i, p] = a * x[j, p] + b * x[k, p]


@_compiled
def _add_pairs(index, value, x, y, width):
    """y += M x, M as in `_set_pairs`."""
    for i in range(index.shape[0]):
        j, k, a, b = index[i, 0], index[i, 1], value[i, 0], value[i, 1]
        for p in range(width):
            y[i, p] += a * x[j, p] + b * x[k, p]


@_compiled
def _set(M, layer, x, y, zeros, width):
    """y = M x, for a matrix as `cpu` hands it over: dense, and where it has few entries, as pairs."""
    dense, index, value, sparse = M
    if sparse:
        _set_pairs(index[layer], value[layer], x, y, width)
    else:
        _set_product(dense[layer], zeros, x, y, width)


@_compiled
def _add(M, layer, x, y, width):
    """y += M x, M as in `_set`."""
    dense, index, value, sparse = M
    if sparse:
        _add_pairs(index[layer], value[layer], x, y, width)
    else:
        _add_product(dense[layer], x, y, width)


@_compiled
def _add_outer(x, y, total, width):
    """total += x y^T."""
    for k in range(0, y.shape[0], BLOCK):
        _add_outer_block(x, y[k : k + BLOCK], total[:, k : k + BLOCK], width)


@_compiled
def _add_outer_block(x, y, total, width):
    for i in range(total.shape[0]):
        s0, s1, s2, s3, s4, s5, s6, s7 = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
        for p in range(width):
            c = x[i, p]
            s0 += c * y[0, p]
            s1 += c * y[1, p]
            s2 += c * y[2, p]
            s3 += c * y[3, p]
            s4 += c * y[4, p]
            s5 += c * y[5, p]
            s6 += c * y[6, p]
            s7 += c * y[7, p]
        total[i, 0] += s0
        total[i, 1] += s1
        total[i, 2] += s2
        total[i, 3] += s3
        total[i, 4] += s4
        total[i, 5] += s5
        total[i, 6] += s6
        total[i, 7] += s7


@_compiled
def _add_sums(x, total, width):
    """total += the sums of the rows of x."""
    for i in range(total.shape[0]):
        s = _ZERO
        for p in range(width):
            s += x[i, p]
        total[i] += s


@_compiled
def _euler(u, t, B, b, G, E, linear, layer, zeros, out, width):
    """t = tanh(B u + b); out = E u + G t, where E = I unless `linear`."""
    _set_product(B[layer], b[layer], u, t, width)
    _tanh(t, width)
    if linear:
        _set(E, layer, u, out, zeros, width)
    else:
        _read(u, 0, out, width)
    _add(G, layer, t, out, width)


@_compiled
def forward(x, out, B, b, G, E, linear, alpha, steps, low, high):
    """Columns low .. high of `out` from those of `x`: `steps` steps in each layer.

    G and E come as `_set` takes them. The rows of dense matrices are padded with zeros to whole blocks; the
    state is padded here, and its further rows stay 0.
    """
    n = B.shape[2]
    zeros = np.zeros(n, np.float32)
    state, u = np.zeros((n, TILE), np.float32), np.zeros((n, TILE), np.float32)
    v, t = np.zeros((n, TILE), np.float32), np.zeros((n, TILE), np.float32)
    for start in range(low, high, TILE):
        width = min(TILE, high - start)
        _read(x, start, state, width)
        for layer in range(B.shape[0]):
            for _ in range(steps):
                _euler(state, t, B, b, G, E, linear, layer, zeros, u, width)
                for stage in range(1, alpha.shape[0]):
                    _euler(u, t, B, b, G, E, linear, layer, zeros, v, width)
                    _mix(alpha[stage], state, _ONE - alpha[stage], v, u, width)
                state, u = u, state
        _write(state, out, start, width)


@_compiled
def backward(x, g_out, g_in, B, b, G, E, BT, GT, ET, linear, alpha, steps, wants, dB, db, dG, dE, low, high):
    """Columns low .. high of `g_in`, and what they add to dB and db, dG, dE where `wants` says so.

    BT, GT, ET are the transposed matrices, their rows padded as in `forward`. The inputs and the tanh of
    every stage are computed again, tile by tile: nothing but the flow's input is kept between the passes.
    """
    wants_B, wants_G, wants_E = wants
    n, stages = B.shape[2], alpha.shape[0]
    count = B.shape[0] * steps * stages
    zeros = np.zeros(n, np.float32)
    inputs, tanhs = np.zeros((count, n, TILE), np.float32), np.zeros((count, n, TILE), np.float32)
    state, v = np.zeros((n, TILE), np.float32), np.zeros((n, TILE), np.float32)
    g, kept, dz = (
        np.zeros((n, TILE), np.float32),
        np.zeros((n, TILE), np.float32),
        np.zeros((n, TILE), np.float32),
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
                    _euler(u, t, B, b, G, E, linear, layer, zeros, v, width)
                    j += 1
                    to = inputs[j] if stage + 1 < stages else state
                    _mix(alpha[stage], state, _ONE - alpha[stage], v, to, width)
        _read(g_out, start, g, width)
        for layer in range(B.shape[0] - 1, -1, -1):
            for _ in range(steps):
                kept[:] = _ZERO
                for stage in range(stages - 1, -1, -1):
                    j -= 1
                    u, t = inputs[j], tanhs[j]
                    if alpha[stage] > 0:
                        _mix(_ONE, kept, alpha[stage], g, kept, width)
                        _mix(_ZERO, kept, _ONE - alpha[stage], g, g, width)
                    _set(GT, layer, g, dz, zeros, width)
                    _times_slope(t, dz, width)
                    if wants_B:
                        _add_outer(dz, u, dB[layer], width)
                        _add_sums(dz, db[layer], width)
                    if wants_G:
                        _add_outer(g, t, dG[layer], width)
                    if wants_E:
                        _add_outer(g, u, dE[layer], width)
                    if linear:
                        _set(ET, layer, g, v, zeros, width)
                        g, v = v, g
                    _add_product(BT[layer], dz, g, width)
                if stages > 1:
                    _mix(_ONE, g, _ONE, kept, g, width)
        _write(g, g_in, start, width)
