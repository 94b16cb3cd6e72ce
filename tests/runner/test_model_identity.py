"""A model from a file: its hyperparameters come back, its network is told apart, and so is its name."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pytest
import robustode
import stubs
import torch
from robustode._errors import CheckpointError
from robustode.bench.audits.run import audit_folder
from robustode.bench.cli.main import main
from robustode.bench.config.preset import load_preset
from robustode.bench.config.run_request import RunRequest
from robustode.bench.plugins.model_file import load_external
from robustode.bench.records.headline import Headline
from robustode.bench.records.latest import current
from robustode.bench.records.record import Record
from robustode.bench.records.store import Store
from robustode.bench.runner.run import RunResult, run_plan
from robustode.bench.verification.verify import verify

pytestmark = pytest.mark.usefixtures("registries")

SMALL = stubs.PRESET.replace("epochs = 2", "epochs = 1").replace(
    "\n[throughput]\nbatch_sizes = [4]\nseconds = 0.001\npasses = 2\n", ""
)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def run(out: Path, data, *references: object, preset: str = SMALL, **more: object) -> RunResult:
    """``robustode run --models REFERENCE`` in this process."""
    out.parent.mkdir(parents=True, exist_ok=True)
    request = RunRequest(
        preset=load_preset(str(stubs.preset_file(out.parent, preset))), models=tuple(map(str, references))
    )
    return run_plan(request.plan(), data, Store(out), device=stubs.CPU, **more)


def trainings(out: Path) -> list[Record]:
    return [r for r in Store(out).load()[0] if r.cell.kind == "training"]


WIDTHS = """
import enum
import torch
from torch import nn

class Head(enum.Enum):
    SMALL = 1
    LARGE = 2

def act(x):
    return torch.tanh(x)

class Net(nn.Module):
    def __init__(self, pixels, widths, act, classes):
        super().__init__()
        assert type(widths) is tuple
        sizes = (pixels, *widths)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))
        self.act, self.head = act, nn.Linear(sizes[-1], classes)

    def forward(self, x):
        x = x.flatten(1)
        for layer in self.layers:
            x = self.act(layer(x))
        return self.head(x)

def build(shape, classes, *, widths=(16, 24), act=act, head=Head.LARGE, dtype=torch.float32, blocks={3: "a"}):
    assert type(widths) is tuple and callable(act) and head is Head.LARGE and blocks == {3: "a"}
    return Net(shape[0] * shape[1] * shape[2], widths, act, classes).to(dtype)
"""


def test_hyperparameters_of_every_kind_are_trained_verified_audited_and_loaded(tmp_path, few):
    reference = f"{write(tmp_path / 'net.py', WIDTHS)}:build"
    out = tmp_path / "out"
    assert run(out, few, reference).failures == []
    assert run(out, few, reference).done == 0, "the keys of two runs are the same"
    (training,) = trainings(out)
    assert training.cell.hyperparameters["widths"] == {"$tuple": [16, 24]}
    assert training.cell.hyperparameters["act"] == {"$name": ".:act"}
    found = verify(out, models=[load_external(reference)])
    assert [f for f in found.disagreements if not f.file.startswith("report/")] == []
    assert found.models == 1
    assert audit_folder(out, models=[reference], checks=["logits"], samples=4, jobs=1).failures == []
    model = robustode.load_model(out, "net", model=reference)
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_an_array_of_a_preset_is_the_tuple_that_the_factory_takes(tmp_path, few):
    named = WIDTHS.replace("def build", "@robustode.register_model('wide')\ndef build")
    reference = f"{write(tmp_path / 'net.py', 'import robustode' + named)}:build"
    load_external(reference)
    preset = SMALL + "\n[overrides.wide]\nhyperparameters = { widths = [3], head = 'LARGE' }\n"
    assert run(tmp_path / "out", few, reference, preset=preset).failures == []
    (training,) = trainings(tmp_path / "out")
    assert training.cell.hyperparameters["widths"] == {"$tuple": [3]}
    model = robustode.load_model(tmp_path / "out", "wide", model=reference)
    assert [layer.out_features for layer in model.layers] == [3]


def test_a_value_that_no_record_can_hold_is_refused_before_anything_is_done(tmp_path, few, capsys):
    path = write(tmp_path / "net.py", WIDTHS.replace("act=act", "act=lambda x: x"))
    preset = stubs.preset_file(tmp_path, SMALL)
    argv = ["run", "--preset", preset, "--models", f"{path}:build", "--out", tmp_path / "out"]
    assert main(list(map(str, argv))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "error: model net: hyperparameter 'act' cannot be recorded: it holds <lambda>, a function" in line
    assert not (tmp_path / "out").exists()


# --- the network as built -------------------------------------------------------------------------

FROZEN = """
import functools
import os
from pathlib import Path
import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
def weights():
    return np.load(HERE / "backbone.npz")["w"].astype("float32")

