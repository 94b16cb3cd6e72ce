"""Fixed-step path on a GPU, compiled by triton: Shu-Osher steps on (N, BLOCK) tiles, N the channels padded.

Rows from n on are zero in every state and gradient. Columns beyond the last have gradient zero, so that they
add nothing to any sum.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rational_tanh import SATURATED, P, Q

_SATURATED = tl.constexpr(SATURATED)
_P0, _P1, _P2, _P3, _P4 = (tl.constexpr(c) for c in P)
_Q1, _Q2, _Q3, _Q4 = (tl.constexpr(c) for c in Q)

# Sizes that a kernel is not compiled anew for. An M not known to be a multiple of 16 also keeps loads one
# column wide, in the layout of the computation.
_RUNTIME = ["M", "layers", "steps", "chunks"]


@triton.jit
def _tanh(z):
    c = tl.where(z > _SATURATED, _SATURATED, z)
    c = tl.where(c < -_SATURATED, -_SATURATED, c)
    s = c * c
    top = c * (_P0 + s * (_P1 + s * (_P2 + s * (_P3 + s * _P4))))
    t = top / (1.0 + s * (_Q1 + s * (_Q2 + s * (_Q3 + s * _Q4))))
    t = tl.where((t > 1.0) | (z >= _SATURATED), 1.0, t)
    return tl.where((t < -1.0) | (z <= -_SATURATED), -1.0, t)  # NaN stays NaN: it compares false


@triton.jit
def _times(M, x):
    """M x."""
    return tl.sum(M[:, :, None] * x[None, :, :], axis=1)


@triton.jit
def _transposed_times(M, x):
    """M^T x."""
    return tl.sum(M[:, :, None] * x[:, None, :], axis=0)


@triton.jit
def _outer(x, y):
    """x y^T column by column, (N, N, BLOCK): sums over columns are taken later."""
    return x[:, None, :] * y[None, :, :]


@triton.jit
def _rows(x, n: tl.constexpr, N: tl.constexpr):
    """`x` with its padding set to zero, whatever an infinite state made of it."""
    if n == N:
        return x
    return tl.where(tl.arange(0, N)[:, None] < n, x, 0.0)


@triton.jit
def _matrix(pointer, layer, n: tl.constexpr, N: tl.constexpr):
    i, k = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    return tl.load(pointer + layer * n * n + i * n + k, mask=(i < n) & (k < n), other=0.0)


@triton.jit
def _matrices(B_at, b_at, G_at, E_at, layer, n: tl.constexpr, N: tl.constexpr, LINEAR: tl.constexpr):
    i = tl.arange(0, N)
    B, G = _matrix(B_at, layer, n, N), _matrix(G_at, layer, n, N)
    b = tl.load(b_at + layer * n + i, mask=i < n, other=0.0)
    if LINEAR:
        return B, b, G, _matrix(E_at, layer, n, N)
    return B, b, G, G


@triton.jit
def _tile(block, M, n: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
    """Offsets of a block's entries in an (n, M) array, and which of them exist."""
    i = tl.arange(0, N)[:, None].to(tl.int64)
    column = (block * BLOCK + tl.arange(0, BLOCK))[None, :]
    return i * M + column, (i < n) & (column < M)


@triton.jit
def _tanh_of(u, B, b, n: tl.constexpr, N: tl.constexpr):
    return _rows(_tanh(_times(B, u) + b[:, None]), n, N)


@triton.jit
def _euler(u, t, G, E, n: tl.constexpr, N: tl.constexpr, LINEAR: tl.constexpr):
    """E u + G t, where E = I unless LINEAR."""
    if LINEAR:
        return _rows(_times(E, u), n, N) + _times(G, t)
    return u + _times(G, t)


