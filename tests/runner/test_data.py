"""Splits that cover everything once and are pinned; data that is not there is one clear line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from robustode._errors import DataUnavailable, UnknownName
from robustode.bench.data import DATASETS, Arrays, Data, DatasetSource, default_root, load_data

DIGITS = "fd98453ae454071aa38eccc8e65043d88ff8c3ea4955bd59c4e3866ab1aa2ce0"
SOURCES = ("MNIST", "FashionMNIST", "CIFAR10")


def check_splits(data: Data, total: int) -> None:
    for split in (data.train, data.validation, data.test):
        assert split.images.dtype == torch.float32
        assert split.labels.dtype == torch.int64
        assert split.images.shape == (len(split), *data.input_shape)
        assert float(split.images.min()) == 0
        assert float(split.images.max()) == 1
        assert set(split.labels.tolist()) == set(range(data.num_classes))
        assert len(split.indices) == len(set(split.indices.tolist())) == len(split)
    assert not set(data.train.indices.tolist()) & set(data.validation.indices.tolist())
    assert sum(map(len, (data.train, data.validation, data.test))) == total


def test_the_digits_are_split_once_and_for_all(digits):
    check_splits(digits, 1797)
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1167, 180, 450)
    every = np.concatenate([s.indices for s in (digits.train, digits.validation, digits.test)])
    assert sorted(every.tolist()) == list(range(1797))
    assert digits.index_sha256 == DIGITS
    assert digits.input_shape == (1, 8, 8)


def test_each_image_is_the_one_its_index_names(digits):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    for split in (digits.train, digits.validation, digits.test):
        np.testing.assert_array_equal(split.labels.numpy(), bunch.target[split.indices])
        np.testing.assert_allclose(split.images[:, 0].numpy(), bunch.images[split.indices] / 16, atol=1e-7)


def test_the_test_order_is_shuffled(digits):
    """The first samples are a sample of all: a preset with few samples must not see one class."""
    assert len(set(digits.test.first(40).labels.tolist())) >= 8
    assert not np.array_equal(digits.test.indices, np.sort(digits.test.indices))


def test_loading_twice_gives_the_same_bytes(digits):
    again = load_data("digits")
    assert torch.equal(again.test.images, digits.test.images)
    assert torch.equal(again.train.images, digits.train.images)


def test_first(digits):
    assert len(digits.test.first(7)) == 7
    assert digits.test.first(7).indices.tolist() == digits.test.indices[:7].tolist()
    assert len(digits.test.first(None)) == len(digits.test.first(10**6)) == 450


@pytest.mark.skipif(not os.environ.get("ROBUSTODE_DATA"), reason="ROBUSTODE_DATA is not set: no MNIST here")
def test_mnist():
    data = load_data("mnist")
    check_splits(data, 70_000)
    assert (len(data.train), len(data.validation), len(data.test)) == (55_000, 5_000, 10_000)
    assert sorted([*data.train.indices, *data.validation.indices]) == list(range(60_000))
    assert data.test.indices.tolist() == list(range(10_000))
    assert data.test.labels[:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]
    assert float(data.train.images.mean()) == pytest.approx(0.1307, abs=1e-3)
    assert data.index_sha256 == "4e000f93ab97ba142eb8de0f789ae7dddb6533f26f6a30a3f2d10cf9714fa866"


def colour(_root: Path) -> tuple[Arrays, Arrays]:
    pixels = np.arange(12 * 2 * 4 * 3, dtype=np.uint8).reshape(12, 2, 4, 3)
    return (pixels, np.arange(12) % 3), (pixels[:4], np.arange(4) % 3)


@pytest.mark.usefixtures("registries")
def test_a_colour_source_becomes_channels_first():
    DATASETS.register(DatasetSource(name="stripes", summary="", load=colour, num_classes=3, validation=2))
    data = load_data("stripes")
    assert data.input_shape == (3, 2, 4)
    assert (len(data.train), len(data.validation), len(data.test)) == (10, 2, 4)
    raw = colour(Path())[1][0]
    assert float(data.test.images[1, 2, 0, 3]) == pytest.approx(raw[1, 0, 3, 2] / 255)
    assert data.test.images.is_contiguous()
    changed = DatasetSource(name="stripes2", summary="", load=colour, num_classes=3, validation=3)
    DATASETS.register(changed)
    assert load_data("stripes2").index_sha256 != data.index_sha256


def test_an_unknown_dataset_gets_a_suggestion():
    with pytest.raises(UnknownName, match="unknown dataset 'mnits': did you mean mnist"):
        load_data("mnits")


def test_the_root_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("ROBUSTODE_DATA", str(tmp_path))
    assert default_root() == tmp_path
    monkeypatch.setenv("ROBUSTODE_DATA", "")
    assert default_root() == Path.home() / ".cache" / "robustode"


class Remote:
    """Stands in for a torchvision dataset: nothing on disk until it is downloaded, if it can be."""

    online = False
    asked: list[bool] = []  # noqa: RUF012

    def __init__(self, root: Path, train: bool = True, download: bool = False) -> None:
        assert Path(root).is_dir()
        Remote.asked.append(download)
        marker = Path(root) / "here"
        if download and Remote.online:
            print("noise of a progress bar")
            marker.touch()
        elif download:
            raise RuntimeError("Error downloading train-images:\nsecond line\nthird line")
        if not marker.exists():
            raise RuntimeError("Dataset not found")
        count = 12_000 if train else 20
        self.data = np.zeros((count, 4, 4), np.uint8)
        self.targets = list(range(10)) * (count // 10)


@pytest.fixture
def remote(monkeypatch):
    for name in SOURCES:
        monkeypatch.setattr(torchvision.datasets, name, Remote)
    monkeypatch.setattr(Remote, "asked", [])
    monkeypatch.setattr(Remote, "online", False)
    return Remote


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_absent_data_is_one_line_that_says_where_to_put_it(remote, tmp_path, name):
    with pytest.raises(DataUnavailable) as caught:
        load_data(name, tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert "Error downloading train-images" in message
    assert ":)" not in message, "the first line of the error ends in a colon"
    assert str(tmp_path) in message
    assert "--data-root" in message
    assert "ROBUSTODE_DATA" in message
    assert remote.asked == [False, True]


def test_data_is_downloaded_once_and_without_noise(remote, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(remote, "online", True)
    data = load_data("mnist", tmp_path)
    assert len(data.train) == 7000
    assert remote.asked == [False, True, False, False]
    remote.asked.clear()
    load_data("mnist", tmp_path)
    assert remote.asked == [False, False]
    assert capsys.readouterr() == ("", "")
