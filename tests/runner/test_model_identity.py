"""A model from a file: its hyperparameters come back, its network is told apart, and so is its name."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path

import numpy as np
import pytest
import robustode
import stubs
import torch
from robustode._errors import CheckpointError, InvalidArgument
from robustode.bench.audits.run import audit_folder
from robustode.bench.cli.main import main
from robustode.bench.config.plan import make_plan
from robustode.bench.config.preset import load_preset
from robustode.bench.config.run_request import RunRequest
from robustode.bench.plugins.model_file import forget_model_files, load_external, named_models
from robustode.bench.records.headline import Headline
from robustode.bench.records.latest import current
from robustode.bench.records.record import Record
from robustode.bench.records.store import Store
from robustode.bench.runner.run import RunResult, run_plan
from robustode.bench.verification.verify import verify
from robustode.models import MODELS

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


# --- names ----------------------------------------------------------------------------------------

PLAIN = """
from torch import nn
def build(shape, classes, width={width}):
    pixels = shape[0] * shape[1] * shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, width), nn.Linear(width, classes))
"""
NAMED = PLAIN.replace("def build", "import robustode\n@robustode.register_model('mine')\ndef build")


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def make(path: Path, width: int = 4, text: str = PLAIN) -> str:
    return f"{write(path, text.format(width=width))}:build"


def test_another_file_of_the_same_name_is_refused_and_nothing_is_lost(tmp_path, few):
    one, two, out = make(tmp_path / "a/net.py"), make(tmp_path / "b/net.py", 5), tmp_path / "out"
    assert run(out, few, one).failures == []
    before = contents(out)
    message = r"the name 'net' is taken in .*out by another model, from net\.py:build: give it another name"
    with pytest.raises(InvalidArgument, match=message):
        run(out, few, two)
    assert contents(out) == before
    assert run(out, few, one).done == 0
    assert run(out, few, two, fresh=True).failures == []
    with pytest.raises(InvalidArgument, match="is taken"):
        run(out, few, one)
    assert run(out, few, two).done == 0
    assert run(tmp_path / "other", few, one).failures == []


def test_a_file_that_is_another_in_its_training_alone_is_another_model(tmp_path, few):
    """Its network as built is the same; its loss is not."""
    text = PLAIN + "\ndef loss(model, images, labels):\n    return {sign} * model(images).square().mean()\n"
    one, two = (
        make(tmp_path / name / "net.py", text=text.replace("{sign}", sign))
        for name, sign in (("a", "1"), ("b", "-1"))
    )
    out = tmp_path / "out"
    assert run(out, few, one).failures == []
    with pytest.raises(InvalidArgument, match="is taken"):
        run(out, few, two)


def test_a_file_that_was_edited_replaces_itself(tmp_path, few):
    out = tmp_path / "out"
    assert run(out, few, make(tmp_path / "a/net.py")).failures == []
    done = run(out, few, make(tmp_path / "a/net.py", 5))
    assert done.done
    shown, superseded = current(Store(out).load()[0], Headline.read(out).preferred)
    assert {r.cell.hyperparameters["width"] for r in shown} == {5}
    assert superseded == len(shown)


@pytest.mark.parametrize("together", [True, False])
def test_a_folder_that_was_moved_or_copied_goes_on(tmp_path, few, together):
    out = tmp_path / "here" / "out"
    assert run(out, few, make(tmp_path / "here/a/net.py")).failures == []
    shutil.move(tmp_path / "here", tmp_path / "there")
    reference = f"{tmp_path}/there/a/net.py:build"
    if not together:
        shutil.move(tmp_path / "there/a", tmp_path / "elsewhere")
        reference = f"{tmp_path}/elsewhere/net.py:build"
    out = tmp_path / "there" / "out"
    assert run(out, few, reference).done == 0
    robustode.load_model(out, "net", model=reference)
    if together:
        assert run(out, few, make(tmp_path / "there/a/net.py", 5)).failures == [], "edited there"


def test_what_is_stored_of_a_place_names_no_folder(tmp_path, few):
    out = tmp_path / "out"
    assert run(out, few, make(tmp_path / "private-folder/net.py")).failures == []
    (training,) = trainings(out)
    assert training.card["file"] == "net.py:build"
    assert len(training.card["place"]) == 16
    stored = {name for name, content in contents(out).items() if b"private-folder" in content}
    assert {Path(name).name for name in stored} == {"plan.json"}, "where the file is found again, alone"


def test_two_factories_of_one_file_and_a_registered_name_are_told_apart(tmp_path, few):
    text = PLAIN + "\ndef make(shape, classes):\n    return build(shape, classes, 6)\n"
    one = make(tmp_path / "net.py", text=text)
    out = tmp_path / "out"
    assert run(out, few, one).failures == []
    with pytest.raises(InvalidArgument, match="'net' is taken"):
        run(out, few, one.replace(":build", ":make"))
    assert run(tmp_path / "named", few, make(tmp_path / "a/one.py", text=NAMED)).failures == []
    forget_model_files()
    MODELS.unregister("mine")
    with pytest.raises(InvalidArgument, match=r"'mine' is taken in .* from one\.py:build"):
        run(tmp_path / "named", few, make(tmp_path / "b/two.py", 5, text=NAMED))


def test_a_variant_or_plug_in_with_the_name_of_a_file_is_refused(tmp_path, few):
    out = tmp_path / "out"
    assert run(out, few, make(tmp_path / "wide.py")).failures == []
    preset = SMALL + "\n[variants.wide]\nmodel = 'resnet'\nhyperparameters = { width = 2 }\n"
    with pytest.raises(InvalidArgument, match="'wide' is taken"):
        run(out, few, "wide", preset=preset)
    plugin = stubs.spec("wide", plugin="a-package 1.0")
    plan = make_plan(load_preset(str(stubs.preset_file(tmp_path, SMALL))), models=[plugin])
    with pytest.raises(InvalidArgument, match="'wide' is taken"):
        run_plan(plan, few, Store(out), device=stubs.CPU)


def test_a_newer_plug_in_replaces_itself_and_another_one_is_refused(tmp_path, few):
    preset = load_preset(str(stubs.preset_file(tmp_path, SMALL)))
    refused = {"a-package 1.0": None, "a-package 2.0": None, "b-package 1.0": "a-package 2"}
    for plugin, message in refused.items():
        build = {"a-package 2.0": lambda s, c: stubs.Linear(s, c, nfe=3)}.get(plugin, stubs.linear)
        plan = make_plan(preset, models=[stubs.spec("net", build, plugin=plugin)])
        if message:
            with pytest.raises(InvalidArgument, match=message):
                run_plan(plan, few, Store(tmp_path / "out"), device=stubs.CPU)
        else:
            assert run_plan(plan, few, Store(tmp_path / "out"), device=stubs.CPU).failures == []


def test_a_dry_run_refuses_a_taken_name_too(tmp_path, few, capsys):
    one, two, out = make(tmp_path / "a/net.py"), make(tmp_path / "b/net.py", 5), tmp_path / "out"
    assert run(out, few, one).failures == []
    preset = stubs.preset_file(tmp_path, SMALL)
    argv = ["run", "--preset", preset, "--models", two, "--out", out, "--dry-run"]
    assert main(list(map(str, argv))) == 2
    assert "error: the name 'net' is taken" in capsys.readouterr().err


def test_one_file_given_twice_is_one_model_and_two_of_one_name_are_refused(tmp_path, few, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "a/net.py")
    make(tmp_path / "b/net.py", 5)
    preset = load_preset(str(stubs.preset_file(tmp_path, SMALL)))
    twice = RunRequest(preset=preset, models=("a/net.py:build", "./a/net.py:build")).plan()
    assert [spec.name for spec in twice.specs] == ["net"]
    with pytest.raises(InvalidArgument, match="two models are called 'net'"):
        RunRequest(preset=preset, models=("a/net.py:build", "b/net.py:build")).plan()
    with pytest.raises(InvalidArgument, match="two models are called 'net'"):
        named_models(["a/net.py:build", "b/net.py:build"])
    assert named_models(["a/net.py:build", "./a/net.py:build"])[0] == ["net", "net"]
