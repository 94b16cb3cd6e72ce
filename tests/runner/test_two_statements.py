"""A field that is stated twice and differently is refused wherever a model is trained, loaded or asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import robustode
import safetensors.torch
import stubs
import torch
from robustode._errors import ContractBroken
from robustode.bench.cli.main import main
from robustode.bench.plugins.model_file import load_external
from robustode.bench.plugins.new_file import new_file
from robustode.bench.records.checkpoint import load_tensors, save_tensors
from robustode.bench.records.store import Store

pytestmark = pytest.mark.usefixtures("registries", "empty_figures")

ANOTHER_FORWARD = """
    def forward(self, state):
        return torch.tanh(torch.addmm(self.b, self.K, state)) - 0.5 * state

    def tanh_field"""
GATED = """
    def forward(self, state):
        return torch.tanh(torch.addmm(self.b, self.K, state)) - self.gate * state

    def tanh_field"""
BY_HAND = """
import torch
from robustode import ODEBlock, Solver, TanhField
from torch import nn

class Field(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.K = nn.Parameter(torch.randn(width, width) / width**0.5)
        self.b = nn.Parameter(torch.zeros(width, 1))

    def forward(self, state):
        return FACTOR * torch.tanh(torch.addmm(self.b, self.K, state))

    def tanh_field(self):
        return TanhField(A=torch.eye(len(self.K)).to(self.K), B=self.K, b=self.b)

class Net(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.stem = nn.Conv2d(shape[0], 4, 3, padding=1)
        self.flow = ODEBlock([Field(4)], final_time=1.0, solver=Solver(method="heun2", steps=2))
        self.head = nn.Linear(4 * shape[1] * shape[2], classes)

    def forward(self, images):
        state = self.stem(images).transpose(0, 1)
        state = self.flow(state.reshape(4, -1)).reshape(state.shape)
        return self.head(state.transpose(0, 1).flatten(1))

def by_hand(shape, classes):
    return Net(shape, classes)
"""


def template(folder: Path, *changes: tuple[str, str]) -> str:
    """The starting file of `new-model`, changed; as ``FILE.py:factory``."""
    path = new_file("model", "mine", folder / "mine.py")
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text)
    return f"{path}:build"


def gated(folder: Path) -> str:
    """Two forms that agree while the buffer ``gate`` is 0: at initialisation, and until training sets it."""
    return template(
        folder,
        ("\n    def tanh_field", GATED),
        ("(width, 1))\n", '(width, 1))\n        self.register_buffer("gate", torch.zeros(()))\n'),
        ("\n\n@register_model", "\n\nclass Net(PixelNetwork):\n    pass\n\n\n@register_model"),
        ("return PixelNetwork(", "return Net("),
    )


def argv(folder: Path, model: str, *more: str) -> list[str]:
    common = ["--device", "cpu", "--out", str(folder / "out"), "--jobs", "1", "--quiet"]
    return ["run", "--preset", str(stubs.preset_file(folder)), "--models", model, *common, *more]


def statuses(folder: Path) -> dict[str, str]:
    return {record.cell.kind: record.status for record in Store(folder / "out").load()[0]}


def errors(folder: Path) -> set[str]:
    return {record.error for record in Store(folder / "out").load()[0] if record.status != "ok"}


def test_the_starting_file_with_another_forward_is_refused_before_training(tmp_path, capsys):
    model = template(tmp_path, ("\n    def tanh_field", ANOTHER_FORWARD))
    assert main(argv(tmp_path, model)) == 1
    assert statuses(tmp_path) == {"training": "contract"}
    assert not list((tmp_path / "out").glob("checkpoints/**/*.safetensors*"))
    said = capsys.readouterr()
    lines = [line for line in (said.out + said.err).splitlines() if "write the field once" in line]
    assert lines
    assert "the field's forward and its stated matrices differ by 0." in lines[0]
    assert "on states of the training images" in lines[0]


@pytest.mark.parametrize("factor", [1.0, 1.01, 1.0001])
def test_a_file_with_both_forms_by_hand_runs_only_if_they_agree(tmp_path, factor):
    path = tmp_path / "net.py"
    path.write_text(BY_HAND.replace("FACTOR", str(factor)))
    assert main(argv(tmp_path, f"{path}:by_hand")) == (factor != 1)
    assert statuses(tmp_path)["training"] == ("ok" if factor == 1 else "contract")


OTHER_MATRICES = ("TanhField(B=self.K, b=self.b)", "TanhField(A=-self.K.T, B=self.K, b=self.b)")
FORWARD_ALONE = ("def tanh_field(self) -> TanhField:", "def forward(self, state):")
RELU = ("return TanhField(B=self.K, b=self.b)", "return torch.relu(self.K @ state + self.b)")


@pytest.mark.parametrize("changes", [[OTHER_MATRICES], [FORWARD_ALONE, RELU]], ids=["matrices", "forward"])
def test_the_starting_file_follows_its_first_line_either_way(tmp_path, changes):
    model = template(tmp_path, *changes)
    assert main(argv(tmp_path, model)) == 0
    net = robustode.load_model(tmp_path / "out", "mine", model=model)
    x = torch.rand(5, 1, 8, 8)
    with torch.no_grad(), robustode.use_ode_backend("torchdiffeq"):
        reference = net(x)
    torch.testing.assert_close(net(x).detach(), reference, rtol=1e-5, atol=1e-5)


def test_forms_that_training_drives_apart_are_refused_after_it(tmp_path):
    model = gated(tmp_path)
    path = tmp_path / "mine.py"
    step = (
        "class Net(PixelNetwork):\n    def after_step(self):\n        self.flow.layers[0].gate.add_(0.01)\n"
    )
    path.write_text(path.read_text().replace("class Net(PixelNetwork):\n    pass\n", step))
    assert main(argv(tmp_path, model)) == 1
    assert statuses(tmp_path) == {"training": "contract"}
    assert main(argv(tmp_path, model)) == 1, "and again when the training is resumed"
    assert statuses(tmp_path) == {"training": "contract"}


def test_weights_that_drive_the_forms_apart_are_refused(tmp_path):
    model = gated(tmp_path)
    spec = load_external(model)
    weights = spec.build((1, 8, 8), 10).state_dict()
    for gate, status in ((0.0, 0), (0.5, 1)):
        weights["flow.layers.0.gate"].fill_(gate)
        file = tmp_path / f"{gate}.safetensors"
        safetensors.torch.save_file({name: t.contiguous() for name, t in weights.items()}, file)
        assert main(argv(tmp_path, model, "--weights", str(file))) == status
    assert "on states of the training images" in errors(tmp_path).pop()


def test_a_stored_network_of_two_forms_is_refused_by_whoever_loads_it(tmp_path, capsys):
    model = gated(tmp_path)
    assert main(argv(tmp_path, model)) == 0
    out = tmp_path / "out"
    store = Store(out)
    (training,) = (r for r in store.load()[0] if r.cell.kind == "training")
    path = store.checkpoint_path(training.cell)
    tensors, _ = load_tensors(path)
    tensors["flow.layers.0.gate"] += 0.5
    save_tensors(path, tensors)
    # As an older version would have stored it: the record speaks of these weights.
    card = {**training.card, "checkpoint_sha256": load_tensors(path)[1]}
    store.put(dataclasses.replace(training, card=card))
    with pytest.raises(ContractBroken, match="write the field once"):
        robustode.load_model(out, "mine", model=model)
    capsys.readouterr()
    assert main(["audit", "--out", str(out), "--models", model]) == 1
    said = capsys.readouterr()
    assert "write the field once" in said.out + said.err
    assert main(argv(tmp_path, model)) == 1
    assert statuses(tmp_path)["training"] == "contract"


def test_evaluate_refuses_a_module_that_states_two_fields(tmp_path):
    spec = load_external(template(tmp_path, ("\n    def tanh_field", ANOTHER_FORWARD)))
    with pytest.raises(ContractBroken, match="write the field once"):
        robustode.evaluate(spec.build((1, 8, 8), 10), threats="clean", samples=10)
