"""Models from a file anywhere, with packages of any name beside it."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from robustode._errors import InvalidArgument, UnknownName
from robustode.bench.plugins.file_source import source_sha256
from robustode.bench.plugins.model_file import load_external, load_files, resolve_model
from robustode.models import MODELS

pytestmark = pytest.mark.usefixtures("registries")

PLAIN = """
import torch
from torch import nn

def tiny(input_shape, num_classes, *, scale=1.0):
    channels, height, width = input_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, num_classes))
"""

DECORATED = """
import robustode
from torch import nn

@robustode.register_model("my-model", summary="mine", claims=frozenset({"fixed_step"}), recipe={"epochs": 3})
def build(input_shape, num_classes, *, width=4):
    channels, height, breadth = input_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * breadth, num_classes))
"""

WITH_PACKAGE = """
from torch import nn
from models.layers import NAME, bias

def build(input_shape, num_classes):
    from models.late import LATE
    channels, height, width = input_shape
    layer = nn.Linear(channels * height * width, num_classes)
    nn.init.constant_(layer.bias, bias())
    layer.name = NAME + LATE
    return nn.Sequential(nn.Flatten(), layer)
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def project(folder: Path, name: str, bias: float, file: str = "net.py") -> Path:
    """A file with the user's own package ``models`` beside it."""
    write(folder / "models" / "__init__.py", "")
    write(folder / "models" / "layers.py", f"NAME = {name!r}\ndef bias():\n    return {bias}\n")
    write(folder / "models" / "late.py", f"LATE = '-late-{name}'\n")
    return write(folder / file, WITH_PACKAGE)


def build(spec, shape=(1, 2, 2)):
    return spec.build(shape, 3, **spec.resolve())


def test_a_plain_factory_is_called_after_itself(tmp_path):
    path = write(tmp_path / "any.py", PLAIN)
    spec = load_external(f"{path}:tiny")
    assert spec.name == "tiny"
    assert spec.resolve() == {"scale": 1.0}
    assert spec.source == hashlib.sha256(b"%s\0%s\0" % (path.name.encode(), path.read_bytes())).hexdigest()
    assert spec.full_version == f"1+{spec.source[:12]}"
    assert build(spec)(torch.zeros(2, 1, 2, 2)).shape == (2, 3)
    assert "tiny" not in MODELS, "a plain factory joins no registry"


@pytest.mark.parametrize("name", ["build", "factory", "model", "make", "make_model"])
def test_a_factory_with_a_common_name_is_called_after_its_file(tmp_path, name):
    path = write(tmp_path / "My Net_2.py", PLAIN.replace("def tiny", f"def {name}"))
    assert load_external(f"{path}:{name}").name == "my-net-2"


def test_a_decorated_factory_keeps_what_it_says_of_itself(tmp_path):
    path = write(tmp_path / "net.py", DECORATED)
    spec = load_external(f"{path}:build")
    assert spec.name == "my-model"
    assert spec.summary == "mine"
    assert spec.claims == {"fixed_step"}
    assert spec.resolve() == {"width": 4}
    assert spec.recipe == {"epochs": 3}
    assert spec.source is not None


def test_loading_twice_gives_the_same_model(tmp_path):
    path = write(tmp_path / "net.py", DECORATED)
    one, two = load_external(f"{path}:build"), load_external(f"{path}:build")
    assert (one.name, one.source, one.claims) == (two.name, two.source, two.claims)


