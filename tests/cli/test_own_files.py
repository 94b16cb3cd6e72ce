"""Threats, datasets and presets of one's own: what `new-...` writes works, `--load` finds it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import robustode
import stubs
import torch
from PIL import Image
from robustode._errors import AttackFailure, DataUnavailable, InvalidArgument
from robustode.attacks import THREATS
from robustode.bench.cli.main import main
from robustode.bench.config.cells import training_cell
from robustode.bench.config.preset import load_preset
from robustode.bench.config.run_request import RunRequest
from robustode.bench.data import DATASETS, load_data
from robustode.bench.plugins.model_file import load_registrations
from robustode.bench.plugins.new_file import new_file
from robustode.models import MODELS
from torch import nn
from torch.utils.data import TensorDataset

pytestmark = pytest.mark.usefixtures("registries")


def linear(pixels: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes)).eval()


def accuracy(frame, threat: str) -> float:
    return float(frame[(frame["threat"] == threat) & (frame["statistic"] == "accuracy")]["value"].iloc[0])


# --- what new-... writes ------------------------------------------------------------------------------------


def test_a_new_threat_works_as_written(tmp_path):
    load_registrations([new_file("threat", "mine", tmp_path / "mine.py")])
    threat = THREATS.get("mine")
    assert (threat.norm, dict(threat.parameters)) == ("linf", {"step": 1.0})
    model = stubs.two_class(torch.ones(1, 4, 4), -8.0)
    images = torch.full((3, 1, 4, 4), 0.55)
    attacked = threat(model, images, torch.ones(3, dtype=torch.long), 0.1, 0)
    torch.testing.assert_close(attacked, images - 0.1)
    frame = robustode.evaluate(linear(64, 10), threats=["clean", ("mine", 0.1)], samples=20)
    assert accuracy(frame, "mine") <= accuracy(frame, "clean")


def test_a_new_dataset_and_a_new_preset_make_a_plan(tmp_path):
    data_file = new_file("dataset", "bars", tmp_path / "bars.py")
    path = new_file("preset", "mine", tmp_path / "mine.toml")
    assert RunRequest(preset=load_preset(str(path))).plan().headline().reported == {
        "gaussian": 0.2,
        "linf": 0.1,
    }
    path.write_text(path.read_text().replace('dataset = "digits"', 'dataset = "bars"'))
    request = RunRequest(preset=load_preset(str(path)), load=(data_file,))
    request.plan()
    data = request.data()
    assert (data.num_classes, data.input_shape) == (4, (1, 8, 8))
    assert (len(data.train), len(data.validation), len(data.test)) == (432, 48, 120)


def test_the_commands_write_files_and_list_shows_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for kind in ("threat", "dataset"):
        assert main([f"new-{kind}", f"my-{kind}"]) == 0
        assert f"robustode list {kind}s --load my_{kind}.py" in capsys.readouterr().out
        assert main(["list", f"{kind}s", "--load", f"my_{kind}.py", "--json"]) == 0
        assert f"my-{kind}" in [entry["name"] for entry in json.loads(capsys.readouterr().out)]
    assert main(["new-preset", "mine"]) == 0
    assert load_preset("mine.toml").name == "mine"
    capsys.readouterr()
    for command, name in (("threat", "pgd-linf"), ("dataset", "digits"), ("preset", "quick")):
        assert main([f"new-{command}", name]) == 2
        assert "is registered already" in capsys.readouterr().err
    assert main(["new-threat", "other", "mine.toml"]) == 2
    assert "ends in .py" in capsys.readouterr().err


# --- --load -------------------------------------------------------------------------------------------------


def test_what_a_file_registers_is_replaced_when_it_is_loaded_again(tmp_path):
    path = new_file("threat", "mine", tmp_path / "mine.py")
    load_registrations([path])
    first = THREATS.get("mine")
    load_registrations([path])
    assert THREATS.get("mine").version == first.version > 1
    path.write_text(path.read_text().replace("step: float = 1.0", "step: float = 0.5"))
    load_registrations([path])
    assert THREATS.get("mine").parameters["step"] == 0.5
    assert THREATS.get("mine").version != first.version, "a changed algorithm never reuses an old record"


def test_a_model_that_a_loaded_file_registers_has_its_source(tmp_path):
    load_registrations([new_file("model", "zoo-net", tmp_path / "zoo.py")])
    spec = MODELS.get("zoo-net")
    assert (spec.file, spec.folder) == ("zoo.py:build", tmp_path)
    assert spec.source
    assert spec.build((1, 8, 8), 10)(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_editing_an_attack_trains_no_model_again(tmp_path, few):
    model = new_file("model", "net", tmp_path / "net.py")
    attack = new_file("threat", "mine", tmp_path / "mine.py")
    text = stubs.PRESET.replace('name = "pgd-linf"', 'name = "mine"').replace(
        "\n[threats.parameters]\nsteps = 3\nrestarts = 1", ""
    )
    request = RunRequest(
        preset=load_preset(str(stubs.preset_file(tmp_path, text))), models=(f"{model}:build",), load=(attack,)
    )

    def keys() -> tuple[str, int]:
        plan = request.plan()
        (mine,) = [a.threat.version for a in plan.attacks if a.threat.name == "mine"]
        return training_cell(plan, plan.specs[0], 0, few).key(), mine

    training, version = keys()
    attack.write_text(attack.read_text() + "\n# another\n")
    assert keys()[0] == training
    assert keys()[1] != version
    model.write_text(model.read_text() + "\n# another\n")
    assert keys()[0] != training


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "registers nothing: decorate a function with robustode.register_model"),
        ("import robustode\n\n1 / 0\n", r"mine\.py cannot be imported: ZeroDivisionError: .* \(mine\.py:3\)"),
        (
            "import robustode\n@robustode.register_threat('mine', family='noise')\ndef f(x):\n    pass\n",
            r"threat mine: write craft\(model, images, labels, strength, seed\).* \(mine\.py:2\)",
        ),
    ],
)
def test_a_file_that_cannot_be_loaded_is_one_line(tmp_path, capsys, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    before = THREATS.names()
    with pytest.raises(InvalidArgument, match=message):
        load_registrations([path])
    assert THREATS.names() == before
    assert main(["list", "threats", "--load", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert main(["list", "threats", "--load", str(tmp_path / "none.py")]) == 2
    assert "there is no file" in capsys.readouterr().err


# --- attacks that go wrong ----------------------------------------------------------------------------------

CRAFT = """import torch
import robustode


