"""Fixed-step path on a CPU, compiled by numba: all Shu-Osher steps of a tanh flow, tile by tile."""

from __future__ import annotations

import numpy as np

from .cpu_tiles import (
    TILE,
    add_dense_product,
    add_matrix_product,
    add_outer,
    add_row_sums,
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


@compiled_kernel
def euler_step(u, t, B, b, G, E, linear, layer, zeros, out, width):
    """t = tanh(B u + b); out = E u + G t, where E = I unless `linear`."""
    set_dense_product(B[layer], b[layer], u, t, width)
    tanh(t, width)
    if linear:
        set_matrix_product(E, layer, u, out, zeros, width)
    else:
        read_columns(u, 0, out, width)
    add_matrix_product(G, layer, t, out, width)


@compiled_kernel
def forward(x, out, B, b, G, E, linear, alpha, steps, low, high):
    """Columns low .. high of `out` from those of `x`: `steps` steps in each layer.

    G and E come as `set_matrix_product` takes them. The rows of dense matrices are padded with zeros to
    whole blocks; the state is padded here, and its further rows stay 0.
    """
    n = B.shape[2]
    zeros = np.zeros(n, np.float32)
    state, u = np.zeros((n, TILE), np.float32), np.zeros((n, TILE), np.float32)
    v, t = np.zeros((n, TILE), np.float32), np.zeros((n, TILE), np.float32)
    for start in range(low, high, TILE):
        width = min(TILE, high - start)
        read_columns(x, start, state, width)
        for layer in range(B.shape[0]):
            for _ in range(steps):
                euler_step(state, t, B, b, G, E, linear, layer, zeros, u, width)
                for stage in range(1, alpha.shape[0]):
                    euler_step(u, t, B, b, G, E, linear, layer, zeros, v, width)
                    mix(alpha[stage], state, _ONE - alpha[stage], v, u, width)
                state, u = u, state
        write_columns(state, out, start, width)


@compiled_kernel
def backward(
    x, g_out, g_in, B, b, G, E, BT, GT, ET, linear, alpha, steps, needs_grad, dB, db, dG, dE, low, high
):
    """Columns low .. high of `g_in`, and what they add to dB and db, dG, dE where `needs_grad` says so.

    BT, GT, ET are the transposed matrices, their rows padded as in `forward`. The inputs and the tanh of
    every stage are computed again, tile by tile: nothing but the flow's input is g_start between the passes.
    """
    needs_B, needs_G, needs_E = needs_grad
    n, stages = B.shape[2], alpha.shape[0]
    count = B.shape[0] * steps * stages
    zeros = np.zeros(n, np.float32)
    inputs, tanhs = np.zeros((count, n, TILE), np.float32), np.zeros((count, n, TILE), np.float32)
    state, v = np.zeros((n, TILE), np.float32), np.zeros((n, TILE), np.float32)
    g, g_start, dz = (
        np.zeros((n, TILE), np.float32),
        np.zeros((n, TILE), np.float32),
        np.zeros((n, TILE), np.float32),
    )
    for start in range(low, high, TILE):
        width = min(TILE, high - start)
        read_columns(x, start, state, width)
        j = 0
        for layer in range(B.shape[0]):
            for _ in range(steps):
                read_columns(state, 0, inputs[j], width)
                for stage in range(stages):
                    u, t = inputs[j], tanhs[j]
                    euler_step(u, t, B, b, G, E, linear, layer, zeros, v, width)
                    j += 1
                    to = inputs[j] if stage + 1 < stages else state
                    mix(alpha[stage], state, _ONE - alpha[stage], v, to, width)
        read_columns(g_out, start, g, width)
        for layer in range(B.shape[0] - 1, -1, -1):
            for _ in range(steps):
                g_start[:] = _ZERO
                for stage in range(stages - 1, -1, -1):
                    j -= 1
                    u, t = inputs[j], tanhs[j]
                    if alpha[stage] > 0:
                        mix(_ONE, g_start, alpha[stage], g, g_start, width)
                        mix(_ZERO, g_start, _ONE - alpha[stage], g, g, width)
                    set_matrix_product(GT, layer, g, dz, zeros, width)
                    tanh_vjp(t, dz, width)
                    if needs_B:
                        add_outer(dz, u, dB[layer], width)
                        add_row_sums(dz, db[layer], width)
                    if needs_G:
                        add_outer(g, t, dG[layer], width)
                    if needs_E:
                        add_outer(g, u, dE[layer], width)
                    if linear:
                        set_matrix_product(ET, layer, g, v, zeros, width)
                        g, v = v, g
                    add_dense_product(BT[layer], dz, g, width)
                if stages > 1:
                    mix(_ONE, g, _ONE, g_start, g, width)
        write_columns(g, g_in, start, width)
