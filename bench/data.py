"""Datasets as tensors, in fixed splits.

The split of a sample follows from the SHA-256 of the dataset's name and the sample's number, so it depends on
no random generator and no library version.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from .._arguments import checked
from .._errors import DataUnavailable, InvalidArgument, RobustodeError, one_line
from .._registry import Registry
from ..attacks.core.model_call import where
from .dataset_files import CIFAR10, FASHION_MNIST, MNIST, Arrays
from .runtime.foreign_arrays import checked_parts, classes_of, scale_of
from .runtime.foreign_code import foreign_code, source_of

ENVIRONMENT_VARIABLE = "ROBUSTODE_DATA"
"""Environment variable that names the folder of the datasets."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Samples of a dataset.

    Attributes
    ----------
    images
        Shape (N, C, H, W), float32, in [0, 1].
    labels
        Shape (N,), int64, from 0 to the number of classes less 1.
    indices
        Shape (N,): each sample's number in its source.
    """

    images: Tensor
    labels: Tensor
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int | None) -> Split:
        """Return the first `count` samples; all of them for None."""
        return Split(images=self.images[:count], labels=self.labels[:count], indices=self.indices[:count])

    def to(self, device: torch.device) -> Split:
        """Return the split with its tensors on `device`."""
        return Split(images=self.images.to(device), labels=self.labels.to(device), indices=self.indices)


@dataclass(frozen=True, kw_only=True)
class Data:
    """A loaded dataset.

    Attributes
    ----------
    name
        Name in `DATASETS`.
    num_classes
        Number of classes K.
    train, validation, test
        The splits; validation samples are held out from training.
    index_sha256
        Hash of the three index lists, of all labels and all pixels: it identifies the samples of a result.
    """

    name: str
    num_classes: int
    train: Split
    validation: Split
    test: Split
    index_sha256: str

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.test.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> Data:
        """Return the dataset with its tensors on `device`, so that no batch is copied there."""
        train, validation, test = (split.to(device) for split in (self.train, self.validation, self.test))
        return dataclasses.replace(self, train=train, validation=validation, test=test)


@dataclass(frozen=True, kw_only=True)
class DatasetSource:
    """The source of a dataset; ``DATASETS.register`` adds one to the benchmark.

    Attributes
    ----------
    name
        1 to 64 characters from ``a-z 0-9 . _ -``, the first a letter or digit.
    summary
        One line for ``robustode list datasets``.
    load
        ``load(root)`` reads the folder `root` and returns a pair (training, test), each (images, labels):
        images of shape (N, H, W), (N, H, W, C) or (N, C, H, W), uint8 or float, and labels of shape (N,). The
        test set is None for a source without one.
    scale
        The pixel value that becomes 1; None for 1 of floating-point images and the largest of integers.
    num_classes
        Number of classes; None for one more than the largest label.
    validation
        Number of training samples held out for validation; None for a tenth of them.
    test
        Number of training samples used for testing, for a source without a test set; None for a fifth.
    """

    name: str
    summary: str
    load: Callable[[Path], tuple[Arrays, Arrays | None]]
    scale: float | None = 255.0
    num_classes: int | None = 10
    validation: int | None = 5000
    test: int | None = 0

    def __post_init__(self) -> None:
        for what in ("num_classes", "validation", "test"):
            value = getattr(self, what)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise InvalidArgument(f"dataset {self.name}: {what} is a number of samples, not {value!r}")


DATASETS: Registry[DatasetSource] = Registry("dataset", hint="--load FILE.py registers others")
"""Every registered dataset, in order of registration."""


def default_root() -> Path:
    """Return the folder of the datasets: ``$ROBUSTODE_DATA``, or ``~/.cache/robustode``.

    Where there is no home folder it lies in that of temporary files.
    """
    if named := os.environ.get(ENVIRONMENT_VARIABLE):
        return Path(named)
    try:
        return Path.home() / ".cache" / "robustode"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / "robustode"


@checked
def load_data(name: str, root: str | Path | None = None) -> Data:
    """Load a dataset.

    Parameters
    ----------
    name
        Name in `DATASETS`.
    root
        Folder of the datasets; by default `default_root`.

    Returns
    -------
    Data
        Images in [0, 1], shape (N, C, H, W), in fixed splits.

    Raises
    ------
    UnknownName
        When no dataset has this name.
    DataUnavailable
        When it is neither in `root` nor downloadable, a file of it is damaged, or its `load` raises: names
        the line.
    InvalidArgument
        When an argument is of another type, or what its source returns is no training and test set.
    """
    source, what = DATASETS.get(name), f"dataset {name!r}"
    with foreign_code(source_of(source.load), seed=0):
        try:
            loaded = source.load(Path(root) if root else default_root())
        except RobustodeError:
            raise
        except Exception as error:
            raise DataUnavailable(
                f"{what}: load raised {type(error).__name__}: {one_line(error)}{where(error)}"
            ) from error
    (images, labels), test = checked_parts(what, loaded)
    parts = {"training": (images, labels)} if test is None else {"training": (images, labels), "test": test}
    scale = max(scale_of(f"{what}, {part} set", x, source.scale) for part, (x, _) in parts.items())
    classes = max(classes_of(f"{what}, {part} set", y, source.num_classes) for part, (_, y) in parts.items())
    count = len(labels)
    test_count = count // 5 if source.test is None else source.test
    held_out = (count - (test_count if test is None else 0)) // 10
    held_out = held_out if source.validation is None else source.validation
    if held_out + (test_count if test is None else 0) >= count or (test is None and test_count < 1):
        raise InvalidArgument(
            f"{what}: validation={held_out} and test={test_count} of {count} samples leave none for training "
            "or testing"
        )
    order = np.array(
        sorted(range(len(labels)), key=lambda i: hashlib.sha256(f"{name}:{i}".encode()).digest()),
        dtype=np.int64,
    )
    if test is None:
        test_indices, order = order[:test_count], order[test_count:]
        test = images[test_indices], labels[test_indices]
    else:
        test_indices = np.arange(len(test[1]))
    validation_indices, train_indices = order[:held_out], np.sort(order[held_out:])

    def split(arrays: Arrays, rows: np.ndarray, indices: np.ndarray) -> Split:
        pixels = torch.from_numpy(arrays[0][rows]).to(torch.float32).div_(scale)
        pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
        return Split(images=pixels, labels=torch.from_numpy(arrays[1][rows]).long(), indices=indices)

    fingerprint = hashlib.sha256()
    for part in (train_indices, validation_indices, test_indices, labels, test[1]):
        fingerprint.update(np.ascontiguousarray(part, dtype="<i8").data)
    for pixels in (images, test[0]):
        fingerprint.update(np.ascontiguousarray(pixels).data)
    return Data(
        name=name,
        num_classes=classes,
        train=split((images, labels), train_indices, train_indices),
        validation=split((images, labels), validation_indices, validation_indices),
        test=split(test, np.arange(len(test[1])), test_indices),
        index_sha256=fingerprint.hexdigest(),
    )


def _digits(_root: Path) -> tuple[Arrays, None]:
    """Read from the file of scikit-learn, whose import takes a second of every process."""
    package = Path(str(cast(ModuleSpec, find_spec("sklearn")).origin)).parent
    with gzip.open(package / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    return (table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)), None


DATASETS.register(
    DatasetSource(
        name="digits",
        summary="8x8 grey digits, 1,797 of them, inside scikit-learn: no download",
        load=_digits,
        scale=16.0,
        validation=180,
        test=450,
    )
)
DATASETS.register(DatasetSource(name="mnist", summary="28x28 grey digits, 70,000", load=MNIST))
DATASETS.register(
    DatasetSource(
        name="fashion-mnist",
        summary="28x28 grey articles of clothing, 70,000",
        load=FASHION_MNIST,
    )
)
DATASETS.register(
    DatasetSource(
        name="cifar10",
        summary="32x32 colour images, 60,000",
        load=CIFAR10,
    )
)
