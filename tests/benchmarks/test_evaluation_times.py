"""What the harness adds to the time spent inside models, and what it holds in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import stubs
import torch
from robustode.attacks import THREATS
from robustode.bench.data import Split
from robustode.bench.evaluate import evaluate_cell, frozen
from robustode.bench.plan import make_plan
from robustode.bench.preset import load_preset
from robustode.bench.throughput import peak_memory
from robustode.models import MODELS
from timed import CLASSES, FIXED_GRID, Recorder, build, dataset, images, replay, trained

HARNESSED = ["ch-node", "resnet"]
"""The slowest and the fastest of the core models."""


@pytest.mark.benchmark(group="clean evaluation")
@pytest.mark.parametrize("name", FIXED_GRID)
def test_clean(against, device, scale, name):
    model, cells = build(name, device), [cell("clean", 0.0, scale.test, scale.batch)]
    data = split(scale.test)

    def by_hand() -> int:
        correct = 0
        with torch.no_grad():
            for rows, labels in zip(
                data.images.split(scale.batch), data.labels.split(scale.batch), strict=True
            ):
                correct += int((model(rows.to(device)).argmax(1) == labels.to(device)).sum())
        return correct

    with frozen(model):
        (record,) = against(
            lambda: evaluate(model, cells, data, device),
            by_hand,
            what=f"{name}, {scale.test:,} images",
            name="hand-written loop over batches",
            batch=scale.batch,
        )
        assert record.outcomes["correct"].sum() == by_hand()


@pytest.mark.benchmark(group="noise and attack evaluation")
@pytest.mark.parametrize(("threat", "strength"), [("gaussian", 0.2), ("pgd-linf", 0.1)])
@pytest.mark.parametrize("name", HARNESSED)
def test_noise_and_attack(against, device, scale, tried, name, threat, strength):
    data = dataset(scale.train, scale.batch if threat == "pgd-linf" else scale.test, real=not tried)
    cells = [cell(threat, strength, len(data.test), scale.batch)]
    harness(against, device, name, cells, data, what=f"{name}, {threat}")


@pytest.mark.benchmark(group="harness overhead")
@pytest.mark.parametrize("name", HARNESSED)
def test_preset_standard(against, device, scale, tried, name):
    """A fiftieth of its work in its own batches: one strength of five, a tenth of the samples."""
    data = dataset(scale.train, scale.test, real=not tried)
    plan = make_plan(load_preset("standard"), models=[MODELS.get(name)], seeds=1)
    cells = plan.accuracy_cells(plan.training_cell(plan.specs[0], 0, data), "0" * 64, None, data)
    reported = {attack.threat.name: attack.plan.reported for attack in plan.attacks}
    share = {"clean": 5, "pgd-linf": 10, "pgd-l2": 10}  # clean has one strength, PGD a tenth of the samples
    part = [
        replace(one, samples=2 if tried else one.samples // share.get(one.threat, 1))
        for one in cells
        if one.strength == (reported[one.threat] or 0.0)
    ]
    what = f"{name}, a fiftieth of preset standard"
    harness(against, device, name, part, data, what=what, goal="overhead <= 0.05")


@pytest.mark.benchmark(group="peak memory of an evaluation")
@pytest.mark.parametrize(("threat", "strength"), [("clean", 0.0), ("gaussian", 0.2), ("pgd-linf", 0.1)])
def test_memory(benchmark, against, device, scale, threat, strength):
    model, data = build("ch-node", device), split(10 * scale.batch)
    runs = [
        lambda n=n: evaluate(model, [cell(threat, strength, n, scale.batch)], data, device)
        for n in (10 * scale.batch, scale.batch)
    ]
    with frozen(model):
        against(
            *runs,
            what=f"ch-node, {threat}, ten batches",
            name="one batch",
            batch=scale.batch,
            goal="ratio >= 0.99",
        )
        ten, one = (peak_memory(run, device) for run in runs)
    benchmark.extra_info |= {"bytes": ten, "baseline_bytes": one}


def harness(against, device, name, cells, data, *, what, goal=None) -> None:
    """Evaluate `cells` with a model trained for one epoch, against the queries that this makes of it."""
    model = trained(name, data, device)
    recorder = Recorder(model)
    records = evaluate(recorder, cells, data.test, device)
    assert sum(record.forwards for record in records) == sum(count for count, _ in recorder.passes)
    pixels = data.test.images.to(device)
    with frozen(model):
        against(
            lambda: evaluate(model, cells, data.test, device),
            lambda: replay(model, recorder.passes, pixels),
            what=what,
            name="the same queries of the bare model",
            batch=cells[0].batch_size,
            goal=goal,
        )


def evaluate(model, cells, data, device):
    return [
        evaluate_cell(
            one,
            model,
            data,
            THREATS.get(one.threat).configure(**one.parameters),
            num_classes=CLASSES,
            device=device,
            environment={},
        )
        for one in cells
    ]


def cell(threat: str, strength: float, samples: int, batch: int):
    return stubs.cell_for(threat, strength, samples, batch_size=batch)


def split(count: int) -> Split:
    pixels, labels = images(count, stubs.CPU)
    return stubs.split_of(pixels, labels)
