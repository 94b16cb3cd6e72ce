"""Weights on disk: whole, unaltered, and never a pickle."""

from __future__ import annotations

import hashlib
import lzma
import pickle
import shutil
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import stubs
import torch
from robustode._errors import CheckpointError
from robustode.bench.records.checkpoint import (
    find_checkpoint,
    load_state,
    load_tensors,
    partial_path,
    save_checkpoint,
    save_tensors,
)
from robustode.models import MODELS


def model(seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return stubs.Linear((1, 2, 2), 3)


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "deep" / "weights.safetensors.xz"
    assert save_checkpoint(path, model(), {"a": 1}).facts == {"a": 1}
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(lzma.decompress(path.read_bytes())).hexdigest()


def test_round_trip(saved):
    checkpoint = find_checkpoint(saved, sha256(saved))
    assert checkpoint is not None
    assert (checkpoint.path, checkpoint.sha256) == (saved, sha256(saved))
    other = model(seed=1)
    load_state(other, load_tensors(saved)[0], saved)
    assert torch.equal(other.head.weight, model().head.weight)
    assert [p.name for p in saved.parent.iterdir()] == ["weights.safetensors.xz"]


def test_a_decompressed_file_is_plain_safetensors_with_the_same_hash(saved):
    plain = saved.with_name("weights.safetensors")
    plain.write_bytes(lzma.decompress(saved.read_bytes()))
    assert torch.equal(safetensors.torch.load_file(plain)["head.weight"], model().head.weight)
    assert load_tensors(plain)[1] == load_tensors(saved)[1]


@pytest.mark.skipif(shutil.which("xz") is None, reason="xz is not installed")
def test_xz_reads_it(saved):
    plain = subprocess.run(["xz", "-dc", str(saved)], capture_output=True, check=True).stdout
    assert plain == lzma.decompress(saved.read_bytes())


@pytest.mark.parametrize("name", MODELS.names())
def test_every_registered_model_round_trips(tmp_path, name):
    spec = MODELS.get(name)
    one, two = (spec.build((1, 8, 8), 10, **spec.resolve()).eval() for _ in range(2))
    path = tmp_path / "w.safetensors.xz"
    save_checkpoint(path, one, {})
    load_state(two, load_tensors(path)[0], path)
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(one(images), two(images))


def test_equal_tensors_give_equal_bytes(tmp_path):
    a, b = torch.arange(6.0).view(2, 3), torch.arange(3)
    paths = [tmp_path / name for name in ("1.safetensors.xz", "2.safetensors.xz", "1.safetensors")]
    one, two = save_tensors(paths[0], {"a": a, "b": b}), save_tensors(paths[1], {"b": b.clone(), "a": a})
    assert one == two == save_tensors(paths[2], {"b": b, "a": a.T.contiguous().T})
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert one != save_tensors(tmp_path / "3.safetensors", {"a": a, "b": b + 1})


def test_half_a_checkpoint_is_none(saved):
    assert find_checkpoint(saved, None) is None, "no record of its training"
    assert find_checkpoint(saved.with_name("other.safetensors.xz"), "0") is None
    partial_path(saved).touch()
    assert find_checkpoint(saved, sha256(saved)) is None, "its training goes on"


@pytest.mark.parametrize("keep", [0, 4, 8, 60, -1])
def test_a_truncated_file_is_refused(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(
        CheckpointError, match=r"weights\.safetensors\.xz is damaged .*: delete it to train again"
    ):
        load_tensors(saved)
    with pytest.raises(CheckpointError):
        find_checkpoint(saved, "0")


def test_an_altered_file_is_refused(saved):
    before = sha256(saved)
    save_checkpoint(saved, model(seed=1), {})
    with pytest.raises(CheckpointError, match=f"{saved.name} .*delete it"):
        find_checkpoint(saved, before)


class Bomb:
    """A pickle that would write a file when it is read."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (Path(self.target),)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_under_another_name_is_refused_and_never_run(tmp_path, protocol):
    path, target = tmp_path / "w.safetensors", tmp_path / "exploded"
    path.write_bytes(pickle.dumps(Bomb(str(target)), protocol=protocol))
    with pytest.raises(CheckpointError, match=r"w.safetensors .*pickle"):
        load_tensors(path)
    assert not target.exists()


def test_a_torch_file_is_refused_under_either_name(tmp_path):
    for name, message in (("w.safetensors", "pickle under another name"), ("w.pt", "is not a .safetensors")):
        torch.save(model().state_dict(), tmp_path / name)
        with pytest.raises(CheckpointError, match=message):
            load_tensors(tmp_path / name)


def test_an_absent_file_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        load_tensors(tmp_path / "none.safetensors")


def test_weights_of_another_model_are_refused(saved):
    tensors, _ = load_tensors(saved)
    with pytest.raises(CheckpointError, match=r"does not fit the model: .*head"):
        load_state(stubs.Linear((1, 3, 3), 3), tensors, saved)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_state(torch.nn.Identity(), tensors, saved)
