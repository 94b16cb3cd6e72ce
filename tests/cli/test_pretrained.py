"""Weights given instead of trained: checked first, kept byte for byte, cells of their own."""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import shutil
from pathlib import Path

import pytest
import robustode
import safetensors.torch
import stubs
import torch
from robustode._errors import CheckpointError, InvalidArgument
from robustode.bench.cli.main import main
from robustode.bench.config.cells import (
    accuracy_cells,
    certificate_cells,
    dynamics_cell,
    throughput_cells,
    training_cell,
)
from robustode.bench.config.model_selection import select_models
from robustode.bench.config.plan import make_plan
from robustode.bench.config.preset import load_preset
from robustode.bench.config.pretrained import PretrainedWeights
from robustode.bench.plugins.model_file import load_external
from robustode.bench.records.checkpoint import save_tensors
from robustode.bench.records.record import Cell
from robustode.bench.records.store import Store
from robustode.bench.report.statistics import summarise
from robustode.bench.runner import model_weights
from robustode.bench.runner.run import run_plan
from robustode.bench.verification.verify import verify

NET = """
from torch import nn

def my_net(shape, classes, *, hidden=5):
    size = shape[0] * shape[1] * shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(size, hidden), nn.Tanh(), nn.Linear(hidden, classes))
"""
PUBLISHED = Path(__file__).parents[2] / "results"
pytestmark = pytest.mark.usefixtures("registries")


def net(seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, 5), torch.nn.Tanh(), torch.nn.Linear(5, 10)
        )


