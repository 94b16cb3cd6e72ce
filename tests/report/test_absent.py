"""What is not there is given with its reason, which stands in the record that would hold it."""

from __future__ import annotations

import dataclasses
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stubs
import synthetic
import torch
from robustode.bench.data import load_data
from robustode.bench.evaluation.dynamics import measure_dynamics
from robustode.bench.proofs.lipschitz import certify_cell
from robustode.bench.proofs.randomized_smoothing import smooth_cell
from robustode.bench.records.record import Record
from robustode.bench.report import report as report_module
from robustode.bench.report.html.attack_parts import attack_parts, parts_tables
from robustode.bench.report.report import write_report
from robustode.models import MODELS, ODEBlock, Solver
from torch import Tensor, nn

CPU = torch.device("cpu")


@pytest.fixture
def page(tmp_path: Path, monkeypatch):
    """The page of these records, its text alone, and the leaderboard."""

    def page(made: list[Record]) -> tuple[str, Any]:
        monkeypatch.setattr(report_module, "draw_all", lambda *_, render: lambda: [])
        report = write_report(synthetic.write(tmp_path, made))
        text = re.sub(r"<(script|style)\b.*?</\1>", "", report.page.read_text(encoding="utf-8"), flags=re.S)
        return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", text))), report.leaderboard

    return page


def build(name: str, **changes: Any) -> nn.Module:
    spec = MODELS.get(name)
    torch.manual_seed(0)
    return spec.build((1, 8, 8), 10, **spec.resolve(changes)).eval()


class Field(nn.Module):
    def forward(self, t: float, state: Tensor) -> Tensor:
        return torch.sin(state)


class OwnFlow(stubs.Linear):
    """A model whose layers define no field in closed form."""

    def __init__(self) -> None:
        super().__init__((1, 8, 8), 10)
        self.flow = ODEBlock([Field()], solver=Solver(method="euler", steps=2), final_time=1.0)

    def lipschitz_parts(self) -> Any:
        return self.flow.solver_bound()


def certified(model: nn.Module) -> Record:
    cell = synthetic.cell(
        "node", kind="certificate", threat="lipschitz", family="certificate", samples=8, batch_size=8
    )
    test = load_data("digits").test
    return certify_cell(cell, model, test, num_classes=10, device=CPU, environment={})


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: build("node-dopri5"), "an adaptive solver's error is not bounded by its tolerance"),
        (lambda: build("h-node", method="rk4"), "no Lipschitz bound is known for a step of rk4"),
        (lambda: build("h-node", width=12), "a state of more than 10 channels has too many Jacobians"),
        (
            lambda: stubs.Linear((1, 8, 8), 10),
            "the model states no Lipschitz bounds (a method lipschitz_parts)",
        ),
        (OwnFlow, ""),
    ],
)
def test_every_reason_for_no_certificate_is_on_the_sheet(page, model, reason):
    record = certified(model())
    assert record.card["no_certificate"].startswith(reason)
    text, _ = page([*synthetic.records(("node",), samples=20), record])
    assert f"Certificates No certificate. Lipschitz bound: {record.card['no_certificate']}." in text
    assert "There is no lower bound on robust accuracy." in text


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda z, x: z + torch.randn_like(z), "its logits change from pass to pass"),
        (lambda z, x: z - z.mean(0), "its logits depend on the other samples of the batch"),
        (None, "an adaptive solver couples the samples of a batch"),
    ],
)
def test_every_reason_for_no_smoothing_is_on_the_sheet(page, fault, reason):
    model = stubs.Faulty((1, 8, 8), 10, fault) if fault else build("node-dopri5")
    cell = synthetic.cell(
        "node", kind="certificate", threat="smoothing", family="certificate", samples=4, batch_size=4,
        parameters={"n0": 2, "n": 4, "alpha": 0.1}, strength=0.1,
    )  # fmt: skip
    test = load_data("digits").test
    record = smooth_cell(cell, model.eval(), test, num_classes=10, device=CPU, environment={})
    text, _ = page([*synthetic.records(("node",), samples=20), record])
    assert f"No certificate. randomised smoothing: {reason}" in text


