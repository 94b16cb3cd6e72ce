"""The hash of a network as built: the same wherever nothing has changed, another where something has."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import robustode
import stubs
import torch
from robustode._errors import CheckpointError, InvalidArgument
from robustode.bench.cli.main import main
from robustode.bench.config.plan import make_plan
from robustode.bench.config.preset import load_preset
from robustode.bench.config.run_request import RunRequest
from robustode.bench.plugins.model_file import load_external
from robustode.bench.records.record import Cell
from robustode.bench.records.store import Store
from robustode.bench.report.report import write_report
from robustode.bench.runner.run import RunResult, run_plan
from robustode.bench.runtime import network_hash
from robustode.bench.runtime.network_hash import network_sha256
from robustode.bench.runtime.network_state import content_of, network_state
from robustode.bench.verification.verify import verify
from robustode.models import MODELS, ModelSpec, use_ode_backend
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

pytestmark = pytest.mark.usefixtures("registries")

SHAPE = (1, 8, 8)


def hash_of(build, **attributes) -> str:
    spec = ModelSpec(name="stub", build=build, **attributes)
    return network_sha256(spec, SHAPE, 10, spec.resolve())


class Net(nn.Module):
    """A linear classifier that holds `extra` as an attribute and shifts its logits by `shift`."""

    def __init__(self, extra: object = None, shift: float = 0.0) -> None:
        super().__init__()
        self.head, self.extra, self.shift = nn.Linear(64, 10), extra, shift

    def forward(self, images):
        return self.head(images.flatten(1)) + self.shift


counter = itertools.count()
grown: list[object] = []
calls = {"count": 0}


def growing(shape, classes):
    grown.append(Net())
    return grown[-1]


class Counting(Net):
    def forward(self, images):
        calls["count"] += 1
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(images)


STABLE = {
    "weights of torch": lambda s, c: Net(),
    "random numbers of numpy and random": lambda s, c: Net([np.random.rand(3), random.random()]),
    "a counter of networks": lambda s, c: Net(next(counter)),
    "a time": lambda s, c: Net({"made": time.time_ns()}),
    "an identity": lambda s, c: Net(id(object())),
    "numbers that no seed determines": lambda s, c: Net(np.random.default_rng().normal(size=1000)),
    "a list of all networks": growing,
    "a count of calls": lambda s, c: Counting(),
    "a file's place": lambda s, c: Net([Path.cwd(), os.getcwd()]),
    "itself": lambda s, c: _knowing_itself(),
    "a lock, a generator and a logger": lambda s, c: Net([__import__("threading").Lock(), torch.Generator()]),
    "a lazy layer": lambda s, c: nn.Sequential(nn.Flatten(), nn.LazyLinear(c)),
    "a batch norm": lambda s, c: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, c)),
    "a dropout": lambda s, c: nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, c)),
    "a weight norm": lambda s, c: nn.Sequential(nn.Flatten(), weight_norm(nn.Linear(64, c))),
}  # fmt: skip


def _knowing_itself() -> nn.Module:
    net = Net()
    net.extra = {"me": [net], "bound": net.forward}
    return net


@pytest.mark.parametrize("what", STABLE)
def test_one_factory_has_one_hash(what, tmp_path, monkeypatch):
    first = hash_of(STABLE[what])
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(5)
    assert [hash_of(STABLE[what]) for _ in range(2)] == [first, first]


@pytest.mark.parametrize("what", [*STABLE, *MODELS.names()])
def test_projections_that_are_not_made_change_no_hash(what, monkeypatch):
    """Of six looks at three networks two need them: the others are compared by their bytes alone."""
    spec = MODELS.get(what) if what in MODELS else ModelSpec(name="stub", build=STABLE[what])
    made = []

    def projected(*args, rough, **kwargs):
        made.append(rough)
        return network_state(*args, rough=True, **kwargs)

    found = network_sha256(spec, SHAPE, 10, spec.arguments(spec.resolve()))
    monkeypatch.setattr(network_hash, "network_state", projected)
    assert network_sha256(spec, SHAPE, 10, spec.arguments(spec.resolve())) == found
    assert made == [False, False, False, True, False, True]


def copies(net: nn.Module):
    return lambda shape, classes: copy.deepcopy(net)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Net(), Net(1)),
        (Net(1), Net(1.0)),
        (Net(1.0), Net(np.float32(1))),
        (Net(True), Net(1)),
        (Net("sin"), Net("cos")),
        (Net(b"a"), Net(b"b")),
        (Net([1, 2]), Net((1, 2))),
        (Net({1: 2}), Net({1: 3})),
        (Net({1, 2}), Net({1, 3})),
        (Net(np.zeros(3)), Net(np.zeros((1, 3)))),
        (Net(np.zeros(3)), Net(np.zeros(3, np.float32))),
        (Net(np.array([1, 2, 3])), Net(np.array([1, 2, 4]))),
        (Net(np.arange(9.0)), Net(np.arange(9.0) + np.eye(9)[3] * 1e-12)),
        (Net(torch.eye(3).to_sparse()), Net(2 * torch.eye(3).to_sparse())),
        (Net(torch.tensor(1.0, dtype=torch.bfloat16)), Net(torch.tensor(2.0, dtype=torch.bfloat16))),
        (Net(torch.tensor([1 + 2j])), Net(torch.tensor([1 - 2j]))),
        (Net(np.array([None, 1], object)), Net(np.array([None, 2], object))),
        (Net(dataclasses.make_dataclass("D", ["x"])(1)), Net(dataclasses.make_dataclass("D", ["x"])(2))),
        (Net(torch.sin), Net(nn.Linear(2, 2))),
        (Net(np.nan), Net(np.inf)),
    ],
)
def test_what_is_held_changes_the_hash(one, other):
    hashes = [hash_of(copies(net)) for net in (one, other, one)]
    assert hashes[0] != hashes[1]
    assert hashes[0] == hashes[2]


def test_a_drawn_tensor_that_also_holds_data_changes_the_hash():
    def build(offset):
        def factory(shape, classes):
            net = Net()
            with torch.no_grad():
                net.head.weight += offset
            return net

        return factory

    data = torch.rand(10, 64, generator=torch.Generator().manual_seed(3))
    assert hash_of(build(data)) != hash_of(build(data.flip(0)))


def test_code_without_a_source_of_its_own_in_the_version_is_in_the_hash():
    class Shifted(Net):
        def forward(self, images):
            return super().forward(images) + 1e-6

    assert hash_of(lambda s, c: Net()) != hash_of(lambda s, c: Shifted())


def test_last_bits_do_not_change_what_is_rough_and_values_do():
    generator = np.random.default_rng(0)
    for size in (1, 7, 640, 20_000, 100_000):
        values = generator.normal(size=size).astype(np.float32)
        near = (values * (1 + 1e-7 * generator.choice([-1, 0, 1], size))).astype(np.float32)
        one, two = content_of(values), content_of(near)
        assert one.rough == two.rough
        if size > 1:
            assert one.rough != content_of(values[::-1]).rough
            assert content_of(generator.normal(size=size)).rough != one.rough
    assert content_of(np.array([np.nan, 1.0])).rough is None
    assert content_of(np.zeros(4)).rough is None
    assert content_of(np.arange(4)).rough is None


FLOW = """
import torch
from robustode import ODEBlock, Solver
from torch import nn