@triton.jit(do_not_specialize=_RUNTIME)
def forward(
    x_at, out_at, starts_at, B_at, b_at, G_at, E_at, M, layers, steps,
    SAVE: tl.constexpr, n: tl.constexpr, N: tl.constexpr, LINEAR: tl.constexpr,
    STAGES: tl.constexpr, ALPHA1: tl.constexpr, ALPHA2: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`steps` steps in each layer; with SAVE the state before each goes to starts, (layers steps, n, M)."""
    size = n * M.to(tl.int64)
    at, inside = _tile(tl.program_id(0).to(tl.int64), M, n, N, BLOCK)
    x = tl.load(x_at + at, mask=inside, other=0.0)
    for layer in range(layers):
        B, b, G, E = _matrices(B_at, b_at, G_at, E_at, layer, n, N, LINEAR)
        for step in range(steps):
            if SAVE:
                tl.store(starts_at + (layer * steps + step) * size + at, x, mask=inside)
            u = _euler(x, _tanh_of(x, B, b, n, N), G, E, n, N, LINEAR)
            if STAGES > 1:
                v = _euler(u, _tanh_of(u, B, b, n, N), G, E, n, N, LINEAR)
                u = ALPHA1 * x + (1.0 - ALPHA1) * v
            if STAGES > 2:
                v = _euler(u, _tanh_of(u, B, b, n, N), G, E, n, N, LINEAR)
                u = ALPHA2 * x + (1.0 - ALPHA2) * v
            x = u
    tl.store(out_at + at, x, mask=inside)


@triton.jit
def _euler_back(g, u, t, dB, db, dG, dE, B, G, E, n: tl.constexpr, N: tl.constexpr,
                LINEAR: tl.constexpr, SUMS: tl.constexpr):  # fmt: skip
    """Gradient by u of an Euler step from u, and the sums with what the step adds to them."""
    dz = _transposed_times(G, g) * (1.0 - t * t)
    if SUMS & 1:
        dB += _outer(dz, u)
        db += dz
    if SUMS & 2:
        dG += _outer(g, t)
    if SUMS & 4:
        dE += _outer(g, u)
    if LINEAR:
        g = _rows(_transposed_times(E, g), n, N)
    return g + _rows(_transposed_times(B, dz), n, N), dB, db, dG, dE


@triton.jit(do_not_specialize=_RUNTIME)
def backward(
    g_at, starts_at, sums_at, B_at, b_at, G_at, E_at, M, layers, steps, chunks,
    SUMS: tl.constexpr, n: tl.constexpr, N: tl.constexpr, LINEAR: tl.constexpr,
    STAGES: tl.constexpr, ALPHA1: tl.constexpr, ALPHA2: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients in place: g by the flow's output becomes g by its input.

    A program carries its `chunks` blocks back through one layer after the other and writes what they add to
    the parameters' gradients side by side to sums, (programs, layers, n, 2 n + 1 or 3 n + 1 where LINEAR):
    dB, dG, db, dE. SUMS says which: 1 for dB and db, 2 for dG, 4 for dE, added up.
    """
    program = tl.program_id(0).to(tl.int64)
    size = n * M.to(tl.int64)
    WIDTH: tl.constexpr = 3 * n + 1 if LINEAR else 2 * n + 1
    i, k = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    inner = (i < n) & (k < n)
    for count in range(layers):
        layer = layers - 1 - count
        B, b, G, E = _matrices(B_at, b_at, G_at, E_at, layer, n, N, LINEAR)
        dB = tl.zeros((N, N, BLOCK), tl.float32) if SUMS & 1 else 0.0
        db = tl.zeros((N, BLOCK), tl.float32) if SUMS & 1 else 0.0
        dG = tl.zeros((N, N, BLOCK), tl.float32) if SUMS & 2 else 0.0
        dE = tl.zeros((N, N, BLOCK), tl.float32) if SUMS & 4 else 0.0
        for chunk in range(chunks):
            at, inside = _tile(program * chunks + chunk, M, n, N, BLOCK)
            g = tl.load(g_at + at, mask=inside, other=0.0)
            for step in range(steps):
                start = layer * steps + (steps - 1 - step)
                x = tl.load(starts_at + start * size + at, mask=inside, other=0.0)
                t = _tanh_of(x, B, b, n, N)
                g_start = tl.zeros((N, BLOCK), tl.float32)
                if STAGES > 1:
                    u1 = _euler(x, t, G, E, n, N, LINEAR)
                    t1 = _tanh_of(u1, B, b, n, N)
                    if STAGES > 2:
                        u2 = ALPHA1 * x + (1.0 - ALPHA1) * _euler(u1, t1, G, E, n, N, LINEAR)
                        t2 = _tanh_of(u2, B, b, n, N)
                        g_start += ALPHA2 * g
                        g, dB, db, dG, dE = _euler_back(
                            (1.0 - ALPHA2) * g, u2, t2, dB, db, dG, dE, B, G, E, n, N, LINEAR, SUMS
                        )
                    g_start += ALPHA1 * g
                    g, dB, db, dG, dE = _euler_back(
                        (1.0 - ALPHA1) * g, u1, t1, dB, db, dG, dE, B, G, E, n, N, LINEAR, SUMS
                    )
                g, dB, db, dG, dE = _euler_back(g, x, t, dB, db, dG, dE, B, G, E, n, N, LINEAR, SUMS)
                g += g_start
            tl.store(g_at + at, g, mask=inside)
        to = sums_at + (program * layers + layer) * n * WIDTH + i * WIDTH
        if SUMS & 1:
            tl.store(to + k, tl.sum(dB, axis=2), mask=inner)
            tl.store(to + 2 * n, tl.sum(db, axis=1)[:, None], mask=i < n)
        if SUMS & 2:
            tl.store(to + n + k, tl.sum(dG, axis=2), mask=inner)
        if SUMS & 4:
            tl.store(to + 2 * n + 1 + k, tl.sum(dE, axis=2), mask=inner)
        tl.debug_barrier()  # the next layer reads what this one wrote
