"""Files of published datasets: read as they are or compressed; a wrong one is named, with what is wrong."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torchvision
from robustode._errors import DataUnavailable
from robustode.bench.data import load_data
from robustode.bench.dataset_files import CIFAR10, FASHION_MNIST, MNIST, DatasetFile, PublishedDataset

PIXELS = np.arange(3 * 2 * 2, dtype=np.uint8)
IMAGES = np.array([0x803, 3, 2, 2], ">i4").tobytes() + PIXELS.tobytes()
LABELS = np.array([0x801, 3], ">i4").tobytes() + bytes([2, 0, 1])
CONTENT = {name: (IMAGES, LABELS)["label" in name] for name in (f.name for f in (*MNIST.train, *MNIST.test))}
SMALL = [
    DatasetFile(name, len(data), hashlib.md5(data, usedforsecurity=False).hexdigest())
    for name, data in CONTENT.items()
]
TINY = dataclasses.replace(MNIST, train=SMALL[:2], test=SMALL[2:])


class Remote:
    """Stands in for a torchvision dataset, which downloads the files where it can."""

    asked = 0

    def __init__(self, root: Path, download: bool) -> None:
        assert download
        Remote.asked += 1
        print("noise of a progress bar")
        self.fetch(Path(root) / "MNIST" / "raw")

    fetch: Callable[[Path], None]


def write(folder: Path, content: dict[str, bytes] = CONTENT) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)


def offline(_folder: Path) -> None:
    raise RuntimeError("Error downloading train-images:\nsecond line\nthird line")


@pytest.fixture
def remote(monkeypatch) -> type[Remote]:
    for name in ("MNIST", "FashionMNIST", "CIFAR10"):
        monkeypatch.setattr(torchvision.datasets, name, Remote)
    monkeypatch.setattr(Remote, "asked", 0)
    monkeypatch.setattr(Remote, "fetch", staticmethod(offline), raising=False)
    return Remote


def refused(root: Path, dataset: PublishedDataset = TINY) -> str:
    with pytest.raises(DataUnavailable) as caught:
        dataset(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_checksums_are_those_of_torchvision():
    """Of MNIST torchvision knows the checksums of the compressed files alone; `test_mnist` reads these."""
    theirs = torchvision.datasets.CIFAR10
    listed = [(file.name, file.md5) for file in (*CIFAR10.train, *CIFAR10.test)]
    assert listed == [tuple(each) for each in (*theirs.train_list, *theirs.test_list)]
    assert (CIFAR10.folder, CIFAR10.archive) == (theirs.base_folder, theirs.filename)
    assert len({file.md5 for each in (MNIST, FASHION_MNIST) for file in (*each.train, *each.test)}) == 8


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_absent_data_is_one_line_that_says_where_to_put_it(remote, tmp_path, name):
    with pytest.raises(DataUnavailable) as caught:
        load_data(name, tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert "Error downloading train-images)" in message, "the colon at the end of the error is left out"
    assert str(tmp_path) in message
    assert "--data-root" in message
    assert "ROBUSTODE_DATA" in message
    assert ("cifar-10-python.tar.gz" if name == "cifar10" else "train-images-idx3-ubyte") in message
    assert remote.asked == 1


def test_data_is_downloaded_once_and_without_noise(remote, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(remote, "fetch", staticmethod(write))
    (images, labels), test = TINY(tmp_path)
    assert images.tolist() == PIXELS.reshape(3, 2, 2).tolist()
    assert (labels.tolist(), labels.dtype) == ([2, 0, 1], np.int64)
    assert test[1].tolist() == [2, 0, 1]
    TINY(tmp_path)
    assert remote.asked == 1
    assert capsys.readouterr() == ("", "")


def test_compressed_files_are_read_where_the_others_are_not_there(remote, tmp_path):
    write(tmp_path / "MNIST" / "raw", {f"{name}.gz": gzip.compress(data) for name, data in CONTENT.items()})
    assert TINY(tmp_path)[0][1].tolist() == [2, 0, 1]
    write(tmp_path / "MNIST" / "raw", {"train-labels-idx1-ubyte": LABELS[:-1]})
    assert TINY(tmp_path)[0][1].tolist() == [2, 0, 1], "the whole one counts"
    assert remote.asked == 0


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("train-labels-idx1-ubyte", LABELS[:-1], "it has 10 bytes, should have 11"),
        ("train-labels-idx1-ubyte", b"", "it has 0 bytes, should have 11"),
        ("t10k-images-idx3-ubyte", IMAGES[:-1] + b"x", "its MD5 is "),
        ("train-images-idx3-ubyte", LABELS, "it has 11 bytes, should have 28"),
        ("t10k-labels-idx1-ubyte.gz", b"no gzip", "is damaged (Not a gzipped file"),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(LABELS)[:-9], "is damaged ("),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(remote, tmp_path, name, data, what):
    folder = tmp_path / "MNIST" / "raw"
    write(folder, {**CONTENT, name: data})
    if name.endswith(".gz"):
        (folder / name.removesuffix(".gz")).unlink()
    message = refused(tmp_path)
    assert f"{folder / name} is damaged" in message
    assert what in message
    assert "delete it" in message
    assert remote.asked == 0


def test_files_that_are_left_out_are_named_and_nothing_else(remote, tmp_path):
    write(tmp_path / "MNIST" / "raw", {name: data for name, data in CONTENT.items() if "labels" in name})
    message = refused(tmp_path)
    assert "put train-images-idx3-ubyte, t10k-images-idx3-ubyte into" in message
    assert "labels" not in message


def test_a_file_that_cannot_be_read_is_named(remote, tmp_path):
    write(tmp_path / "MNIST" / "raw", {name: data for name, data in CONTENT.items() if "10k" not in name})
    for name in list(CONTENT)[2:]:
        (tmp_path / "MNIST" / "raw" / name).mkdir()
    assert "t10k-images-idx3-ubyte cannot be read (Is a directory)" in refused(tmp_path)


def test_the_batches_of_cifar_are_colour_images(tmp_path):
    rows = np.arange(2 * 3072).astype(np.uint8).reshape(2, 3072)
    data = pickle.dumps({"data": rows, "labels": [3, 9]})
    file = DatasetFile("batch", None, hashlib.md5(data, usedforsecurity=False).hexdigest())
    write(tmp_path / CIFAR10.folder, {"batch": data})
    dataset = dataclasses.replace(CIFAR10, train=[file] * 3, test=[file])
    (images, labels), test = dataset(tmp_path)
    assert images.shape == (6, 32, 32, 3)
    assert images[1, 4, 5].tolist() == [rows[1, channel * 1024 + 4 * 32 + 5] for channel in range(3)]
    assert labels.tolist() == [3, 9] * 3
    assert test[0].shape == (2, 32, 32, 3)