class Field(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.K, self.b = nn.Parameter(torch.randn(width, width) / 4), nn.Parameter(torch.zeros(width, 1))

    def forward(self, t, y):
        return torch.tanh(self.K @ y + self.b)

def build(shape, classes):
    flow = ODEBlock([Field(64)], final_time=1.0, solver=Solver(method="{method}", steps=4))
    return nn.Sequential(nn.Flatten(), nn.Unflatten(1, (64, 1)), flow, nn.Flatten(), nn.Linear(64, classes))
"""


def in_another_process(reference: str) -> str:
    code = (
        "import torch; torch.set_num_threads(2)\n"
        "from robustode.bench.plugins.model_file import load_external\n"
        "from robustode.bench.runtime.network_hash import network_sha256\n"
        f"spec = load_external({reference!r}); print(network_sha256(spec, (1, 8, 8), 10, spec.resolve()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def file_hash(reference: str) -> str:
    spec = load_external(reference)
    return network_sha256(spec, SHAPE, 10, spec.resolve())


def test_a_file_has_one_hash_in_every_process_and_folder_and_with_every_backend(tmp_path):
    found = set()
    for folder in ("a", "b"):
        path = tmp_path / folder / "net.py"
        path.parent.mkdir()
        path.write_text(FLOW.format(method="rk4"))
        reference = f"{path}:build"
        found |= {file_hash(reference)}
        with use_ode_backend("torchdiffeq"):
            found |= {file_hash(reference)}
    assert len(found | {in_another_process(reference)}) == 1


# --- code that the source hash does not see -------------------------------------------------------

BESIDE = """
import importlib
from pathlib import Path
from torch import nn
HERE = Path(__file__).parent

class Net(nn.Module):
    def __init__(self, classes, act):
        super().__init__()
        self.lift, self.head, self.act = nn.Linear(64, 16), nn.Linear(16, classes), act
    def forward(self, x):
        return self.head(self.act(self.lift(x.flatten(1))))

def build(shape, classes):
    {how}
    return Net(classes, act)
"""
HOW = {
    "by name": "act = importlib.import_module('act_beside').act",
    "when asked": "act = __import__('act_beside').act",
    "read and run": "here = {}; exec((HERE / 'act_beside.py').read_text(), here); act = here['act']",
    "of other names": "act = importlib.import_module('act_' + 'beside').act",
}


@pytest.mark.parametrize("how", HOW)
def test_code_that_is_imported_out_of_sight_is_seen(tmp_path, how):
    path, beside = tmp_path / "net.py", tmp_path / "act_beside.py"
    path.write_text(BESIDE.format(how=HOW[how]))
    beside.write_text("import torch\ndef act(x):\n    return torch.tanh(x)\n")
    found = []
    for text in ("torch.tanh(x)", "3 * torch.sin(5 * x)"):
        beside.write_text(f"import torch\ndef act(x):\n    return {text}\n")
        spec = load_external(f"{path}:build")
        found.append((spec.full_version, file_hash(f"{path}:build")))
    assert found[0] != found[1]
    assert (found[0][0] != found[1][0]) == (how != "of other names")
    assert found[0][1] != found[1][1]


def test_a_conditional_and_a_relative_import_are_part_of_the_version(tmp_path):
    package = tmp_path / "nets"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "deep.py").write_text("from .deeper import make\n")
    (package / "deeper.py").write_text("from torch import nn\ndef make(c):\n    return nn.Linear(64, c)\n")
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build(shape, classes, fast=True):\n"
        "    if fast:\n"
        "        from nets import deep\n"
        "    return nn.Sequential(nn.Flatten(), deep.make(classes))\n"
    )
    before = load_external(f"{tmp_path}/net.py:build").full_version
    with (package / "deeper.py").open("a") as file:
        file.write("# edited\n")
    assert load_external(f"{tmp_path}/net.py:build").full_version != before


# --- records --------------------------------------------------------------------------------------

SMALL = stubs.PRESET.replace("epochs = 2", "epochs = 1").replace(
    "\n[throughput]\nbatch_sizes = [4]\nseconds = 0.001\npasses = 2\n", ""
)


def run(folder: Path, data, *references: str, weights=None, **more) -> RunResult:
    preset = load_preset(str(stubs.preset_file(folder, SMALL)))
    plan = RunRequest(preset=preset, models=references, pretrained=weights).plan()
    return run_plan(plan, data, Store(folder / "out"), device=stubs.CPU, **more)


def trainings(folder: Path):
    return [r for r in Store(folder / "out").load()[0] if r.cell.kind == "training"]


def test_models_of_the_package_have_none_and_their_keys_stay(few, tmp_path):
    plan = make_plan(load_preset(str(stubs.preset_file(tmp_path, SMALL))))
    assert all(spec.in_package and plan.network_sha256(spec, few) is None for spec in MODELS)
    assert plan.network_sha256(stubs.spec("mine"), few) is not None
    old = Cell(kind="training", dataset="d", index_sha256="0", model="m", model_version="1")
    new = dataclasses.replace(old, network_sha256="f")
    assert new.key() != old.key()
    assert new.variant() != old.variant()
    assert "network_sha256" not in stubs.lines_of(stubs_record(old)).decode()
    assert stubs.stored_again(stubs_record(new)).cell == new


def stubs_record(cell: Cell):
    from robustode.bench.records.record import Record

    return Record(cell=cell)


def test_a_network_that_cannot_be_built_has_none_and_fails_as_before(few, tmp_path):
    def build(shape, classes):
        raise OSError("no backbone here")

    plan = make_plan(load_preset(str(stubs.preset_file(tmp_path, SMALL))), models=[stubs.spec("gone", build)])
    done = run_plan(plan, few, Store(tmp_path / "out"), device=stubs.CPU)
    (line,) = done.failures
    assert line.startswith("gone seed 0 · training: error: the model cannot be built: OSError: no backbone")


UNSEEDED = """
import numpy as np
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        features = torch.from_numpy(np.random.default_rng().normal(size=(64, 16))).float()
        {keep}
        self.head = nn.Linear(16, classes)
    def forward(self, x):
        return self.head(torch.tanh(x.flatten(1) @ self.features))

def build(shape, classes):
    return Net(classes)
"""


KEPT = ["self.features = features", "self.register_buffer('features', features)"]


@pytest.mark.parametrize("keep", KEPT)
@pytest.mark.parametrize("draws", ["np.random.default_rng()", "random.SystemRandom()", "torch.Generator()"])
def test_a_factory_that_no_seed_determines_is_refused(tmp_path, few, keep, draws, capsys):
    text = UNSEEDED.format(keep=keep)
    if "System" in draws:
        text = text.replace(
            "np.random.default_rng().normal(size=(64, 16))",
            f"np.array([{draws}.gauss(0, 1) for _ in range(1024)]).reshape(64, 16)",
        )
        text = text.replace("import torch", "import random\nimport torch", 1)
    if "torch" in draws:
        text = text.replace("features = torch", "g = torch.Generator(); g.seed(); features = torch")
        text = text.replace(
            "torch.from_numpy(np.random.default_rng().normal(size=(64, 16))).float()",
            "torch.randn(64, 16, generator=g)",
        )
    (tmp_path / "net.py").write_text(text)
    with pytest.raises(InvalidArgument, match=r"builds another network each time .*features differs"):
        run(tmp_path, few, f"{tmp_path}/net.py:build")
    assert not (tmp_path / "out" / "records").exists()


def test_a_network_that_does_not_come_back_from_its_weights_is_a_failed_training(tmp_path, few):
    text = UNSEEDED.format(keep=KEPT[0]).replace("default_rng()", "default_rng(0)")
    learns = (
        "        if self.training:\n            self.features = self.features + 0.1\n        return self.head"
    )
    (tmp_path / "net.py").write_text(text.replace("        return self.head", learns))
    done = run(tmp_path, few, f"{tmp_path}/net.py:build")
    (line,) = done.failures
    assert "net.py:build: built again with the trained weights, it answers otherwise" in line
    assert "keep what it answers by in parameters or buffers" in line
    assert [r.status for r in Store(tmp_path / "out").load()[0]] == ["error"]


UNSEEN = """
import os
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(64, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
    def forward(self, x):
        scale = float(os.environ["SCALE"])
        return self.head(torch.sin(scale * x.flatten(1)))

def build(shape, classes):
    return Net(classes)
"""


def test_a_change_that_only_a_trained_network_shows_is_refused_and_made_again_with_fresh(
    tmp_path, few, monkeypatch
):
    (tmp_path / "net.py").write_text(UNSEEN)
    reference = f"{tmp_path}/net.py:build"
    monkeypatch.setenv("SCALE", "1.0")
    assert run(tmp_path, few, reference).failures == []
    assert run(tmp_path, few, reference).done == 0
    monkeypatch.setenv("SCALE", "9.0")
    done = run(tmp_path, few, reference)
    assert done.done == 0
    assert "answers otherwise" in done.failures[0]
    assert "--fresh" in done.failures[0]
    with pytest.raises(CheckpointError, match="answers otherwise"):
        robustode.load_model(tmp_path / "out", "net", model=reference)
    assert run(tmp_path, few, reference, fresh=True).failures == []
    assert run(tmp_path, few, reference).done == 0


FROZEN = """
from pathlib import Path
import numpy as np
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.w = np.load(Path(__file__).parent / "backbone.npz")["w"]
        self.head = nn.Linear(16, classes)
    def forward(self, x):
        return self.head(torch.tanh(x.flatten(1) @ torch.from_numpy(self.w)))

def build(shape, classes):
    return Net(classes)
"""


def backbone(folder: Path, seed: int) -> None:
    w = np.random.default_rng(seed).normal(size=(64, 16)).astype(np.float32) / 8
    np.savez(folder / "backbone.npz", w=w)


def test_every_command_refuses_the_records_of_another_network(tmp_path, few, capsys):
    (tmp_path / "net.py").write_text(FROZEN)
    reference, out = f"{tmp_path}/net.py:build", tmp_path / "out"
    backbone(tmp_path, 1)
    assert run(tmp_path, few, reference, "resnet").failures == []
    write_report(out)
    assert verify(out, models=[load_external(reference)]).disagreements == []
    backbone(tmp_path, 2)
    line = "net.py:build builds another network than the one that was trained"
    found = verify(out, models=[load_external(reference)])
    assert any(line in finding.what for finding in found.disagreements)
    assert main(["audit", "--out", str(out), "--models", reference, "--checks", "logits", "--jobs", "1"]) == 1
    assert line in capsys.readouterr().err
    assert main(["transfer", "--out", str(out), "--models", f"{reference},net"]) in (0, 1, 2)
    assert line in "".join(capsys.readouterr())
    np.savez(tmp_path / "sent.npz", index=few.test.indices[:2], image=few.test.images[:2].numpy())
    sent = ["submit-attack", str(tmp_path / "sent.npz"), "--model", reference, "--out", str(out)]
    assert main(sent) in (1, 2)
    assert line in capsys.readouterr().err


def test_a_dry_run_says_what_is_to_be_done_again(tmp_path, digits, capsys):
    (tmp_path / "net.py").write_text(FROZEN)
    reference = f"{tmp_path}/net.py:build"
    backbone(tmp_path, 1)
    assert run(tmp_path, digits, reference).failures == []
    preset = str(stubs.preset_file(tmp_path, SMALL))
    argv = ["run", "--preset", preset, "--models", reference, "--out", str(tmp_path / "out"), "--dry-run"]
    for seed, left in ((1, 0), (2, None)):
        backbone(tmp_path, seed)
        assert main(argv) == 0
        out = capsys.readouterr().out
        assert (" 0 of " in out) == (left == 0)
