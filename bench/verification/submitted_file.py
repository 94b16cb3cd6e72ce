"""The file in which someone sends adversarial examples: read, or refused in one line."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..._errors import InvalidArgument

LONGEST_ORIGIN = 200


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What a file holds: `index` int64 (k,), `images` float32 (k, c, h, w), who sent it, the file's hash."""

    index: NDArray[np.int64]
    images: NDArray[np.float32]
    origin: str
    sha256: str


def read_submission(path: Path) -> Sent:
    """Read ``FILE.npz`` with `index` (k,) and `image` (k, c, h, w); `origin`, a text, is optional.

    Images are float in [0, 1], uint8 or uint16; `index` is each sample's number in its source, as in
    ``Data.test.indices``.

    Raises
    ------
    InvalidArgument
        When it is anything else.
    """
    try:
        content = path.read_bytes()
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            if absent := [name for name in ("index", "image") if name not in file]:
                raise InvalidArgument(f"{path} has no array {' and no array '.join(absent)}")
            index, image = file["index"], file["image"]
            origin = str(file["origin"]) if "origin" in file else path.name
    except InvalidArgument:
        raise
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception:  # a damaged archive raises whatever its decoder happens to meet
        raise InvalidArgument(
            f"{path} is not an .npz file of plain arrays: write it with np.savez(FILE, index=..., image=...)"
        ) from None
    if not index.size:
        raise InvalidArgument(f"{path} holds no examples: index is empty")
    if index.ndim != 1 or not np.issubdtype(index.dtype, np.integer):
        raise InvalidArgument(
            f"{path}: index must be a list of whole numbers, not {index.dtype} {index.shape}: "
            "index.ravel().astype(np.int64) makes one"
        )
    if image.ndim != 4 or len(image) != len(index):
        channel = "; image[:, None] adds the channel" if image.ndim == 3 else ""
        raise InvalidArgument(
            f"{path}: image must be ({len(index)}, c, h, w), one an index, not {image.shape}{channel}"
        )
    if image.dtype in (np.uint8, np.uint16):
        image = image / np.iinfo(image.dtype).max
    elif not np.issubdtype(image.dtype, np.floating):
        raise InvalidArgument(
            f"{path}: image must be float, uint8 or uint16, not {image.dtype}: for values of 0 to 255, "
            "image.astype(np.uint8)"
        )
    elif problem := _scale_problem(image):
        raise InvalidArgument(f"{path}: {problem}")
    return Sent(
        index=index.astype(np.int64),
        images=np.clip(image, -2, 2).astype(np.float32),  # what float32 cannot hold is out of the box anyway
        origin=" ".join(origin.split())[:LONGEST_ORIGIN] or path.name,
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _scale_problem(image: NDArray[np.floating]) -> str:
    """What is wrong where most images are on another scale than [0, 1], and what to do; else empty.

    A few that are out of the box are rejected one by one.
    """
    with np.errstate(invalid="ignore"):
        largest = np.max(image, axis=(1, 2, 3), initial=0)
        smallest = np.min(image, axis=(1, 2, 3), initial=0)
    span = f"pixels must be in [0, 1], and go from {np.nanmin(smallest):.3g} to {np.nanmax(largest):.3g}"
    if np.median(largest) > 2:
        bytes_ = 128 < np.nanmax(largest) < 256
        return f"{span}: divide by {'255' if bytes_ else 'the value of a white pixel'}"
    if np.median(smallest) < -0.5 and np.median(largest) > 0.5:
        return f"{span}: undo the normalisation of the model, which images must not have"
    return ""
