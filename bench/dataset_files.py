"""Files of MNIST, Fashion-MNIST and CIFAR-10: where they lie, whether they are whole, what is in them."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import zlib
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .._errors import DataUnavailable

Arrays = tuple[np.ndarray, np.ndarray]
"""Images, shape (N, H, W) or (N, H, W, C), and labels, shape (N,)."""


@dataclass(frozen=True)
class DatasetFile:
    """A file as it is published, uncompressed; a size of None is not compared."""

    name: str
    size: int | None
    md5: str


@dataclass(frozen=True, kw_only=True)
class PublishedDataset:
    """A dataset that torchvision downloads; read here, so that a file that is wrong can be named.

    Attributes
    ----------
    name
        Its class in ``torchvision.datasets``.
    folder
        Where its files lie, relative to the folder of the datasets.
    train, test
        Its files: images and labels in IDX format, or the pickled batches of CIFAR-10.
    archive
        The archive that holds all of them and may lie in the folder of the datasets; else each may be a
        ``.gz``.
    """

    name: str
    folder: str
    train: Sequence[DatasetFile]
    test: Sequence[DatasetFile]
    archive: str = ""

    def __call__(self, root: Path) -> tuple[Arrays, Arrays]:
        """Read training and test set; files that are not there are downloaded first.

        Raises
        ------
        DataUnavailable
            Names the file that is damaged, or those that are not there and cannot be downloaded.
        """
        folder = root / self.folder
        if _absent(folder, self._files):
            failure = _download(self.name, root)
            if absent := _absent(folder, self._files):
                also = f"{self.archive} into {root}" if self.archive else "the same as .gz"
                raise DataUnavailable(
                    f"{self.name} is not usable in {root} and could not be downloaded ({failure}): put "
                    f"{', '.join(absent)} into {folder}, or {also}, or name another folder with --data-root "
                    "or ROBUSTODE_DATA"
                )
        train, test = ([_read(folder, file) for file in part] for part in (self.train, self.test))
        parse = _batches if self.archive else _idx
        return parse(train), parse(test)

    @property
    def _files(self) -> Sequence[DatasetFile]:
        return [*self.train, *self.test]


def _candidates(folder: Path, file: DatasetFile) -> list[Path]:
    return [path for path in (folder / file.name, folder / f"{file.name}.gz") if path.exists()]


def _absent(folder: Path, files: Sequence[DatasetFile]) -> list[str]:
    return [file.name for file in files if not _candidates(folder, file)]


def _read(folder: Path, file: DatasetFile) -> bytes:
    """The content of a file, from ``.gz`` where it is only there, or only there whole."""
    problems = []
    for path in _candidates(folder, file):
        try:
            data = path.read_bytes()
            data = gzip.decompress(data) if path.suffix == ".gz" else data
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            problems.append(f"{path} is damaged ({error})")
            continue
        except OSError as error:
            problems.append(f"{path} cannot be read ({error.strerror})")
            continue
        if problem := _difference(data, file):
            problems.append(f"{path} is damaged or another file: {problem}")
        else:
            return data
    raise DataUnavailable(f"{problems[0]}; delete it, and it is downloaded again, or put a whole one there")


def _difference(data: bytes, file: DatasetFile) -> str:
    """How `data` differs from what is published; empty where it does not."""
    if file.size is not None and len(data) != file.size:
        return f"it has {len(data):,} bytes, should have {file.size:,}"
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return "" if md5 == file.md5 else f"its MD5 is {md5}, should be {file.md5}"


def _idx(parts: Sequence[bytes]) -> Arrays:
    images, labels = parts
    shape = np.frombuffer(images, ">i4", 3, offset=4)
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(tuple(shape))
    return pixels, np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)


def _batches(parts: Sequence[bytes]) -> Arrays:
    """Pickles whose checksum was compared; each holds 10,000 rows of 3 x 32 x 32 pixels, and labels."""
    found = [pickle.loads(part, encoding="latin1") for part in parts]
    pixels = np.concatenate([batch["data"] for batch in found]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels), np.concatenate([batch["labels"] for batch in found]).astype(np.int64)


def _download(name: str, root: Path) -> str:
    """Have torchvision download a dataset, or unpack an archive that is there; why it did not, else empty."""
    import torchvision

    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            getattr(torchvision.datasets, name)(root, download=True)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return lines[0][:120].rstrip(" :")
    return "torchvision left files out"


def _mnist(
    name: str, train_images: str, train_labels: str, test_images: str, test_labels: str
) -> PublishedDataset:
    """MNIST, or a dataset in its form, by the MD5 of each file."""
    return PublishedDataset(
        name=name,
        folder=f"{name}/raw",
        train=[
            DatasetFile("train-images-idx3-ubyte", 47_040_016, train_images),
            DatasetFile("train-labels-idx1-ubyte", 60_008, train_labels),
        ],
        test=[
            DatasetFile("t10k-images-idx3-ubyte", 7_840_016, test_images),
            DatasetFile("t10k-labels-idx1-ubyte", 10_008, test_labels),
        ],
    )


MNIST = _mnist(
    "MNIST",
    "6bbc9ace898e44ae57da46a324031adb",
    "a25bea736e30d166cdddb491f175f624",
    "2646ac647ad5339dbf082846283269ea",
    "27ae3e4e09519cfbb04c329615203637",
)
FASHION_MNIST = _mnist(
    "FashionMNIST",
    "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "9018921c3c673c538a1fc5bad174d6f9",
    "8181f5470baa50b63fa0f6fddb340f0a",
    "15d484375f8d13e6eb1aabb0c3f46965",
)
CIFAR10 = PublishedDataset(
    name="CIFAR10",
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    train=[
        DatasetFile(f"data_batch_{number}", None, md5)
        for number, md5 in enumerate(
            (
                "c99cafc152244af753f735de768cd75f",
                "d4bba439e000b95fd0a9bffe97cbabec",
                "54ebc095f3ab1f0389bbae665268c751",
                "634d18415352ddfa80567beed471001a",
                "482c414d41f54cd18b22e5b47cb7c3cb",
            ),
            start=1,
        )
    ],
    test=[DatasetFile("test_batch", None, "40351d587109b95175f43aff81a1287e")],
)
