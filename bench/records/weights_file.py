"""How weights are compressed: xz, told that they are numbers of four bytes. No torch."""

from __future__ import annotations

import lzma

SUFFIX = ".safetensors"
SUFFIX_XZ = f"{SUFFIX}.xz"

_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 2, "lp": 2, "pb": 2, "dict_size": 1 << 20}]


def compress(plain: bytes) -> bytes:
    """The xz file of a safetensors file; equal bytes give equal bytes."""
    return lzma.compress(plain, lzma.FORMAT_XZ, filters=_FILTERS)