@pytest.mark.parametrize("changed", ["file", "beside"])
def test_a_file_that_was_edited_runs_as_it_is_now(tmp_path, changed):
    beside = write(tmp_path / "width_of_it.py", "WIDTH = 3\n")
    path = write(
        tmp_path / f"edited_{changed}.py",
        "from robustode import register_model\n"
        "from torch import nn\n"
        "from width_of_it import WIDTH\n"
        "@register_model('edited')\n"
        "def build(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(4, WIDTH * 1), nn.Linear(WIDTH * 1, classes))\n",
    )

    def width() -> int:
        return int(load_external(f"{path}:build").build((1, 2, 2), 3)[1].out_features)

    first = load_external(f"{path}:build")
    assert width() == 3
    if changed == "file":
        write(path, "# one line more\n" + path.read_text().replace("* 1", "* 4"))
    else:
        write(beside, "WIDTH = 12\n")
    second = load_external(f"{path}:build")
    assert (second.name, width()) == ("edited", 12)
    assert second.full_version != first.full_version
    assert int(first.build((1, 2, 2), 3)[1].out_features) == 3, "what was loaded before stays what it was"


@pytest.mark.parametrize("wraps", [True, False])
def test_two_factories_of_one_decorator_are_two_models(tmp_path, wraps):
    path = write(
        tmp_path / f"decorated_{wraps}.py",
        "import functools\n"
        "from robustode import register_model\n"
        "from torch import nn\n"
        "def flat(factory):\n"
        + ("    @functools.wraps(factory)\n" if wraps else "")
        + "    def build(shape, classes):\n"
        "        return nn.Sequential(nn.Flatten(), factory(shape[0] * shape[1] * shape[2], classes))\n"
        "    return build\n"
        "@register_model('straight')\n"
        "@flat\n"
        "def straight(n, k):\n"
        "    return nn.Linear(n, k)\n"
        "@register_model('bent')\n"
        "@flat\n"
        "def bent(n, k):\n"
        "    return nn.Sequential(nn.Linear(n, 3), nn.Tanh(), nn.Linear(3, k))\n",
    )
    one, two = (load_external(f"{path}:{name}") for name in ("straight", "bent"))
    assert (one.name, two.name) == ("straight", "bent")
    assert [len(spec.build((1, 2, 2), 10)[1].state_dict()) for spec in (one, two)] == [2, 4]
    assert load_external(f"{path}:bent").name == "bent"


def test_factories_that_share_a_definition_keep_their_names(tmp_path):
    path = write(
        tmp_path / "shared.py",
        "import functools\n"
        "from robustode import register_model\n"
        "from torch import nn\n"
        "def base(shape, classes, width=4):\n"
        "    pixels = shape[0] * shape[1] * shape[2]\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, width), nn.Linear(width, classes))\n"
        "def wrapped(factory):\n"
        "    return functools.wraps(factory)(lambda shape, classes: factory(shape, classes))\n"
        "once = register_model('once')(wrapped(base))\n"
        "twice = register_model('twice')(wrapped(wrapped(base)))\n"
        "plain = register_model('plain')(base)\n"
        "def partial(width):\n"
        "    return functools.update_wrapper(functools.partial(base, width=width), base)\n"
        "small, large = (register_model(n)(partial(w)) for n, w in (('small', 2), ('large', 9)))\n",
    )
    names = ["once", "twice", "plain", "small", "large"]
    assert [load_external(f"{path}:{name}").name for name in names] == names
    widths = [load_external(f"{path}:{name}").build((1, 2, 2), 3)[1].out_features for name in names]
    assert widths == [4, 4, 4, 2, 9]


