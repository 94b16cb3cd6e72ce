"""The starting point of a model passes every check as it is written."""

from __future__ import annotations

import ast
import dataclasses
import math

import pytest
import stubs
import torch
from robustode._errors import InvalidArgument
from robustode.bench.cli.main import main
from robustode.bench.conformance.checks import checks_for
from robustode.bench.conformance.run import check_model
from robustode.bench.plugins.model_file import load_external
from robustode.bench.plugins.new_file import new_file
from robustode.bench.proofs.lipschitz import certify_cell
from robustode.bench.training.provenance import flow_implementations
from robustode.bench.training.train import build_model
from robustode.models import MODELS

pytestmark = pytest.mark.usefixtures("registries")


def test_a_new_model_passes_as_written(tmp_path):
    path = new_file("model", "my-model", tmp_path / "anywhere" / "mine.py")
    spec = load_external(f"{path}:build")
    assert spec.name == "my-model"
    results = list(check_model(spec))
    assert [str(result) for result in results] == [f"pass    {name}" for name in checks_for(spec)]
    assert "claim:fixed_step" in checks_for(spec)


def test_a_new_model_gets_the_compiled_path_and_a_certificate(tmp_path, few):
    spec = load_external(f"{new_file('model', 'my-model', tmp_path / 'mine.py')}:build")
    model = build_model(spec.build, few, spec.resolve(), 0)
    assert flow_implementations(model, stubs.CPU) == flow_implementations(
        MODELS.get("node").build((1, 8, 8), 10), stubs.CPU
    )
    cell = dataclasses.replace(stubs.cell_for("clean", 0.0, 40), kind="certificate", threat="lipschitz")
    record = certify_cell(cell, model, few.test, num_classes=10, device=stubs.CPU, environment={})
    assert "no_certificate" not in record.card
    radius = record.outcomes["radius"]
    assert 0 < radius.max() < 1
    # No pair of images is farther apart in logits than the bound allows.
    bound = math.prod(model.double().lipschitz_parts().body.values()) * float(
        torch.linalg.matrix_norm(model.head.weight.detach(), ord=2)
    )
    one, two = few.test.images[:20].double(), few.test.images[20:].double()
    with torch.no_grad():
        apart = (model(one) - model(two)).norm(dim=1) / (one - two).flatten(1).norm(dim=1)
    assert float(apart.max()) <= bound


def test_the_file_is_called_after_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = new_file("model", "my-model.v2")
    assert path.name == "my_model_v2.py"
    text = (tmp_path / path).read_text()
    assert "@NAME@" not in text
    assert '"my-model.v2"' in text
    assert ast.get_docstring(ast.parse(text)).startswith("my-model.v2: x' =")


@pytest.mark.parametrize("name", ["../x", "A B", "", "<b>", "a..b", '"quoted"'])
def test_an_unsafe_name_is_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(InvalidArgument, match="is not allowed"):
        new_file("model", name, tmp_path / "x.py")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("precious")
    with pytest.raises(InvalidArgument, match="exists already"):
        new_file("model", "mine", path)
    assert path.read_text() == "precious"
    with pytest.raises(InvalidArgument, match=r"ends in \.py"):
        new_file("model", "mine", tmp_path / "x.txt")


def test_a_name_that_is_taken_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new-model", "resnet"]) == 2
    assert capsys.readouterr().err == (
        "robustode: error: model 'resnet' is registered already: choose another name\n"
    )
    assert list(tmp_path.iterdir()) == []