def save(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    safetensors.torch.save_file(tensors, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    (folder / "net.py").write_text(NET)
    stubs.preset_file(folder)
    save(folder / "w.safetensors", net().state_dict())
    return folder


def argv(folder: Path, out: Path) -> list[str]:
    files = ["--models", f"{folder}/net.py:my_net", "--weights", str(folder / "w.safetensors")]
    return [
        "run",
        "--preset",
        str(folder / "tiny.toml"),
        *files,
        "--device",
        "cpu",
        "--out",
        str(out),
        "--jobs",
        "1",
    ]


@pytest.fixture(scope="module")
def out(home) -> Path:
    assert main([*argv(home, home / "out"), "--quiet"]) == 0
    return home / "out"


def training_of(folder: Path):
    (record,) = (r for r in Store(folder).load()[0] if r.cell.kind == "training")
    return record


def test_the_record_says_that_the_weights_were_given(home, out):
    sha256 = hashlib.sha256((home / "w.safetensors").read_bytes()).hexdigest()
    record = training_of(out)
    assert dict(record.cell.recipe) == {"name": "given", "weights_sha256": sha256}
    assert (record.cell.samples, record.cell.training_seed) == (0, 0)
    assert (record.seconds, record.forwards, record.backwards, dict(record.outcomes)) == (0, 0, 0, {})
    assert record.card["given"] == {"file": "w.safetensors", "sha256": sha256}
    assert record.card["file"] == "net.py:my_net"
    assert "best_epoch" not in record.measures
    table = summarise(Store(out).load()[0])
    assert set(table["recipe"]) == {"given"}
    assert "training_seconds" not in set(table["statistic"])
    page = (out / "report" / "index.html").read_text()
    assert f"SHA-256 <code>{sha256}" in page
    assert "epochs in" not in page
    assert "| my-net | given |" in (out / "report" / "leaderboard.md").read_text()


def test_the_checkpoint_is_the_file_and_is_loaded_and_verified(home, out, digits, capsys):
    (path,) = (out / "checkpoints" / "my-net").glob("*.safetensors.xz")
    assert lzma.decompress(path.read_bytes()) == (home / "w.safetensors").read_bytes()
    model = robustode.load_model(out, "my-net", model=f"{home}/net.py:my_net")
    with torch.no_grad():
        assert torch.equal(model(digits.test.images), net()(digits.test.images))
    assert main(["verify", "--out", str(out), "--models", f"{home}/net.py:my_net"]) == 0
    assert re.search(
        r"models 1, adversarial examples \d+; disagreements: 0, notes: 0", capsys.readouterr().out
    )


def test_a_run_again_does_nothing_and_a_fresh_one_everything(home, out, tmp_path, digits):
    folder = Path(shutil.copytree(out, tmp_path / "out"))
    given = PretrainedWeights.read(home / "w.safetensors")
    plan = make_plan(
        load_preset(str(home / "tiny.toml")),
        models=[load_external(f"{home}/net.py:my_net")],
        pretrained=given,
    )
    for fresh, expected in ((False, (0, stubs.CELLS)), (True, (stubs.CELLS, 0))):
        outcome = run_plan(plan, digits, Store(folder), device=stubs.CPU, fresh=fresh)
        assert (outcome.done, outcome.skipped) == expected
    assert training_cell(plan, plan.specs[0], 0, digits).key() == training_of(out).cell.key()


def test_a_dry_run_writes_nothing(home, tmp_path, capsys):
    assert main([*argv(home, tmp_path / "none"), "--dry-run"]) == 0
    assert f"{stubs.CELLS} of {stubs.CELLS} cells to do" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_other_weights_are_other_cells(home, out, digits):
    save(home / "other.safetensors", net(1).state_dict())
    preset, spec = load_preset(str(home / "tiny.toml")), load_external(f"{home}/net.py:my_net")
    plans = [
        make_plan(preset, models=[spec], pretrained=given)
        for given in (None, PretrainedWeights.read(home / "other.safetensors"))
    ]
    trained, other = (training_cell(plan, spec, 0, digits) for plan in plans)
    assert len({trained.key(), other.key(), training_of(out).cell.key()}) == 3
    assert other.samples == 0 < trained.samples


def test_weights_swapped_under_the_record_are_named(out, tmp_path):
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    (path,) = (copy / "checkpoints" / "my-net").glob("*.safetensors.xz")
    save_tensors(path, net(1).state_dict())
    found = "\n".join(str(finding) for finding in verify(copy).disagreements)
    assert re.search(f"{path.name}: .*hash .*recipe", found)


def test_nothing_is_trained(home, tmp_path, monkeypatch, few):
    monkeypatch.setattr(model_weights, "train", None)
    preset, given = load_preset(str(home / "tiny.toml")), PretrainedWeights.read(home / "w.safetensors")
    plan = make_plan(
        preset, models=[stubs.spec("net", lambda shape, classes: net(7))], seeds=None, pretrained=given
    )
    outcome = run_plan(plan, few, Store(tmp_path), device=stubs.CPU)
    assert (outcome.done, outcome.failures) == (stubs.CELLS, [])


def fitting(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**net().state_dict(), **changes}


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in fitting().items() if key != name}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (without("1.bias"), "w.safetensors does not fit the model: it lacks 1.bias"),
        (fitting(extra=torch.zeros(1)), "the model has no extra"),
        (fitting(**{"1.bias": torch.zeros(6)}), "1.bias has shape (6,), in the model (5,)"),
        (fitting(**{"1.bias": torch.zeros(5).half()}), "1.bias has dtype float16, in the model float32"),
        ({f"t{i}": torch.zeros(1) for i in range(5)}, "it lacks 1.weight, 1.bias, 3.weight and 1 more"),
    ],
)
def test_weights_that_do_not_fit_are_one_line_before_anything_runs(home, tmp_path, capsys, tensors, message):
    save(tmp_path / "w.safetensors", tensors)
    for name in ("net.py", "tiny.toml"):
        (tmp_path / name).write_text((home / name).read_text())
    assert main(argv(tmp_path, tmp_path / "out")) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "none.safetensors"], "none.safetensors cannot be read: No such file"),
        (["--weights", "module.pt"], "module.pt cannot be read without running code from it"),
        (["--weights", "mixed.pt"], "mixed.pt holds more than tensors (_extra_state: dict)"),
        (["--weights", "list.pt"], "list.pt holds no weights by name"),
        (["--weights", "w.npz"], "w.npz is no file of weights by its name"),
        (["--weights", "bad.safetensors"], "another name, refused because it can run code: if torch.save"),
        (["--weights", "w.safetensors", "--seeds", "2"], "one model and one seed, not seeds 0, 1"),
        (
            ["--weights", "w.safetensors", "--models", "resnet,node"],
            "one model and one seed, these are 2 models",
        ),
    ],
)
def test_what_cannot_be_given_is_one_line(home, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    torch.save(net(), "module.pt")
    torch.save({**net().state_dict(), "_extra_state": {"calls": 3}}, "mixed.pt")
    torch.save([1, 2], "list.pt")
    torch.save(net().state_dict(), "bad.safetensors")
    save(Path("w.safetensors"), net().state_dict())
    assert main(["run", "--preset", str(home / "tiny.toml"), *arguments, "--out", "out"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert "train again" not in err
    assert not Path("out").exists()


def test_weights_that_change_while_they_are_taken_are_refused(tmp_path):
    save(tmp_path / "w.safetensors", net().state_dict())
    given = PretrainedWeights.read(tmp_path / "w.safetensors")
    save(tmp_path / "w.safetensors", net(1).state_dict())
    with pytest.raises(CheckpointError, match="has changed since it was first read"):
        given.store(tmp_path / "stored.safetensors", {}, net())
    assert not (tmp_path / "stored.safetensors").exists()


class Tied(torch.nn.Module):
    """The last layer's weight is that of the first, transposed by its use."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in net().state_dict().items()}


FILES = {
    "w.pt": (net().state_dict(), ""),
    "w.pth": (prefixed("module."), "'module.' is taken off its names"),
    "compiled.pt": (prefixed("module._orig_mod."), "'module. and _orig_mod.' is taken off"),
    "inner.pt": ({n.replace("1.", "1._orig_mod."): t for n, t in net().state_dict().items()}, "'_orig_mod.'"),
    "lightning.ckpt": ({"epoch": 3, "state_dict": prefixed("model.")}, "'model.' is taken off its names"),
    "training.bin": ({"model": net().state_dict(), "optimizer": {"state": {0: torch.zeros(1)}}}, ""),
    "w.safetensors": (prefixed("_orig_mod."), "'_orig_mod.' is taken off its names"),
}


@pytest.mark.parametrize("name", FILES)
def test_weights_are_taken_as_people_have_them(tmp_path, name):
    state, expected = FILES[name]
    save(tmp_path / name, state) if name.endswith("safetensors") else torch.save(state, tmp_path / name)
    given, note = PretrainedWeights.read(tmp_path / name).fitted(net(7))
    assert expected in note
    assert bool(note) == bool(expected)
    stored = given.store(tmp_path / "stored.safetensors", {}, net(7))
    assert stored.sha256 == given.sha256
    found = safetensors.torch.load_file(tmp_path / "stored.safetensors")
    assert found.keys() == net().state_dict().keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in net().state_dict().items())


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_model_that_is_wrapped_itself_takes_weights_without_a_prefix(tmp_path, name):
    state = net().state_dict()
    save(tmp_path / name, state) if name.endswith("safetensors") else torch.save(state, tmp_path / name)
    wrapped = torch.nn.DataParallel(net(7))
    given, _ = PretrainedWeights.read(tmp_path / name).fitted(wrapped)
    given.store(tmp_path / "stored.safetensors", {}, wrapped)
    wrapped.load_state_dict(safetensors.torch.load_file(tmp_path / "stored.safetensors"))
    assert torch.equal(wrapped.module[1].weight, net()[1].weight)


def test_of_tied_weights_a_file_holds_one(tmp_path):
    model, other = Tied(), Tied()
    safetensors.torch.save_model(model, tmp_path / "w.safetensors")
    assert len(safetensors.torch.load_file(tmp_path / "w.safetensors")) == 3
    given, note = PretrainedWeights.read(tmp_path / "w.safetensors").fitted(other)
    assert re.search(r"(en|de)coder\.weight taken from the weights they are tied to", note)
    given.store(tmp_path / "stored.safetensors", {}, other)
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "stored.safetensors"))
    assert torch.equal(other.decoder.weight, model.encoder.weight)


def test_tied_weights_that_contradict_each_other_do_not_fit(tmp_path):
    torch.save({**Tied().state_dict(), "decoder.weight": torch.zeros(4, 4)}, tmp_path / "w.pt")
    with pytest.raises(
        CheckpointError, match=r"decoder.weight and encoder.weight differ, and are one tensor"
    ):
        PretrainedWeights.read(tmp_path / "w.pt").fitted(Tied())


FINISHED = NET.replace("return nn", "net = nn") + "    return net.requires_grad_(False)\n"


def test_a_finished_network_runs_with_weights_of_torch_save(home, tmp_path, capsys):
    (tmp_path / "net.py").write_text(FINISHED)
    (tmp_path / "tiny.toml").write_text((home / "tiny.toml").read_text())
    torch.save(prefixed("module."), tmp_path / "w.pt")
    arguments = argv(tmp_path, tmp_path / "out")
    arguments[arguments.index("--weights") + 1] = str(tmp_path / "w.pt")
    assert main([*arguments, "--quiet"]) == 0
    assert "note: w.pt: 'module.' is taken off its names\n" in capsys.readouterr().err
    model = robustode.load_model(tmp_path / "out", "my-net", model=f"{tmp_path}/net.py:my_net")
    assert torch.equal(model[1].weight, net()[1].weight)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    report = tmp_path / "out" / "report"
    assert "may have seen the test samples" in (report / "index.html").read_text()
    assert "they may have seen the test samples." in (report / "leaderboard.md").read_text()
    assert "they may have seen the test samples." in (report / "leaderboard.tex").read_text()


def test_a_factory_that_hangs_meets_the_time_limit(home, tmp_path, capsys):
    (tmp_path / "net.py").write_text(
        "import time" + NET.replace("    size =", "    time.sleep(30)\n    size =")
    )
    text = (home / "tiny.toml").read_text().replace("training = 60", "training = 0.2")
    (tmp_path / "tiny.toml").write_text(text)
    save(tmp_path / "w.safetensors", net().state_dict())
    assert main(argv(tmp_path, tmp_path / "out")) != 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "building my-net took longer than its limit of 0.2 s" in err
    assert not (tmp_path / "out").exists()


def test_no_trained_recipe_may_pass_for_given(tmp_path):
    preset = stubs.preset_file(tmp_path, stubs.PRESET.replace("[recipe]", '[recipe]\nname = "given"'))
    with pytest.raises(InvalidArgument, match="'given' is reserved for --weights"):
        make_plan(load_preset(str(preset)))


def stored(folder: str, model: str) -> list[Cell]:
    """Cells of one published model and seed, as their files have them."""
    wanted = json.loads((PUBLISHED / folder / "plan.json").read_text())
    keys = {
        key for where, keys in wanted["cells"].items() if where.split("/")[1:] == [model, "0"] for key in keys
    }
    return [r.cell for r in Store(PUBLISHED / folder).load()[0] if r.cell.key() in keys]


@pytest.mark.parametrize(
    ("folder", "preset", "model"),
    [("digits", "quick", "ch-node"), ("digits", "quick", "resnet"), ("paper", "paper", "node-4")],
)
def test_the_plan_still_makes_the_keys_of_published_records(folder, preset, model):
    """The index of MNIST's samples is taken from the record, so that its images need not be there."""
    cells = stored(folder, model)
    (training,) = (cell for cell in cells if cell.kind == "training")
    chosen = load_preset(preset)
    plan = make_plan(chosen, models=select_models(chosen, [model]))
    count = {kind: max(c.samples for c in cells if c.kind == kind) for kind in ("training", "certificate")}

    class Sized:
        name, index_sha256 = training.dataset, training.index_sha256
        train, test = range(count["training"]), range(count["certificate"])

    made = training_cell(plan, plan.specs[0], 0, Sized())
    assert made.key() == training.key()
    sha256, solver = next((c.checkpoint_sha256, c.solver) for c in cells if c.kind == "accuracy")
    accuracy = accuracy_cells(plan, made, sha256, solver, Sized())
    certificates = certificate_cells(plan, made, sha256, solver, Sized())
    dynamics = dynamics_cell(plan, made, sha256, solver)
    again = {cell.key() for cell in (*accuracy, *certificates, dynamics)}
    assert again == {cell.key() for cell in cells if cell.kind not in ("training", "throughput")}
    timings = [cell for cell in cells if cell.kind == "throughput"]
    for device in {cell.device for cell in timings}:
        found = {cell.key() for cell in throughput_cells(plan, made, sha256, solver, device)}
        assert found == {cell.key() for cell in timings}
