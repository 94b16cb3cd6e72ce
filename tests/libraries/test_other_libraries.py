"""Models of other libraries, and another library's attack: trained, attacked, audited, verified, loaded."""

from __future__ import annotations

import types
from dataclasses import dataclass
from pathlib import Path

import pytest
import robustode
import torch
from gallery.base import shorten_audits
from robustode.bench.audits.library import audit_names
from robustode.bench.audits.registry import AUDITS
from robustode.bench.cli.main import main
from robustode.bench.config.preset import load_preset
from robustode.bench.data import Data
from robustode.bench.records.record import Record
from robustode.bench.records.store import Store

HERE = Path(__file__).parent
PRESET = HERE / "preset.toml"
LIBRARIES = ("torchdiffeq", "torchdyn", "torchlip", "torchode", "torchvision")


@dataclass(frozen=True)
class Judged:
    """What is stored of one library's model after run, audit and verify."""

    library: str
    folder: Path
    records: list[Record]
    file: Path

    def of(self, kind: str) -> dict[str, Record]:
        return {record.cell.threat: record for record in self.records if record.cell.kind == kind}


@pytest.fixture(scope="module", params=LIBRARIES)
def judged(request, tmp_path_factory, adv_lib, registries_of_module) -> Judged:
    """Each command is seen to end with status 0."""
    folder, file = tmp_path_factory.mktemp(request.param), HERE / f"{request.param}_net.py"
    reference = f"{file}:build"
    run = ["run", "--preset", str(PRESET), "--models", reference, "--jobs", "1", "--quiet"]
    audit = ["audit", "--models", reference, "--samples", "8", "--jobs", "1"]
    assert main([*run, "--out", str(folder)]) == 0
    with pytest.MonkeyPatch.context() as patch:
        shorten_audits(patch)
        assert main([*audit, "--out", str(folder)]) == 0
    assert main(["verify", "--models", reference, "--out", str(folder)]) == 0
    records, problems = Store(folder).load()
    assert problems == []
    return Judged(request.param, folder, records, file)


def test_a_model_is_attacked_by_every_family_of_attacks(judged):
    found = judged.of("accuracy")
    assert set(found) == {threat.name for threat in load_preset(str(PRESET)).threats}
    assert {record.cell.family for record in found.values()} == {"clean", "noise", "gradient", "search"}
    assert [record.error for record in found.values() if record.status != "ok"] == []
    clean = found["clean"].accuracy
    assert clean > 0.7
    for threat in ("fgsm-linf", "pgd-l2", "autoattack-linf", "fmn-linf", "curve-l2"):
        assert found[threat].accuracy < clean, threat


def test_every_audit_of_a_model_has_an_answer(judged):
    found = judged.of("audit")
    wanted = {name for name in audit_names() if AUDITS.get(name).needs == "model"}
    assert set(found) == wanted
    assert {name: record.error for name, record in found.items() if record.status != "ok"} == {}


def test_what_is_loaded_again_gives_the_stored_accuracy(judged, digits: Data):
    name = judged.records[0].cell.model
    model = robustode.load_model(judged.folder, name, model=f"{judged.file}:build")
    with torch.no_grad():
        right = (model(digits.test.images).argmax(1) == digits.test.labels).double().mean()
    assert float(right) == pytest.approx(judged.of("accuracy")["clean"].accuracy, abs=1e-12)


@pytest.fixture
def ddn_of_adv_lib(adv_lib: types.ModuleType, registries) -> str:
    """DDN of adv-lib as a threat like any other: ``adv-lib-ddn``."""

    @robustode.register_threat(
        "adv-lib-ddn", family="gradient", norm="l2", needs_gradient=True, reference="arXiv 1811.09600"
    )
    def craft(model, images, labels, strength, seed):
        """The closest example that DDN finds, where it is close enough."""
        found = adv_lib.ddn(model, images, labels, steps=10, init_norm=strength)
        near = (found - images).flatten(1).norm(dim=1) <= strength
        return torch.where(near[:, None, None, None], found, images).clamp(0, 1)

    return "adv-lib-ddn"


def test_an_attack_of_another_library_is_a_threat_like_any_other(judged, ddn_of_adv_lib):
    name = judged.records[0].cell.model
    model = robustode.load_model(judged.folder, name, model=f"{judged.file}:build")
    frame = robustode.evaluate(model, dataset="digits", threats=["clean", (ddn_of_adv_lib, 0.5)], samples=20)
    value = frame[frame.statistic == "accuracy"].set_index("threat")["value"]
    assert 0 <= value[ddn_of_adv_lib] < value["clean"]
