"""Splits that cover everything once and are pinned; a source that returns something else is named."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from robustode._errors import InvalidArgument, UnknownName
from robustode.bench.data import DATASETS, Arrays, Data, DatasetSource, default_root, load_data

DIGITS = "fd98453ae454071aa38eccc8e65043d88ff8c3ea4955bd59c4e3866ab1aa2ce0"


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


TRAIN = np.zeros((6, 2, 2), np.uint8), np.arange(6) % 3
TEST = np.zeros((3, 2, 2), np.uint8), np.arange(3)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            (TRAIN[0], np.arange(5) % 3),
            TEST,
            r"training set: 6 images and labels of shape \(5,\): .* one label",
        ),
        (TRAIN, (TEST[0], np.arange(4) % 3), r"test set: 3 images and labels of shape \(4,\)"),
        (TRAIN, (TEST[0], np.array([0, 1, 3])), "test set: labels must be whole numbers from 0 to 2"),
        ((TRAIN[0], TRAIN[1] / 1), TEST, "training set: labels must be whole numbers"),
        ((TRAIN[0].reshape(6, 4), TRAIN[1]), TEST, r"images have shape \(6, 4\), should be"),
        (TRAIN, (TEST[0] + 0.5 * np.nan, TEST[1]), "test set: pixels lie between nan and nan"),
        (TRAIN, (TEST[0] - 1.0, TEST[1]), r"pixels lie between -1 and -1, should be in \[0, scale=255\]"),
        (TRAIN, (np.zeros((3, 2, 3)), TEST[1]), "images differ in shape"),
        ((TRAIN[0][:2], TRAIN[1][:2]), TEST, "validation=2 and test=0 of 2 samples leave none"),
        (TRAIN, None, "leave none for training or testing"),
        (TRAIN[0], TRAIN[1], "load must return"),
        ((TRAIN[0][:0], TRAIN[1][:0]), TEST, "training set: it has no samples"),
    ],
)
@pytest.mark.usefixtures("registries")
def test_a_source_that_returns_something_else_is_named_with_what_is_wrong(train, test, message):
    source = DatasetSource(name="mine", summary="", load=lambda _: (train, test), num_classes=3, validation=2)
    DATASETS.register(source)
    with pytest.raises(InvalidArgument, match=f"dataset 'mine'.*{message}"):
        load_data("mine")


def test_without_a_home_folder_the_data_lie_among_temporary_files(monkeypatch, tmp_path):
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ROBUSTODE_DATA", raising=False)
    monkeypatch.setattr(Path, "home", home)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert default_root() == tmp_path / "robustode"
    assert len(load_data("digits").test) == 450
