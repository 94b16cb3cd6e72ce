"""Lines that enclose tanh on an interval, compiled for the CPU along the columns of a tile."""

from __future__ import annotations

from ....models.ode.kernels.cpu_tiles import compiled

SLACK = 1e-11
"""Offsets are moved outwards by this times 2 + |l| + |u| on [l, u]: more than tanh and the products round."""
NARROW = 1e-9
"""Intervals that are narrower get level lines."""


@compiled
def tanh_within_slack(x):
    """tanh(x) within 1e-13, in operations that LLVM turns into vector instructions."""
    y = abs(x)
    y = -(y if y < 18.0 else 18.0) / 64
    e = 1 + y * (
        1 + y / 2 * (1 + y / 3 * (1 + y / 4 * (1 + y / 5 * (1 + y / 6 * (1 + y / 7 * (1 + y / 8))))))
    )
    for _ in range(7):  # exp(y / 128) became exp(y)
        e = e * e
    t = (1 - e) / (1 + e)
    return t if x > 0 else -t


@compiled
def set_lower_lines(z_low, z_high, tl, tu, at, sign, slopes, offsets):
    """Lines below tanh for a sign of 1, above it for -1, on [l, u] = [z_low, z_high], all (n, M).

    tl and tu are tanh(l) and tanh(u). Below: a tangent, or the chord where no tangent stays below. The
    tangent is the one nearest to `at`. Where l < 0 < u it is lowered until it does not exceed tanh(u): tanh
    is convex before 0 and concave after it, so a tangent at t <= 0 that is below tanh at u is below it on all
    of [l, u]. Above: the same for -tanh(-x).
    """
    for i in range(z_low.shape[0]):
        for p in range(z_low.shape[1]):
            if sign > 0:
                lo, up, ylo, yup, a = z_low[i, p], z_high[i, p], tl[i, p], tu[i, p], at[i, p]
            else:
                lo, up, ylo, yup, a = -z_high[i, p], -z_low[i, p], -tu[i, p], -tl[i, p], -at[i, p]
            wide = up - lo
            chord = lo >= 0 or (up > 0 and ylo + (1 - ylo * ylo) * wide >= yup)
            # Where the tangent meets tanh(u), within .005: the lowering below makes up for the rest.
            v = up if up > 0 else 0.0
            v = v if v < 40.0 else 40.0
            top = 0.5 + v * (0.31588 + v * 0.023747)
            touch = -v * top / (1 + v * (0.58172 + v * (0.24148 + v * 0.0080595)))
            last = touch if up > 0 else up
            last = last if last > lo else lo
            t = a if a > lo else lo
            t = t if t < last else last
            y = tanh_within_slack(t)
            tangent = 1 - y * y
            offset = y - tangent * t
            meets = yup - tangent * up
            offset = meets if up > 0 and meets < offset else offset
            level = wide < NARROW
            slope = 0.0 if level else (yup - ylo) / (wide if wide > NARROW else NARROW)
            ends = chord or level
            slopes[i, p] = slope if ends else tangent
            o = ylo - slope * lo if ends else offset
            offsets[i, p] = sign * (o - SLACK * (2 + abs(lo) + abs(up)))


@compiled
def set_lines(z_low, z_high, at, lower, upper, tl, tu):
    """Lines of tanh on [z_low, z_high] (n, M): slopes to lower[0] and upper[0], offsets to [1].

    tl and tu take the values of tanh at the ends.
    """
    for i in range(z_low.shape[0]):
        for p in range(z_low.shape[1]):
            tl[i, p] = tanh_within_slack(z_low[i, p])
            tu[i, p] = tanh_within_slack(z_high[i, p])
    set_lower_lines(z_low, z_high, tl, tu, at, 1.0, lower[0], lower[1])
    set_lower_lines(z_low, z_high, tl, tu, at, -1.0, upper[0], upper[1])
