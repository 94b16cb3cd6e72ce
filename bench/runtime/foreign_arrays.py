"""What a dataset returned, checked before anything is made of it: each mistake is one line."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..._errors import InvalidArgument

Arrays = tuple[np.ndarray, np.ndarray]
"""Images and labels."""


def checked_parts(name: str, loaded: Any) -> tuple[Arrays, Arrays | None]:
    """Training and test set as ``load`` returned them: ((images, labels), (images, labels) or None).

    Raises
    ------
    InvalidArgument
        For anything else, see `checked_arrays`.
    """
    if (
        not _is_pair(loaded)
        or not all(part is None or _is_pair(part) for part in loaded)
        or loaded[0] is None
    ):
        raise InvalidArgument(
            f"{name}: load must return ((images, labels), (images, labels) or None), not a "
            f"{type(loaded).__name__}{' of other things' if _is_pair(loaded) else ''}"
        )
    train = checked_arrays(f"{name}, training set", loaded[0])
    test = None if loaded[1] is None else checked_arrays(f"{name}, test set", loaded[1])
    if test is not None and test[0].shape[1:] != train[0].shape[1:]:
        shapes = f"{train[0].shape[1:]} and {test[0].shape[1:]}"
        raise InvalidArgument(f"{name}: training and test images differ in shape: {shapes}")
    return train, test


def checked_arrays(name: str, pair: tuple[Any, Any]) -> Arrays:
    """Images as (N, H, W) or (N, H, W, C), labels as they are, (N,); images may come as (N, C, H, W), too.

    Raises
    ------
    InvalidArgument
        Where there are none, their numbers differ, or they are no numbers.
    """
    images, labels = (np.asarray(part) for part in pair)
    if images.ndim not in (3, 4):
        raise InvalidArgument(
            f"{name}: images have shape {images.shape}, should be (N, H, W), (N, H, W, C) or (N, C, H, W)"
        )
    if images.dtype.kind not in "uif":
        raise InvalidArgument(f"{name}: images have the type {images.dtype}, should be uint8 or float")
    if labels.shape != images.shape[:1]:
        raise InvalidArgument(
            f"{name}: {len(images)} images and labels of shape {labels.shape}: there must be one label per "
            "image"
        )
    if not len(images):
        raise InvalidArgument(f"{name}: it has no samples")
    if images.ndim == 4 and _channels_first(images.shape):
        images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    return images, labels


def _channels_first(shape: tuple[int, ...]) -> bool:
    """Whether (N, a, b, c) is (N, C, H, W): by 1 or 3 channels, else by at most 4."""
    for channels in ((1, 3), (1, 2, 3, 4)):
        if shape[3] in channels:
            return False
        if shape[1] in channels:
            return True
    return False


def scale_of(name: str, images: np.ndarray, scale: float | None) -> float:
    """The pixel value that becomes 1: `scale`, or where it is None 1 of floats and the largest of integers.

    Raises
    ------
    InvalidArgument
        When a pixel lies below 0 or above it.
    """
    if scale is None:
        scale = 1.0 if images.dtype.kind == "f" else float(np.iinfo(images.dtype).max)
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= scale * 1.000001):  # NaN compares false
        raise InvalidArgument(
            f"{name}: pixels lie between {low:g} and {high:g}, should be in [0, scale={scale:g}], not "
            "normalised"
        )
    return scale


def classes_of(name: str, labels: np.ndarray, num_classes: int | None) -> int:
    """The number of classes: `num_classes`, or one more than the largest of `labels`."""
    whole = labels.dtype.kind in "iu" and labels.min() >= 0
    if not whole or (num_classes is not None and labels.max() >= num_classes):
        most = "" if num_classes is None else f" to {num_classes - 1} (num_classes={num_classes})"
        raise InvalidArgument(f"{name}: labels must be whole numbers from 0{most}")
    return num_classes or int(labels.max()) + 1


def _is_pair(thing: Any) -> bool:
    return isinstance(thing, tuple | list) and len(thing) == 2
