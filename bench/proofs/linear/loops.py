"""Linear bounds of a flow, compiled for the CPU: a tile of columns at once, all of them along inner loops.

Evaluation k of the field is at a state s_k, with the pre-activation z_k = B s_k + b and the derivative
f_k = A tanh(z_k) + C s_k; states follow from the method's tableau. A linear bound of something at s_k goes
back through the evaluations before it, each tanh replaced by its lower or its upper line by the sign of its
coefficient, to one in the column's start u = u0 + S v, v in a box. Zhang et al., "Efficient neural network
robustness certification with general activation functions", NeurIPS 2018, arXiv 1811.00866, theorem 3.2.

``flow`` is (B, b, AT, BT, CT, linear, h, steps, stages, weights, zeros), the matrices of `FlowMatrices` or
their transposes with rows padded to whole blocks; ``linear``: some C is not 0.
"""

from __future__ import annotations

import numpy as np

from ....models.ode.kernels.cpu_tiles import (
    add_dense_product,
    compiled,
    mix,
    read_columns,
    set_dense_product,
    write_columns,
)
from .enclosing_lines import set_lines

TILE = 32
"""Columns of a tile."""


@compiled
def room_of_a_tile(n, d, stages):
    """Arrays that the functions below write to."""
    shape = (n, TILE)
    states = np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros((stages, n, TILE))
    return states, (np.zeros(shape), np.zeros(shape)), np.zeros((d, TILE)), np.zeros(TILE)


@compiled
def go_back(c, const, count, lower, upper, flow, states, chosen):
    """From a coefficient c (n, TILE) on s_count, or on the final state, to one on u, in place.

    What is constant is added to `const` (TILE,). `chosen` (K, 2, n, TILE) takes the line used for each unit,
    unless it is empty.
    """
    _B, b, AT, BT, CT, linear, h, steps, stages, weights, zeros = flow
    a, d, s, on_f = states
    n, Q = b.shape[1], weights.shape[0]
    inside = count % Q  # evaluations of its own step before this one
    for m in range(inside):
        mix(0.0, c, h * stages[inside, m], c, on_f[m], TILE)
    j = count - 1
    while j >= 0:
        if j % Q == Q - 1:  # c is on the state after this step
            for m in range(Q):
                mix(0.0, c, h * weights[m], c, on_f[m], TILE)
        layer, stage = j // (steps * Q), j % Q
        w = on_f[stage]
        set_dense_product(AT[layer], zeros, w, a, TILE)
        low, high = lower[j], upper[j]
        for m in range(n):
            bias = b[layer, m]
            for p in range(TILE):
                v = a[m, p]
                slope = low[0, m, p] if v > 0 else high[0, m, p]
                offset = low[1, m, p] if v > 0 else high[1, m, p]
                d[m, p] = v * slope
                const[p] += v * (offset + slope * bias)
            if chosen.shape[0] > 0:
                for p in range(TILE):
                    chosen[j, 0, m, p] = low[0, m, p] if a[m, p] > 0 else high[0, m, p]
                    chosen[j, 1, m, p] = low[1, m, p] if a[m, p] > 0 else high[1, m, p]
        set_dense_product(BT[layer], zeros, d, s, TILE)
        if linear:
            add_dense_product(CT[layer], w, s, TILE)
        mix(1.0, c, 1.0, s, c, TILE)
        for m in range(stage):
            if stages[stage, m] != 0:
                mix(1.0, on_f[m], h * stages[stage, m], s, on_f[m], TILE)
        j -= 1


@compiled
def add_least(c, u0, low, high, ST, zeros, g, total):
    """total (TILE,) += the least c . (u0 + S v), v between low and high (d, TILE)."""
    set_dense_product(ST, zeros, c, g, TILE)
    for i in range(c.shape[0]):
        for p in range(TILE):
            total[p] += c[i, p] * u0[i, p]
    for q in range(ST.shape[0]):
        for p in range(TILE):
            v = g[q, p]
            total[p] += v * (low[q, p] if v > 0 else high[q, p])


