"""Weights on disk: whole, unaltered, and never a pickle."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import pytest
import stubs
import torch
from robustode._errors import CheckpointError
from robustode.bench.records.checkpoint import (
    find_checkpoint,
    load_state,
    load_tensors,
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
    path = tmp_path / "deep" / "weights.safetensors"
    save_checkpoint(path, model(), {"cell": {"a": 1}})
    return path


def test_round_trip(saved):
    checkpoint = find_checkpoint(saved)
    assert checkpoint is not None
    assert checkpoint.facts["cell"] == {"a": 1}
    assert checkpoint.sha256 == hashlib.sha256(saved.read_bytes()).hexdigest()
    other = model(seed=1)
    load_state(other, load_tensors(saved)[0], saved)
    assert torch.equal(other.head.weight, model().head.weight)
    assert sorted(p.name for p in saved.parent.iterdir()) == ["weights.json", "weights.safetensors"]


@pytest.mark.parametrize("name", MODELS.names())
def test_every_registered_model_round_trips(tmp_path, name):
    spec = MODELS.get(name)
    one, two = (spec.build((1, 8, 8), 10, **spec.resolve()).eval() for _ in range(2))
    path = tmp_path / "w.safetensors"
    save_checkpoint(path, one, {})
    load_state(two, load_tensors(path)[0], path)
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(one(images), two(images))


def test_equal_tensors_give_equal_bytes(tmp_path):
    a, b = torch.arange(6.0).view(2, 3), torch.arange(3)
    one = save_tensors(tmp_path / "1.safetensors", {"a": a, "b": b})
    two = save_tensors(tmp_path / "2.safetensors", {"b": b.clone(), "a": a.T.contiguous().T})
    assert one == two
    assert one != save_tensors(tmp_path / "3.safetensors", {"a": a, "b": b + 1})


def test_half_a_checkpoint_is_none(saved):
    saved.with_suffix(".json").unlink()
    assert find_checkpoint(saved) is None
    assert find_checkpoint(saved.with_name("other.safetensors")) is None


@pytest.mark.parametrize("keep", [0, 4, 8, 60, -1])
def test_a_truncated_file_is_refused(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(
        CheckpointError, match=r"weights\.safetensors is damaged .*: delete it to train again"
    ):
        load_tensors(saved)
    with pytest.raises(CheckpointError):
        find_checkpoint(saved)


def test_an_altered_file_is_refused(saved):
    data = bytearray(saved.read_bytes())
    data[-1] ^= 1
    saved.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="altered after training: delete it to train again"):
        find_checkpoint(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", "\xff"])
def test_damaged_facts_are_refused(saved, text):
    saved.with_suffix(".json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"weights\.json is damaged"):
        find_checkpoint(saved)


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
    with pytest.raises(CheckpointError, match="pickle under another name, refused because it can run code"):
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


def test_facts_are_readable_json(saved):
    body = json.loads(saved.with_suffix(".json").read_text())
    assert set(body) == {"cell", "sha256"}
