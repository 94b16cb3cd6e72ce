"""The source of a model file: itself and what it imports from anywhere, each file its own."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from robustode.bench.plugins.model_file import load_external, load_files
from robustode.bench.runtime.foreign_code import asking, building
from robustode.models import ModelSpec

pytestmark = pytest.mark.usefixtures("registries")

ABOVE = "import os, sys\nsys.path.{add}(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))\n"
NET = """
from torch import nn
{top}
class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        {built}
        self.head = nn.Linear(64, classes)
    def forward(self, x):
        {asked}
        return self.head(x.flatten(1)) * factor()
def build(shape, classes):
    return Net(classes)
"""
INSERT, APPEND = ABOVE.replace("{add}(", "insert(0, "), ABOVE.format(add="append")
HOW = {
    "at the top": {"top": INSERT + "from scales import factor"},
    "appended": {"top": APPEND + "import scales\nfactor = scales.factor"},
    "by another": {"top": INSERT + "from middle import factor"},
    "by a package": {"top": INSERT + "from pack import factor"},
    "by a name": {"top": INSERT + "import importlib\nfactor = importlib.import_module('sca' + 'les').factor"},
    "in the factory": {"top": INSERT, "built": "global factor; from scales import factor"},
    "when it is asked": {"top": INSERT, "asked": "from scales import factor"},
    "by a name, when it is asked": {
        "top": INSERT + "import importlib",
        "asked": "factor = importlib.import_module('scales').factor",
    },
}


def tree(folder: Path, how: str, factor: float = 1.0) -> str:
    """A model file in a folder, the modules that it imports from the folder above, and its reference."""
    parts = {"top": "", "built": "pass", "asked": "pass", **HOW[how]}
    files = {
        "nets/net.py": NET.format(**parts),
        "scales.py": f"def factor():\n    return {factor}\n",
        "middle.py": "from scales import factor\n",
        "pack/__init__.py": "from .inner.deep import factor\n",
        "pack/inner/__init__.py": "",
        "pack/inner/deep.py": "from scales import *\n",
        "unrelated.py": "x = 1\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return f"{folder}/nets/net.py:build"


def answer(spec: ModelSpec) -> float:
    """How far a constant network of the file scales its answer."""
    with building(spec.build, 0):
        model = spec.build((1, 8, 8), 10)
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.ones_(model.head.bias)
    with asking(model, 0):
        return float(model(torch.zeros(1, 1, 8, 8)).detach()[0, 0])


@pytest.mark.parametrize("how", HOW)
def test_an_edit_in_the_folder_above_is_another_version_and_the_code_that_runs(tmp_path, how):
    reference = tree(tmp_path, how)
    first = load_external(reference)
    assert answer(first) == 1
    (tmp_path / "unrelated.py").write_text("x = 2\n")
    assert load_external(reference).source == first.source
    tree(tmp_path, how, factor=2.5)
    second = load_external(reference)
    assert second.source != first.source
    assert answer(second) == 2.5
    shutil.move(tmp_path / "nets", tmp_path / "elsewhere" / "nets")
    for name in ("scales.py", "middle.py", "pack"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    assert load_external(reference.replace("/nets/", "/elsewhere/nets/")).source == second.source


@pytest.mark.parametrize("how", [how for how in HOW if "asked" not in how])
def test_two_trees_have_their_own_modules_in_any_order(tmp_path, how):
    references = [tree(tmp_path / name, how, factor) for name, factor in (("a", 2.0), ("b", 3.0))]
    alone = [load_external(reference).source for reference in references]
    specs = load_files(references[::-1])
    assert [answer(specs[reference]) for reference in references] == [2, 3]
    assert [specs[reference].source for reference in references] == alone


def test_modules_of_two_trees_that_are_imported_when_they_are_asked_are_not_mixed_up(tmp_path):
    references = [tree(tmp_path / name, "when it is asked", f) for name, f in (("a", 2.0), ("b", 3.0))]
    one = load_external(references[0])
    assert answer(one) == 2
    other = load_external(references[1])
    for spec in (one, other):
        with pytest.raises(ModuleNotFoundError, match="scales"):
            answer(spec)


def test_a_file_does_not_find_what_another_one_has_added(tmp_path):
    load_external(tree(tmp_path / "a", "at the top"))
    path = tmp_path / "b" / "net.py"
    path.parent.mkdir()
    path.write_text(NET.format(top="from scales import factor", built="pass", asked="pass"))
    with pytest.raises(Exception, match="No module named 'scales'"):
        load_external(f"{path}:build")


@pytest.mark.parametrize("before", [True, False])
def test_a_library_on_the_path_counts_whoever_imported_it_first(tmp_path, monkeypatch, before):
    library = tmp_path / "library"
    library.mkdir()
    (library / "shared_scales.py").write_text("def factor():\n    return 1.0\n")
    monkeypatch.syspath_prepend(library)
    references = []
    for name in ("a", "b"):
        path = tmp_path / name / "net.py"
        path.parent.mkdir()
        path.write_text(NET.format(top="from shared_scales import factor", built="pass", asked="pass"))
        references.append(f"{path}:build")
    if before:
        importlib.import_module("shared_scales")
    specs = load_files(references)
    assert len({spec.source for spec in specs.values()}) == 1
    (library / "shared_scales.py").write_text("def factor():\n    return 12.5\n")
    os.utime(library / "shared_scales.py", (1e9, 1e9))
    edited = load_external(references[1])
    assert edited.source != specs[references[1]].source
    assert answer(edited) == 12.5
    sys.modules.pop("shared_scales", None)


def test_what_is_installed_or_of_this_package_is_no_part(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(NET.format(top="import json, numpy, robustode, torchdiffeq", built="pass", asked="pass"))
    assert load_external(f"{path}:build").sources == (path,)