class Base(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(16, classes)

    def features(self, x):
        raise NotImplementedError

    def forward(self, x):
        return self.head(torch.tanh(self.features(x.flatten(1))))
"""
WAYS = {
    "buffer": """
class Net(Base):
    def __init__(self, classes):
        super().__init__(classes)
        self.register_buffer("w", torch.from_numpy(weights()))
    def features(self, x):
        return x @ self.w
""",
    "hidden buffer": """
class Net(Base):
    def __init__(self, classes):
        super().__init__(classes)
        self.register_buffer("w", torch.from_numpy(weights()), persistent=False)
    def features(self, x):
        return x @ self.w
""",
    "array": """
class Net(Base):
    def __init__(self, classes):
        super().__init__(classes)
        self.w = weights()
    def features(self, x):
        return x @ torch.from_numpy(self.w)
""",
    "tensors in a list": """
class Net(Base):
    def __init__(self, classes):
        super().__init__(classes)
        self.w = {"parts": [torch.from_numpy(part) for part in np.split(weights(), 2)]}
    def features(self, x):
        return x @ torch.cat(self.w["parts"])
""",
    "closure": """
def Net(classes):
    w = torch.from_numpy(weights())
    class Inner(Base):
        def features(self, x):
            return x @ w
    return Inner(classes)
""",
    "function": """
class Net(Base):
    def __init__(self, classes):
        super().__init__(classes)
        self.features = functools.partial(torch.matmul, other=torch.from_numpy(weights()))
""",
    "object": """
class Table:
    __slots__ = ("w",)
class Net(Base):
    def __init__(self, classes):
        super().__init__(classes)
        self.table = Table()
        self.table.w = torch.from_numpy(weights())
    def features(self, x):
        return x @ self.table.w
""",
    "global": """
W = torch.from_numpy(weights())
class Net(Base):
    def features(self, x):
        return x @ W
""",
    "class": """
class Net(Base):
    w = torch.from_numpy(weights())
    def features(self, x):
        return x @ self.w
""",
    "extra state": """
class Net(Base):
    def __init__(self, classes):
        super().__init__(classes)
        self.box = lambda w=weights(): torch.from_numpy(w)
    def features(self, x):
        return x @ self.box()
    def get_extra_state(self):
        return torch.zeros(1)
    def set_extra_state(self, state):
        pass
""",
    "read in forward": """
class Net(Base):
    def features(self, x):
        return x @ torch.from_numpy(weights())
""",
    "a part of a tensor": """
class Net(Base):
    def __init__(self, classes):
        super().__init__(classes)
        self.w = nn.Parameter(torch.from_numpy(weights()) + 0.01 * torch.randn(64, 16))
    def features(self, x):
        return x @ self.w
""",
    "scale": """
class Net(Base):
    def __init__(self, classes):
        super().__init__(classes)
        self.lift, self.scale = nn.Linear(64, 16), float(weights().std())
    def features(self, x):
        return self.lift(x) * self.scale
""",
    "environment": """
class Net(Base):
    def __init__(self, classes):
        super().__init__(classes)
        self.lift = nn.Linear(64, 16)
        self.act = torch.sin if os.environ.get("BACKBONE") == "2" else torch.relu
    def features(self, x):
        return self.act(self.lift(x))
""",
}


def frozen(folder: Path, way: str) -> str:
    path = write(
        folder / "net.py", FROZEN + WAYS[way] + "\ndef build(shape, classes):\n    return Net(classes)\n"
    )
    return f"{path}:build"


def change(folder: Path, monkeypatch, seed: int) -> None:
    """What the model file reads, but for its source."""
    w = np.random.default_rng(seed).normal(size=(64, 16)) / 8 * seed
    np.savez(folder / "backbone.npz", w=w)
    monkeypatch.setenv("BACKBONE", str(seed))


@pytest.mark.parametrize("way", WAYS)
def test_a_network_that_reads_another_file_is_another_network(tmp_path, few, monkeypatch, way):
    """It is trained and attacked anew; what is stored of the old one is shown again once the file is back."""
    reference, out = frozen(tmp_path, way), tmp_path / "out"
    change(tmp_path, monkeypatch, 1)
    assert run(out, few, reference).failures == []
    everything = len(Store(out).load()[0])
    assert run(out, few, reference).done == 0
    robustode.load_model(out, "net", model=reference)
    change(tmp_path, monkeypatch, 2)
    with pytest.raises(CheckpointError, match=r"net\.py:build builds another network than the one"):
        robustode.load_model(out, "net", model=reference)
    again = run(out, few, reference)
    assert (again.done, again.failures) == (everything, [])
    first, second = trainings(out)
    assert first.cell.network_sha256 != second.cell.network_sha256
    preferred = Headline.read(out).preferred
    shown, superseded = current(Store(out).load()[0], preferred)
    newest = next(r.cell.network_sha256 for r in trainings(out) if r.cell.key() in preferred)
    assert {r.cell.network_sha256 for r in shown} == {newest}
    assert (len(shown), superseded) == (everything, everything)
    change(tmp_path, monkeypatch, 1)
    assert run(out, few, reference).done == 0
    back, _ = current(Store(out).load()[0], Headline.read(out).preferred)
    assert {first.cell.network_sha256, second.cell.network_sha256} == {newest, back[0].cell.network_sha256}
    assert {r.cell.network_sha256 for r in back} != {newest}
