"""Datasets of one's own: registered functions, folders of images, tensors that are handed to `evaluate`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from ..._errors import DataUnavailable, InvalidArgument, one_line
from ..data import DATASETS, Data, DatasetSource, Split
from ..runtime.foreign_arrays import Arrays, checked_arrays, classes_of, scale_of

Load = Callable[[Path], tuple[Arrays, Arrays | None]]
Pair: TypeAlias = tuple[Tensor | np.ndarray, Tensor | np.ndarray]
OwnData: TypeAlias = str | Path | TensorDataset | Pair
"""A registered name, a folder of images, a ``TensorDataset`` or a pair (images, labels)."""


def register_dataset(
    name: str,
    *,
    summary: str = "",
    scale: float | None = None,
    num_classes: int | None = None,
    validation: int | None = None,
    test: int | None = None,
) -> Callable[[Load], Load]:
    """Register the decorated ``load(root)`` as the dataset `name`.

    Parameters
    ----------
    summary
        One line for ``robustode list datasets``.
    scale
        The pixel value that becomes 1; by default 1 for floating-point images, 255 for uint8.
    num_classes
        By default one more than the largest label.
    validation
        Training samples held out for validation; by default a tenth of them.
    test
        Training samples used for testing where ``load`` returns no test set; by default a fifth of them.

    Notes
    -----
    ``load`` gets the folder of ``--data-root`` and returns (images, labels) for training and for testing, or
    None instead of the latter. Images are (N, H, W), (N, H, W, C) or (N, C, H, W), labels whole numbers from
    0, (N,).

    Raises
    ------
    InvalidArgument
        When the name is taken or not allowed.
    """

    def decorate(load: Load) -> Load:
        if not callable(load):
            raise InvalidArgument(f"dataset {name!r}: decorate a function load(root)")
        DATASETS.register(
            DatasetSource(
                name=name,
                summary=summary or (load.__doc__ or "").strip().partition("\n")[0],
                load=load,
                scale=scale,
                num_classes=num_classes,
                validation=validation,
                test=test,
            )
        )
        return load

    return decorate


def register_image_folder(
    name: str,
    folder: str | Path,
    *,
    size: tuple[int, int] | None = None,
    summary: str = "",
    validation: int | None = None,
    test: int | None = None,
) -> None:
    """Register a folder of images as the dataset `name`.

    Parameters
    ----------
    folder
        Holds a folder for each class, called as it is, with its images; or two such folders, ``train`` and
        ``test``. Classes count from 0 in alphabetical order.
    size
        (height, width) to which every image is scaled; by default all must have one size.
    summary, validation, test
        As for `register_dataset`.
    """
    place = Path(folder).expanduser().resolve()

    def load(_root: Path) -> tuple[Arrays, Arrays | None]:
        if (place / "train").is_dir() and (place / "test").is_dir():
            images, labels, classes = read_image_folder(place / "train", size)
            return (images, labels), read_image_folder(place / "test", size, classes)[:2]
        return read_image_folder(place, size)[:2], None

    what = summary or f"images in {place.name}/, one folder per class"
    register_dataset(name, summary=what, validation=validation, test=test)(load)


def read_image_folder(
    folder: Path, size: tuple[int, int] | None = None, classes: list[str] | None = None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images uint8 (N, H, W) or (N, H, W, 3), labels int64 (N,) and the names of the classes.

    Grey where every image is. `classes` are those of the training set.

    Raises
    ------
    DataUnavailable
        When there is no such folder, it holds no images in folders, or one cannot be read.
    """
    from PIL import Image
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import IMG_EXTENSIONS

    class Folder(ImageFolder):
        def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
            """Folders that hold an image and are not hidden, such as ``.ipynb_checkpoints``."""
            found = sorted(
                place.name
                for place in Path(directory).iterdir()
                if place.is_dir()
                and not place.name.startswith(".")
                and any(file.suffix.lower() in IMG_EXTENSIONS for file in place.rglob("*"))
            )
            if not found:
                raise DataUnavailable(
                    f"{directory} holds no images in folders: those of each class go into one"
                )
            if new := sorted(set(found) - set(classes or found)):
                raise DataUnavailable(f"{directory}: no training images of the class {new[0]!r}")
            return found, {name: (classes or found).index(name) for name in found}

    if not folder.is_dir():
        raise DataUnavailable(f"there is no folder {folder}")
    listed = Folder(folder, allow_empty=True)
    pictures: list[Any] = []
    for file, _ in listed.samples:
        try:
            with Image.open(file) as picture:
                grey = picture.mode in ("1", "L")
                pictures.append(picture.convert("L" if grey else "RGB"))
        except Exception as error:
            raise DataUnavailable(f"{file} cannot be read as an image: {one_line(error)}") from None
        if size is not None:
            pictures[-1] = pictures[-1].resize((size[1], size[0]))
        elif pictures[-1].size != pictures[0].size:
            (w, h), (first_w, first_h) = pictures[-1].size, pictures[0].size
            raise DataUnavailable(
                f"{file} is {h} pixels high and {w} wide, {listed.samples[0][0]} {first_h} and {first_w}: "
                "give one size=(height, width) for all"
            )
    mode = "L" if all(picture.mode == "L" for picture in pictures) else "RGB"
    images = np.stack([np.asarray(picture.convert(mode)) for picture in pictures])
    return images, np.array([label for _, label in listed.samples], np.int64), listed.classes


def is_name(dataset: object) -> bool:
    """Whether `dataset` is a name, registered or mistyped, and no folder of images."""
    return isinstance(dataset, str) and (dataset in DATASETS or not Path(dataset).expanduser().is_dir())


def data_to_test(dataset: Any) -> Data:
    """A folder of images, a TensorDataset or a pair (images, labels), all of it to be tested on.

    Its name is that of the folder, or ``own-data``.

    Raises
    ------
    InvalidArgument, DataUnavailable
        When it is none of these, or its images or labels cannot be used.
    """
    name = "own-data"
    if isinstance(dataset, str | Path):
        folder = Path(dataset).expanduser()
        name = re.sub(r"[^a-z0-9._-]+", "-", folder.resolve().name.lower()).strip("-._") or name
        pair: Any = read_image_folder(folder / "test" if (folder / "test").is_dir() else folder)[:2]
    else:
        pair = getattr(dataset, "tensors", dataset)
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InvalidArgument(
                f"dataset must be a name, a folder of images, a TensorDataset or a pair (images, labels), "
                f"not a {type(dataset).__name__}"
            )
        pair = [part.detach().cpu() if isinstance(part, Tensor) else part for part in pair]
    images, labels = checked_arrays(name, (pair[0], pair[1]))
    classes = classes_of(name, labels, None)
    labels = labels.astype(np.int64)
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(torch.float32) / scale_of(name, images, None)
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    split = Split(images=pixels, labels=torch.from_numpy(labels), indices=np.arange(len(labels)))
    digest = hashlib.sha256(pixels.numpy().tobytes() + labels.tobytes()).hexdigest()
    return Data(
        name=name, num_classes=classes, train=split, validation=split, test=split, index_sha256=digest
    )