@robustode.register_threat("mine", family="{family}", norm="linf")
def craft(model, images, labels, strength, seed):
    images = images.requires_grad_(True)
    {line}
"""


@pytest.mark.parametrize(
    ("family", "line", "error", "message"),
    [
        (
            "gradient",
            "return (images + undefined)",
            AttackFailure,
            r"NameError: .* \(mine\.py:8\)",
        ),
        ("gradient", "return None", AttackFailure, r"mine returned NoneType.* \(mine\.py:5\)"),
        (
            "search",
            "return images + 0 * torch.autograd.grad(model(images).sum(), images)[0]",
            AttackFailure,
            r"does not require grad.* \(mine\.py:8\): register the threat with needs_gradient=True",
        ),
    ],
)
def test_an_attack_that_goes_wrong_names_its_line(tmp_path, family, line, error, message):
    path = tmp_path / "mine.py"
    path.write_text(CRAFT.format(family=family, line=line))
    load_registrations([path])
    model, images = stubs.two_class(torch.ones(1, 4, 4), -8.0), torch.full((2, 1, 4, 4), 0.5)
    threat = THREATS.get("mine")
    with pytest.raises(error, match=message) as caught, torch.set_grad_enabled(threat.needs_gradient):
        threat(model, images, torch.ones(2, dtype=torch.long), 0.1, 0)
    assert len(str(caught.value).splitlines()) == 1


# --- datasets -----------------------------------------------------------------------------------------------


def register(loaded, **options):
    DATASETS.unregister("mine")
    robustode.register_dataset("mine", **options)(lambda root: loaded)
    return load_data("mine")


IMAGES, LABELS = np.zeros((40, 3, 4, 4), np.uint8), np.arange(40) % 2


def test_images_come_in_any_of_the_usual_shapes():
    bright = IMAGES.copy()
    bright[:, 1] = 255
    for images in (bright, bright.transpose(0, 2, 3, 1), torch.from_numpy(bright), bright / 255):
        data = register(((images, LABELS), None))
        assert (data.input_shape, data.num_classes, len(data.test)) == ((3, 4, 4), 2, 8)
        assert data.test.images.amax((0, 2, 3)).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("loaded", "options", "message"),
    [
        ((IMAGES, LABELS), {}, r"load must return .* not a tuple"),
        (None, {}, "load must return .* not a NoneType"),
        (((IMAGES, LABELS[:3]), None), {}, r"40 images and labels of shape \(3,\)"),
        (((IMAGES, LABELS / 2), None), {}, "labels must be whole numbers from 0$"),
        (((IMAGES, LABELS - 1), None), {}, "labels must be whole numbers from 0$"),
        (((IMAGES, LABELS), None), {"num_classes": 1}, r"from 0 to 0 \(num_classes=1\)"),
        (((IMAGES - 0.5, LABELS), None), {}, r"between -0\.5 and -0\.5, should be in \[0, scale=1\]"),
        (((IMAGES + np.nan, LABELS), None), {}, "pixels lie between nan and nan"),
        (((IMAGES[0], LABELS[:3]), (IMAGES, LABELS)), {}, "training and test images differ in shape"),
        (((IMAGES, LABELS), None), {"test": 40}, "validation=0 and test=40 of 40 samples leave none"),
        (((IMAGES, LABELS), None), {"validation": 2.5}, "validation is a number of samples, not 2.5"),
    ],
)
def test_arrays_that_cannot_be_used_are_one_line(loaded, options, message):
    with pytest.raises(InvalidArgument, match=message) as caught:
        register(loaded, **options)
    assert len(str(caught.value).splitlines()) == 1


def test_a_load_that_raises_names_its_line(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import robustode\n\n@robustode.register_dataset('mine')\ndef load(root):\n    open(root / 'x')\n"
    )
    load_registrations([path])
    with pytest.raises(DataUnavailable, match=r"'mine': load raised FileNotFoundError: .* \(mine\.py:5\)"):
        load_data("mine", tmp_path)


def test_evaluate_takes_images_as_they_are():
    model = linear(16, 3)
    images = torch.rand(30, 1, 4, 4)
    labels = model(images).argmax(1)
    for dataset in (
        (images, labels),
        TensorDataset(images, labels),
        ((images * 255).round().to(torch.uint8).numpy(), labels.numpy()),
    ):
        frame = robustode.evaluate(model, dataset=dataset, threats=["clean", ("pgd-linf", 0.3)])
        assert set(frame["dataset"]) == {"own-data"}
        assert accuracy(frame, "clean") > 0.9
        assert accuracy(frame, "pgd-linf") < accuracy(frame, "clean")
    for wrong, message in (
        (3, "a name, a folder of images, a TensorDataset or a pair"),
        ((images, labels + 3), "the module answers 3 classes"),
        ((images - 1, labels), r"should be in \[0, scale=1\]"),
        ((images, labels[:3]), "30 images and labels"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            robustode.evaluate(model, dataset=wrong, threats="clean")


def write_images(folder, counts: dict[str, int], mode: str = "L", size: tuple[int, int] = (4, 4)) -> None:
    for value, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            colour = 60 * value + number if mode == "L" else (60 * value + number, 0, 0)
            Image.new(mode, size, colour).save(folder / name / f"{number}.png")


def test_a_folder_of_images_is_a_dataset(tmp_path):
    write_images(tmp_path / "pets", {"cat": 10, "dog": 20})
    (tmp_path / "pets" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "pets" / "empty").mkdir()
    robustode.register_image_folder("pets", tmp_path / "pets")
    data = load_data("pets")
    assert (data.num_classes, data.input_shape) == (2, (1, 4, 4))
    assert (len(data.train), len(data.validation), len(data.test)) == (22, 2, 6)
    for label, pixel in zip(
        data.train.labels, (data.train.images * 255).round().amax((1, 2, 3)), strict=True
    ):
        assert int(label) == (float(pixel) >= 60)
    frame = robustode.evaluate(linear(16, 2), dataset=tmp_path / "pets", threats="clean")
    assert set(frame["dataset"]) == {"pets"}
    assert frame["samples"].iloc[0] == 30


def test_folders_to_train_and_to_test_share_their_classes(tmp_path, capsys, monkeypatch):
    write_images(tmp_path / "pets" / "train", {"ant": 1, "cat": 10, "dog": 10}, "RGB")
    write_images(tmp_path / "pets" / "test", {"dog": 3}, "RGB")
    monkeypatch.chdir(tmp_path)
    assert main(["new-dataset", "pets", "--images", "pets"]) == 0
    load_registrations([tmp_path / "pets.py"])
    data = load_data("pets")
    assert (data.input_shape, len(data.test), data.num_classes) == ((3, 4, 4), 3, 3)
    assert set(data.test.labels.tolist()) == {2}
    write_images(tmp_path / "pets" / "test", {"eel": 1}, "RGB")
    with pytest.raises(DataUnavailable, match="no training images of the class 'eel'"):
        load_data("pets")


def test_images_that_cannot_be_read_are_named(tmp_path):
    write_images(tmp_path / "a", {"cat": 1})
    write_images(tmp_path / "b", {"cat": 1}, size=(5, 6))
    (tmp_path / "b" / "cat" / "0.png").rename(tmp_path / "a" / "cat" / "1.png")
    robustode.register_image_folder("mixed", tmp_path / "a")
    robustode.register_image_folder("scaled", tmp_path / "a", size=(3, 2), test=1, validation=0)
    robustode.register_image_folder("none", tmp_path / "b")
    robustode.register_image_folder("gone", tmp_path / "c")
    with pytest.raises(DataUnavailable, match=r"1\.png is 6 pixels high and 5 wide.*size=\(height, width\)"):
        load_data("mixed")
    assert load_data("scaled").input_shape == (1, 3, 2)
    with pytest.raises(DataUnavailable, match="holds no images in folders"):
        load_data("none")
    with pytest.raises(DataUnavailable, match="there is no folder"):
        load_data("gone")
    (tmp_path / "a" / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataUnavailable, match=r"0\.png cannot be read as an image"):
        load_data("mixed")
