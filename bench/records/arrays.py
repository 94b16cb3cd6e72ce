"""Arrays in JSON: compressed by zlib, in base64. No torch.

Two habits make them small. The bytes of equal significance come together (all first bytes of the items, all
second bytes, ...), and two-dimensional booleans are packed column by column, so that the draws of one sample
are neighbours.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWN_BITS = 11
"""Bits of mantissa of lines that are drawn and nothing else: an error of 0.03% cannot be seen."""
_ROOM = 16  # more than the few bytes by which a decompressed array may exceed what its shape says


def encode_array(array: NDArray[Any]) -> list[Any]:
    """``[dtype, shape, data]`` for JSON; the inverse of `decode_array`."""
    array = np.asarray(array)
    if array.dtype == bool:
        raw = np.packbits(array.ravel(order="F")).tobytes()
    else:
        items = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).reshape(-1)
        raw = items.view(np.uint8).reshape(array.size, array.itemsize).T.tobytes()
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_FILTERED)
    data = base64.b64encode(packer.compress(raw) + packer.flush()).decode("ascii")
    return [array.dtype.newbyteorder("=").name, list(array.shape), data]


def decode_array(value: Sequence[Any]) -> NDArray[Any]:
    """The array that `encode_array` was given, writeable.

    Raises
    ------
    ValueError, TypeError, zlib.error
        When `value` is anything else.
    """
    name, shape, data = value[0], tuple(value[1]), value[2]
    size = math.prod(shape)
    stored = np.dtype(name).newbyteorder("<")
    length = (size + 7) // 8 if name == "bool" else size * stored.itemsize
    raw = zlib.decompressobj().decompress(base64.b64decode(data, validate=True), length + _ROOM)
    if len(raw) != length:
        raise ValueError(f"an array of shape {shape} has {len(raw)} bytes, not {length}")
    if name == "bool":
        bits = np.unpackbits(np.frombuffer(raw, np.uint8), count=size).astype(bool)
        return np.array(bits.reshape(shape, order="F"), order="C")
    items = np.frombuffer(bytearray(raw), np.uint8).reshape(stored.itemsize, size).T
    found: NDArray[Any] = np.ascontiguousarray(items).view(stored).reshape(shape)
    return found.astype(stored.newbyteorder("="))


def rounded(values: NDArray[np.floating], bits: int) -> NDArray[np.float32]:
    """`values` in float32, their mantissa rounded to `bits` bits so that they compress well.

    The relative error is at most 2**-(bits + 1). What float32 cannot hold becomes its largest number.
    """
    largest = np.finfo(np.float32).max
    single = np.clip(values, -largest, largest).astype(np.float32)
    away = np.uint32(23 - bits)
    pattern = np.atleast_1d(single).view(np.uint32)
    half = np.uint32(1) << (away - np.uint32(1))
    mask = ~((np.uint32(1) << away) - np.uint32(1))
    back = ((pattern + half) & mask).view(np.float32).reshape(single.shape)
    return np.where(np.isfinite(back), back, single)


def for_drawing(lines: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Outcomes of a dynamics record as they are stored: `rounded`, but for ``time`` and ``layer``."""
    exact = ("time", "layer")
    return {
        name: values.astype(np.float64) if name in exact else rounded(values, DRAWN_BITS)
        for name, values in lines.items()
    }