def test_what_one_decorator_made_is_told_apart_when_a_file_is_imported_twice(tmp_path, monkeypatch):
    path = write(
        tmp_path / "made_twice.py",
        "from robustode import register_model\n"
        "from torch import nn\n"
        "def make(width):\n"
        "    def build(shape, classes):\n"
        "        pixels = shape[0] * shape[1] * shape[2]\n"
        "        return nn.Sequential(nn.Flatten(), nn.Linear(pixels, width), nn.Linear(width, classes))\n"
        "    return build\n"
        "net8 = register_model('net-8')(make(8))\n",
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("made_twice")
    assert load_external(f"{path}:net8").name == "net-8", "one is not several"
    monkeypatch.delitem(sys.modules, "made_twice")
    path.write_text(path.read_text() + "net16 = register_model('net-16')(make(16))\n")
    for name in [n for n in sys.modules if n.startswith("_robustode_external_")]:
        monkeypatch.delitem(sys.modules, name)
    assert load_external(f"{path}:net16").name == "net-16"
    importlib.import_module("made_twice")
    assert load_external(f"{path}:net16").name == "net-16", "the file as it is now"
    assert load_external(f"{path}:net8").name == "net-8"


@pytest.mark.parametrize("first", ["module", "file"])
def test_a_file_may_be_imported_by_its_name_and_by_its_path(tmp_path, monkeypatch, registries, first):
    path = write(tmp_path / f"imported_{first}_first.py", DECORATED)
    monkeypatch.syspath_prepend(str(tmp_path))
    if first == "module":
        importlib.import_module(path.stem)
    spec = load_external(f"{path}:build")
    if first == "file":
        importlib.import_module(path.stem)
    again = load_external(f"{path}:build")
    assert (spec.name, spec.full_version) == (again.name, again.full_version)
    assert again.name == "my-model"
    assert again.claims == {"fixed_step"}
    assert isinstance(build(again), torch.nn.Module)
    monkeypatch.delitem(sys.modules, path.stem)


def test_the_users_own_package_called_models_is_the_one_beside_the_file(tmp_path):
    spec = load_external(f"{project(tmp_path, 'mine', 0.25)}:build")
    layer = build(spec)[1]
    assert layer.name == "mine-late-mine"
    assert layer.bias.tolist() == [0.25] * 3
    assert not {"models", "attacks", "bench"} & set(sys.modules)
    assert sys.modules["robustode.models"].MODELS is MODELS


def test_two_files_may_each_have_a_package_called_models(tmp_path):
    one = load_external(f"{project(tmp_path / 'a', 'one', 1.0)}:build")
    two = load_external(f"{project(tmp_path / 'b', 'two', 2.0, 'other.py')}:build")
    for spec, name, bias in ((one, "one", 1.0), (two, "two", 2.0), (one, "one", 1.0)):
        layer = build(spec)[1]
        assert layer.name == f"{name}-late-{name}"
        assert layer.bias.tolist() == [bias] * 3
    assert "models" not in sys.modules


def test_a_file_inside_a_project_finds_its_neighbours(tmp_path):
    write(tmp_path / "pyproject.toml", "")
    write(tmp_path / "src" / "helper.py", "SIZE = 5\n")
    write(tmp_path / "src" / "__init__.py", "")
    path = write(tmp_path / "src" / "net.py", "from helper import SIZE\n" + PLAIN)
    assert load_external(f"{path}:tiny").name == "tiny"
    assert "helper" not in sys.modules


def test_a_relative_path_and_a_home_are_understood(tmp_path, monkeypatch):
    write(tmp_path / "net.py", PLAIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_external("net.py:tiny").source == load_external("~/net.py:tiny").source


def test_an_edited_file_is_another_version(tmp_path):
    path = write(tmp_path / "net.py", PLAIN)
    before = load_external(f"{path}:tiny").full_version
    other = write(tmp_path / "two" / "net.py", PLAIN + "\n# changed\n")
    assert load_external(f"{other}:tiny").full_version != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def tiny(:\n    pass\n", r"net\.py cannot be imported: SyntaxError"),
        ("import no_such_package_anywhere\n", "ModuleNotFoundError: No module named 'no_such_package_any"),
        ("raise RuntimeError('first\\nsecond')\n", "cannot be imported: RuntimeError: first"),
        ("import sys\nsys.exit(3)\n", "cannot be imported: SystemExit: 3"),
        ("x = 1\ndef other(s, c):\n    pass\n", r"net\.py has no function 'tiny' \(it has: other\)"),
        ("tiny = 3\n", r"has no function 'tiny' \(it has none\)"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path, text, message):
    path = write(tmp_path / "net.py", text)
    before = set(sys.modules)
    with pytest.raises(InvalidArgument, match=message) as caught:
        load_external(f"{path}:tiny")
    assert "\n" not in str(caught.value)
    if "cannot be imported" in message:
        assert set(sys.modules) - before == set()


def test_a_file_that_fails_half_way_leaves_nothing_registered(tmp_path):
    path = write(tmp_path / "net.py", DECORATED + "\nraise RuntimeError('late')\n")
    with pytest.raises(InvalidArgument, match="late"):
        load_external(f"{path}:build")
    assert "my-model" not in MODELS
    path.write_text(DECORATED)
    assert load_external(f"{path}:build").name == "my-model"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("net.py", "write FILE.py:factory"),
        ("net.py:", "write FILE.py:factory"),
        ("net.py:a b", "write FILE.py:factory"),
        ("none.py:tiny", "there is no file"),
    ],
)
def test_a_reference_that_cannot_be_read_is_one_line(tmp_path, monkeypatch, reference, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "net.py", PLAIN)
    with pytest.raises(InvalidArgument, match=message):
        load_external(reference)


def test_a_name_that_is_taken_is_refused(tmp_path):
    plain = write(tmp_path / "resnet.py", PLAIN.replace("def tiny", "def build"))
    with pytest.raises(InvalidArgument, match="the name 'resnet' is taken: rename the factory"):
        load_external(f"{plain}:build")
    decorated = write(tmp_path / "net.py", DECORATED.replace("my-model", "resnet"))
    with pytest.raises(InvalidArgument, match="model 'resnet' is already registered"):
        load_external(f"{decorated}:build")
    assert MODELS.get("resnet").source is None


def test_a_file_is_imported_once_for_all_its_models(tmp_path, monkeypatch):
    counted = "with open(__file__ + '.imports', 'a') as file:\n    file.write('.')\n"
    path = write(tmp_path / "net.py", DECORATED + "\ndef other(s, c):\n    return None\n" + counted)
    monkeypatch.chdir(tmp_path)
    references = [f"{path}:other", "net.py:build", f"{path}:build"]
    specs = load_files(references)
    assert [(reference, spec.name) for reference, spec in specs.items()] == list(
        zip(references, ["other", "my-model", "my-model"], strict=True)
    )
    assert (tmp_path / "net.py.imports").read_text() == "."


def test_two_files_with_one_name_are_refused(tmp_path):
    one, two = (write(tmp_path / f / "net.py", DECORATED) for f in ("a", "b"))
    load_external(f"{one}:build")
    with pytest.raises(InvalidArgument, match="model 'my-model' is already registered"):
        load_external(f"{two}:build")


def test_names_and_files_are_told_apart(tmp_path):
    assert resolve_model("node") is MODELS.get("node")
    assert resolve_model(f"{write(tmp_path / 'net.py', PLAIN)}:tiny").name == "tiny"
    with pytest.raises(UnknownName, match="did you mean node"):
        resolve_model("nodee")


def test_an_edit_of_what_the_file_imports_is_another_version(tmp_path, registries):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "deep.py").write_text("WIDTH = 4\n")
    (tmp_path / "unrelated.py").write_text("x = 1\n")
    path = tmp_path / "mine.py"
    path.write_text("def build(shape, classes):\n    import models.deep as d\n    return d\n")
    before = source_sha256(path)
    (tmp_path / "unrelated.py").write_text("x = 2\n")
    assert source_sha256(path) == before
    (tmp_path / "models" / "deep.py").write_text("WIDTH = 8\n")
    assert source_sha256(path) != before


def test_a_file_edited_within_a_second_to_the_same_length_runs_as_it_is_now(tmp_path, monkeypatch):
    """Python's bytecode is told apart by the second and the length of its source alone."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for width in (3, 5):
        path = write(
            tmp_path / "quick_edit.py",
            f"from torch import nn\ndef build(shape, classes):\n    return nn.Linear({width}, classes)\n",
        )
        os.utime(path, (1e9, 1e9))
        assert load_external(f"{path}:build").build((1, 2, 2), 3).in_features == width
    assert not (tmp_path / "__pycache__").exists()
