"""Where a run takes place, and what is written down about it."""

from __future__ import annotations

import datetime
import json

import pytest
import robustode
import stubs
import torch
from robustode._errors import InvalidArgument
from robustode.bench.runtime import device
from robustode.bench.runtime.device import (
    device_name,
    environment,
    module_device,
    pick_device,
    source_sha256,
)
from robustode.bench.training import provenance
from robustode.bench.training.provenance import solver_names
from torch import nn


def test_devices_are_picked():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_an_absent_gpu_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidArgument, match="torch sees no CUDA device here; use --device cpu"):
        pick_device("cuda")
    with pytest.raises(InvalidArgument, match="--device cuda:1: torch sees no CUDA device here"):
        pick_device("cuda:1")
    assert pick_device("auto").type == "cpu"


def test_a_gpu_is_picked_by_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    assert pick_device("cuda") == torch.device("cuda")
    with pytest.raises(InvalidArgument, match="--device cuda:2: torch sees 2 here, cuda:0 to cuda:1"):
        pick_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:1 ", "mps", "", "cpu:0", "CUDA"])
def test_what_is_no_device_is_one_line(name):
    with pytest.raises(InvalidArgument, match="choose auto, cpu, cuda or cuda:N"):
        pick_device(name)


class OnlyBuffers(nn.Module):
    """A module without parameters."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(1, device=device))


@pytest.mark.parametrize(
    ("module", "found"),
    [
        (nn.Linear(2, 2, device="meta"), "meta"),
        (OnlyBuffers("meta"), "meta"),
        (nn.Sequential(nn.Flatten(), OnlyBuffers("meta")), "meta"),
        (nn.Flatten(), "cpu"),
        (OnlyBuffers("cpu"), "cpu"),
    ],
)
def test_a_module_lies_where_its_tensors_lie(monkeypatch, module, found):
    assert module_device(module) == torch.device(found)
    asked = []
    monkeypatch.setattr(provenance, "observe", lambda model, images: asked.append(images.device) or [])
    assert solver_names(module, torch.rand(3, 1, 2, 2)) is None
    assert asked == [torch.device(found)]


def test_a_module_without_tensors_lies_where_it_is_said_to():
    assert module_device(nn.Flatten(), torch.device("meta")) == torch.device("meta")


def test_the_environment_says_what_made_a_number():
    made = environment(stubs.CPU)
    assert json.loads(json.dumps(made)) == made
    assert made["versions"]["robustode"] == robustode.__version__
    assert {"python", "robustode", "torchdiffeq", "numpy"} <= set(made["versions"])
    assert made["source_sha256"] == source_sha256()
    assert len(source_sha256()) == 64
    created = datetime.datetime.fromisoformat(made["created"])
    assert created.utcoffset() == datetime.timedelta(0)
    assert made["flow"] == "numba"
    assert made["device"] == device_name(stubs.CPU)
    assert device_name(stubs.CPU).startswith("CPU ")
    assert device_name(stubs.CPU).endswith(" threads")


def test_the_environment_names_the_implementation_of_flows(ode_backend):
    ode_backend("torchdiffeq")
    assert environment(stubs.CPU)["flow"] == "eager"


def test_the_hash_is_of_every_source_of_the_package(tmp_path, monkeypatch):
    """Audits lie a folder deeper than the rest of the harness."""
    monkeypatch.setattr(device, "__file__", str(tmp_path / "bench" / "runtime" / "device.py"))
    seen = set()
    for name in ("one.py", "models/two.py", "attacks/three.py", "bench/audits/four.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n")
        seen.add(source_sha256.__wrapped__())
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "five.py").write_text("x = 1\n")
    assert source_sha256.__wrapped__() in seen
    assert len(seen) == 4
