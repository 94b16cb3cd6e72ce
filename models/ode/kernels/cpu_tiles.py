"""Operations on a tile of columns, compiled by numba for the CPU: tanh, products, outer products, sums.

Every loop that takes time runs along the columns of a tile, so that LLVM turns it into vector
instructions. The functions release the GIL: threads work on disjoint ranges of columns.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from .kernel_cache import njit_cached
from .rational_tanh import SATURATED, P, Q

TILE = 256
"""Columns of a tile: a few of n = 8 channels fit the first-level cache, a flow's worth the second."""
BLOCK = 8
"""Rows that a product takes at once: with n = 8 a whole column of the state."""

_ZERO, _ONE, _SATURATED = np.float32(0), np.float32(1), np.float32(SATURATED)
_P0, _P1, _P2, _P3, _P4 = (np.float32(c) for c in P)
_Q1, _Q2, _Q3, _Q4 = (np.float32(c) for c in Q)

# error_model="numpy": Python's own check for a division by zero would prevent LLVM from vectorising tanh.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "reassoc", "nsz", "arcp"},
}
compiled: Any = partial(njit_cached, **_OPTIONS)
compiled_helper = njit(**_OPTIONS)

SOURCES = ("rational_tanh.py", "cpu_tiles.py", "cpu_loops.py", "dopri5_loops.py", "initial_step_loops.py")
"""Files that a compiled kernel depends on."""


def compiled_kernel(function: Any) -> Any:
    """Compile `function`, cached until a file that its helpers may come from changes.

    By itself numba compares only the file that holds `function`, not those of the helpers it calls.
    """
    kernel = compiled(function)
    files = [(Path(__file__).parent / name).stat() for name in SOURCES]
    stored = getattr(getattr(kernel, "_cache", None), "_cache_file", None)
    if stored is not None:  # not with NUMBA_DISABLE_JIT
        stored._source_stamp = [(file.st_mtime, file.st_size) for file in files]
    return kernel


@compiled_kernel
def tanh(x, width):
    """x = tanh(x), elementwise, by `rational_tanh`."""
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


@compiled_kernel
def mix(a, x, b, y, out, width):
    """out = a x + b y."""
    for i in range(out.shape[0]):
        for p in range(width):
            out[i, p] = a * x[i, p] + b * y[i, p]


@compiled_kernel
def read_columns(x, start, out, width):
    """Columns start .. start + width of x into out."""
    for i in range(min(x.shape[0], out.shape[0])):
        row = x[i, start : start + width]  # an index of start + p might be negative, for all LLVM knows
        for p in range(width):
            out[i, p] = row[p]


@compiled_kernel
def write_columns(x, out, start, width):
    """The columns of x into start .. start + width of out."""
    for i in range(out.shape[0]):
        row = out[i, start : start + width]
        for p in range(width):
            row[p] = x[i, p]


@compiled_kernel
def tanh_vjp(t, y, width):
    """y = y (1 - t^2), elementwise: through tanh."""
    for i in range(y.shape[0]):
        for p in range(width):
            y[i, p] *= _ONE - t[i, p] * t[i, p]


@compiled_kernel
def set_dense_product(M, b, x, y, width):
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
        add_dense_block(M[:, k : k + BLOCK], x[k : k + BLOCK], y, width)


@compiled_kernel
def add_dense_product(M, x, y, width):
    """y += M x."""
    for k in range(0, M.shape[1], BLOCK):
        add_dense_block(M[:, k : k + BLOCK], x[k : k + BLOCK], y, width)


@compiled_kernel
def add_dense_block(M, x, y, width):
    """y += M x, for M of `BLOCK` columns."""
    for i in range(M.shape[0]):
        m0, m1, m2, m3 = M[i, 0], M[i, 1], M[i, 2], M[i, 3]
        m4, m5, m6, m7 = M[i, 4], M[i, 5], M[i, 6], M[i, 7]
        for p in range(width):
            y[i, p] += ((m0 * x[0, p] + m1 * x[1, p]) + (m2 * x[2, p] + m3 * x[3, p])) + (
                (m4 * x[4, p] + m5 * x[5, p]) + (m6 * x[6, p] + m7 * x[7, p])
            )


@compiled_kernel
def set_sparse_product(index, value, x, y, width):
    """y = M x, where row i of M holds value[i, 0] and value[i, 1] at columns index[i, 0] and index[i, 1]."""
    for i in range(index.shape[0]):
        j, k, a, b = index[i, 0], index[i, 1], value[i, 0], value[i, 1]
        for p in range(width):
            y[i, p] = a * x[j, p] + b * x[k, p]


@compiled_kernel
def add_sparse_product(index, value, x, y, width):
    """y += M x, M as in `set_sparse_product`."""
    for i in range(index.shape[0]):
        j, k, a, b = index[i, 0], index[i, 1], value[i, 0], value[i, 1]
        for p in range(width):
            y[i, p] += a * x[j, p] + b * x[k, p]


@compiled_kernel
def set_matrix_product(M, layer, x, y, zeros, width):
    """y = M x, for a matrix as `cpu` hands it over: dense, and where it has few entries, as pairs."""
    dense, index, value, sparse = M
    if sparse:
        set_sparse_product(index[layer], value[layer], x, y, width)
    else:
        set_dense_product(dense[layer], zeros, x, y, width)


@compiled_kernel
def add_matrix_product(M, layer, x, y, width):
    """y += M x, M as in `set_matrix_product`."""
    dense, index, value, sparse = M
    if sparse:
        add_sparse_product(index[layer], value[layer], x, y, width)
    else:
        add_dense_product(dense[layer], x, y, width)


@compiled_kernel
def add_outer(x, y, total, width):
    """total += x y^T."""
    for k in range(0, y.shape[0], BLOCK):
        add_outer_block(x, y[k : k + BLOCK], total[:, k : k + BLOCK], width)


@compiled_kernel
def add_outer_block(x, y, total, width):
    """total += x y^T, for y of `BLOCK` rows."""
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


@compiled_kernel
def add_row_sums(x, total, width):
    """total += the sums of the rows of x."""
    for i in range(total.shape[0]):
        s = _ZERO
        for p in range(width):
            s += x[i, p]
        total[i] += s