@compiled
def enclose_tile(u0, low, high, ST, zeros, flow, z_low, z_high, lower, upper, room):
    """Bounds (K, n, TILE) of all pre-activations of a tile's columns, and their lines."""
    states, (c, tl), g, const = room
    B, b = flow[0], flow[1]
    per_layer = flow[7] * flow[9].shape[0]
    none = lower[:0]
    for k in range(z_low.shape[0]):
        layer = k // per_layer
        for i in range(b.shape[1]):
            for side in range(2):
                sign = 1.0 if side == 0 else -1.0
                for m in range(b.shape[1]):
                    w = sign * B[layer, i, m]
                    for p in range(TILE):
                        c[m, p] = w
                const[:] = sign * b[layer, i]
                go_back(c, const, k, lower, upper, flow, states, none)
                add_least(c, u0, low, high, ST, zeros, g, const)
                if side == 0:
                    for p in range(TILE):
                        z_low[k, i, p] = const[p]
                else:
                    for p in range(TILE):
                        z_high[k, i, p] = max(-const[p], z_low[k, i, p])
        mix(0.5, z_low[k], 0.5, z_high[k], c, TILE)
        set_lines(z_low[k], z_high[k], c, lower[k], upper[k], tl, states[0])


@compiled
def enclose(u0, low, high, ST, flow, z_low, z_high):
    """Bounds (tiles, K, n, TILE) of all pre-activations, of columns (n, M), M a multiple of TILE."""
    d, n, K = ST.shape[0], z_low.shape[2], z_low.shape[1]
    lower, upper = np.zeros((K, 2, n, TILE)), np.zeros((K, 2, n, TILE))
    start, box_low, box_high = np.zeros((n, TILE)), np.zeros((d, TILE)), np.zeros((d, TILE))
    room, zeros = room_of_a_tile(n, d, flow[9].shape[0]), np.zeros(d)
    for tile in range(z_low.shape[0]):
        read_columns(u0, tile * TILE, start, TILE)
        read_columns(low, tile * TILE, box_low, TILE)
        read_columns(high, tile * TILE, box_high, TILE)
        enclose_tile(start, box_low, box_high, ST, zeros, flow, z_low[tile], z_high[tile], lower, upper, room)


@compiled
def linear_bound(w, u0, ST, flow, z_low, z_high, at, chosen, slopes):
    """A linear lower bound of the sum over columns of w . (final state): its constant; `slopes` (d, M) on v.

    A tangent is taken as near as is allowed to `at`, shaped as the bounds of the pre-activations. `chosen`
    (tiles, K, 2, n, TILE) takes the lines that the bound uses.
    """
    d, n, K = ST.shape[0], z_low.shape[2], z_low.shape[1]
    lower, upper = np.zeros((K, 2, n, TILE)), np.zeros((K, 2, n, TILE))
    states, (c, tl), g, const = room_of_a_tile(n, d, flow[9].shape[0])
    total, zeros = 0.0, np.zeros(d)
    for tile in range(z_low.shape[0]):
        for k in range(K):
            set_lines(z_low[tile, k], z_high[tile, k], at[tile, k], lower[k], upper[k], tl, states[0])
        read_columns(w, tile * TILE, c, TILE)
        const[:] = 0.0
        go_back(c, const, K, lower, upper, flow, states, chosen[tile])
        for i in range(n):
            for p in range(TILE):
                const[p] += c[i, p] * u0[i, tile * TILE + p]
        set_dense_product(ST, zeros, c, g, TILE)
        write_columns(g, slopes, tile * TILE, TILE)
        for p in range(TILE):
            total += const[p]
    return total


@compiled
def relaxed_values(v, u0, S, A, C, flow, chosen, z):
    """z (tiles, K, n, TILE): the pre-activations at v (d, M), each tanh replaced by its chosen line."""
    B, b, _AT, _BT, _CT, linear, h, steps, stages, weights, zeros = flow
    n, Q = b.shape[1], weights.shape[0]
    x, s, t, moved = (
        np.zeros((n, TILE)),
        np.zeros((n, TILE)),
        np.zeros((n, TILE)),
        np.zeros((S.shape[1], TILE)),
    )
    f = np.zeros((Q, n, TILE))
    for tile in range(z.shape[0]):
        read_columns(u0, tile * TILE, x, TILE)
        read_columns(v, tile * TILE, moved, TILE)
        add_dense_product(S, moved, x, TILE)
        for k in range(z.shape[1]):
            layer, stage = k // (steps * Q), k % Q
            s[:] = x
            for m in range(stage):
                mix(1.0, s, h * stages[stage, m], f[m], s, TILE)
            set_dense_product(B[layer], b[layer], s, t, TILE)
            for m in range(n):
                for p in range(TILE):
                    z[tile, k, m, p] = t[m, p]
                    t[m, p] = chosen[tile, k, 0, m, p] * t[m, p] + chosen[tile, k, 1, m, p]
            set_dense_product(A[layer], zeros, t, f[stage], TILE)
            if linear:
                add_dense_product(C[layer], s, f[stage], TILE)
            if stage == Q - 1:
                for m in range(Q):
                    mix(1.0, x, h * weights[m], f[m], x, TILE)