def test_a_certificate_that_failed_and_one_that_nobody_asked_for(page):
    made = synthetic.records(("node", "resnet"), samples=20)
    cell = synthetic.cell("node", kind="certificate", threat="lipschitz", family="certificate", samples=8)
    text, _ = page([*made, Record(cell=cell, status="error", error="bounds are no finite numbers")])
    assert "No certificate. Lipschitz bound: error: bounds are no finite numbers." in text
    assert "No certificate was asked for. There is no lower bound" in text


def test_a_reason_of_some_seeds_names_them(page):
    made = synthetic.records(("node",), (0, 1, 2), samples=20)
    for seed in range(3):
        cell = synthetic.cell(
            "node", seed, kind="certificate", threat="lipschitz", family="certificate", samples=20
        )
        card = {"no_certificate": "it overflows"} if seed else {}
        radius = {} if seed else {"radius": np.full(20, 0.2, np.float32)}
        made.append(Record(cell=cell, card=card, outcomes=radius, measures={"pixels": 64.0}))
    text, _ = page(made)
    assert "No certificate. Lipschitz bound: it overflows (seeds 1, 2)." in text
    assert "There is no lower bound" not in text


class TwoSolves(stubs.Linear):
    """A linear model that calls a solver twice in a forward pass."""

    def forward(self, images):
        return self.still(self.still(self.head(images.flatten(1))))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (stubs.Linear((1, 8, 8), 10), "no solver was seen in it"),
        (TwoSolves((1, 8, 8), 10, nfe=2), "2 solves in a forward pass are not one flow"),
    ],
)
def test_the_reason_for_no_trajectories_is_on_the_sheet(page, model, reason):
    cell = synthetic.cell("node", kind="dynamics", threat="dynamics", family="dynamics", samples=4)
    test = load_data("digits").test
    record = measure_dynamics(cell, model, model, test, num_classes=10, device=CPU, environment={})
    text, _ = page([*synthetic.records(("node",), samples=20), record])
    assert f"No trajectories: {reason}." in text


def test_the_reason_for_no_timing_of_the_flow_is_on_the_sheet(page):
    cell = synthetic.cell(
        "node", kind="throughput", threat="flow", family="timing", batch_size=4, device="cpu: Intel Xeon"
    )
    made = [Record(cell=cell, card={"no_flow": "the model calls no ODE block with a state alone"})]
    text, _ = page([*synthetic.records(("node",), samples=20), *made])
    assert "No timing of ODE blocks: the model calls no ODE block with a state alone." in text


@pytest.mark.parametrize("failed", [0, 2])
def test_a_failed_training_of_one_seed_does_not_blank_what_the_model_says_of_itself(page, failed):
    made = synthetic.records(("resnet",), (0, 1, 2), samples=20)
    made = [
        synthetic.failed(r) if (r.cell.kind, r.cell.training_seed) == ("training", failed) else r
        for r in made
    ]
    text, board = page(made)
    assert list(board["expected_failures"]) == ["batch-independence"]
    assert board["reference"][0].startswith("A. Author, resnet")
    assert "The resnet classifier, one block between a stem and a linear head." in text
    assert "batch-independence : batch norm in the stem" in text


def test_a_measure_that_is_missing_is_blank(page):
    made = synthetic.records(("node",), samples=20)
    first = next(r for r in made if r.cell.threat == "pgd-linf")
    broken = {"part.start.samples": 3.0, "part.start.seconds": 0.1}
    parts = parts_tables(attack_parts([dataclasses.replace(first, measures=broken)]))
    numbers = [number for table in parts for line in table["lines"] for number in line["numbers"]]
    assert numbers[1] == ("", "")
    assert not any("nan" in text for number in numbers for text in number)
    made = [
        dataclasses.replace(r, environment={**r.environment, "flow": None})
        if r.cell.kind == "accuracy"
        else r
        for r in made
    ]
    text, _ = page(made)
    text = text.replace("a NaN or a violated budget", "")
    assert not re.findall(r"\bnan\b|\bNone\b|\bNaN\b|= null", text)
