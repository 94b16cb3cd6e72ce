"""tanh for all compiled paths: z p(z^2) / q(z^2) on [-9, 9], and exactly -1 or 1 outside.

A rational function fitted here by iteratively reweighted least squares on Chebyshev points, relative error
2e-8 before rounding.
"""

SATURATED = 9.0
"""Where the fit ends: float32 holds nothing nearer to tanh than 1."""

P = (
    0.9999999795674799,
    0.133810212204168,
    0.0034955827212269953,
    2.0608990867696927e-05,
    1.3354533967134008e-08,
)
"""Coefficients of 1, z^2, ..., z^8 in p."""

Q = (0.4671433684666244, 0.025876961967283764, 0.00032856258366679764, 7.776506120468825e-07)
"""Coefficients of z^2, ..., z^8 in q; that of 1 is 1."""
