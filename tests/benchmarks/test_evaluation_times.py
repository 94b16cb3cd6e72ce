"""What the harness adds to the time spent inside models, and what it holds in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import stubs
import torch
from robustode.attacks import THREATS
from robustode.bench.config.cells import accuracy_cells, training_cell
from robustode.bench.config.plan import make_plan
from robustode.bench.config.preset import load_preset
from robustode.bench.data import Split
from robustode.bench.evaluation.accuracy import evaluate_cell, frozen
from robustode.bench.throughput.measure import peak_memory
from robustode.models import MODELS
from timed import CLASSES, EVERY, Recorder, build, dataset, images, replay, trained

ALONE = "the same queries of the bare model"
BY_HAND = "hand-written loop: threat, bare model, argmax"
HARNESSED = ["ch-node", "resnet"]
"""The slowest and the fastest of the core models."""
two_baselines = pytest.mark.parametrize("kind", [ALONE, BY_HAND], ids=["alone", "by-hand"])


@pytest.mark.benchmark(group="clean evaluation")
@pytest.mark.parametrize("name", EVERY)
def test_clean(against, device, scale, name):
    model, cells = build(name, device), [cell("clean", 0.0, scale.test, scale.batch)]
    data = split(scale.test)

    def loop() -> int:
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
            loop,
            what=f"{name}, {scale.test:,} images",
            name="hand-written loop over batches",
            batch=scale.batch,
        )
        assert record.outcomes["correct"].sum() == loop()


@pytest.mark.benchmark(group="noise and attack evaluation")
@pytest.mark.parametrize(("threat", "strength"), [("gaussian", 0.2), ("pgd-linf", 0.1)])
@pytest.mark.parametrize("name", HARNESSED)
@two_baselines
def test_noise_and_attack(against, device, scale, tried, kind, name, threat, strength):
    data = dataset(scale.train, scale.batch if threat == "pgd-linf" else scale.test, real=not tried)
    cells = [cell(threat, strength, len(data.test), scale.batch)]
    harness(against, device, name, cells, data, what=f"{name}, {threat} ({data.name})", kind=kind)


@pytest.mark.benchmark(group="harness overhead")
@pytest.mark.parametrize("name", HARNESSED)
@two_baselines
def test_preset_standard(against, device, scale, tried, kind, name):
    """A fiftieth of it without curves, in its own batches: one strength of five, a tenth of the samples."""
    data = dataset(scale.train, scale.test, real=not tried)
    plan = make_plan(load_preset("standard"), models=[MODELS.get(name)], seeds=1)
    cells = accuracy_cells(plan, training_cell(plan, plan.specs[0], 0, data), "0" * 64, None, data)
    reported = {attack.threat.name: attack.plan.reported for attack in plan.attacks}
    share = {"clean": 5, "pgd-linf": 10, "pgd-l2": 10}  # clean has one strength, PGD a tenth of the samples
    asked = [
        one
        for one in cells
        if one.strength == (reported[one.threat] or 0.0) and not one.threat.startswith("curve")
    ]
    part = [
        small(one) if tried else replace(one, samples=one.samples // share.get(one.threat, 1))
        for one in asked
    ]
    what = f"{name}, a fiftieth of preset standard ({data.name})"
    goal = "overhead <= 0.05" if kind == ALONE else None
    harness(against, device, name, part, data, what=what, kind=kind, goal=goal)


@pytest.mark.benchmark(group="peak memory of an evaluation")
@pytest.mark.parametrize(("threat", "strength"), [("clean", 0.0), ("gaussian", 0.2), ("pgd-linf", 0.1)])
def test_memory(benchmark, against, device, scale, threat, strength):
    model, data = build("ch-node", device), split(10 * scale.batch)
    with torch.no_grad():  # what is misclassified as it is is not attacked, and then batches are not full
        own = [model(pixels.to(device)).argmax(1).cpu() for pixels in data.images.split(scale.batch)]
    data = replace(data, labels=torch.cat(own))
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


def small(cell):
    """Two samples, and of whatever there is many of (steps, restarts, queries) two."""
    few = {name: min(value, 2) for name, value in cell.parameters.items() if isinstance(value, int)}
    return replace(cell, samples=2, parameters={**cell.parameters, **few})


def harness(against, device, name, cells, data, *, what, kind, goal=None) -> None:
    """Evaluate `cells` with a model trained for one epoch, against its queries alone or a loop by hand."""
    model = trained(name, data, device)
    recorder = Recorder(model)
    with torch.no_grad():
        found = [model(pixels.to(device)).argmax(1).cpu() for pixels in data.test.images.split(100)]
    clean = torch.cat(found).numpy()
    records = evaluate(recorder, cells, data.test, device, clean)
    assert sum(record.forwards for record in records) == sum(count for count, _ in recorder.passes)
    pixels = data.test.images.to(device)
    with frozen(model):
        against(
            lambda: evaluate(model, cells, data.test, device, clean),
            (lambda: replay(model, recorder.passes, pixels))
            if kind == ALONE
            else (lambda: by_hand(model, cells, data.test, device)),
            what=what,
            name=kind,
            batch=cells[0].batch_size,
            goal=goal,
        )


def by_hand(model, cells, data, device) -> None:
    """What one writes without a harness: one seed a batch, nothing counted, checked or kept."""
    for one in cells:
        threat = configured(one)
        for draw in range(one.draws):
            for start in range(0, one.samples, one.batch_size):
                rows = slice(start, min(start + one.batch_size, one.samples))
                x, y = data.images[rows].to(device), data.labels[rows].to(device)
                if threat.needs_gradient:
                    with torch.no_grad():
                        right = model(x).argmax(1) == y
                    if right.any():
                        x = x.clone()
                        x[right] = threat(model, x[right], y[right], one.strength, draw)
                else:
                    x = threat(model, x, y, one.strength, draw)
                with torch.no_grad():
                    (model(x).argmax(1) == y).sum()


def configured(one):
    return THREATS.get(one.threat).configure(**one.parameters)


def evaluate(model, cells, data, device, clean=None):
    """As a run does it: `clean` predictions are shared, breaks are judged as they would be stored."""
    return [
        evaluate_cell(
            one,
            model,
            data,
            configured(one),
            num_classes=CLASSES,
            device=device,
            environment={},
            clean=None if clean is None else clean[: one.samples],
            keep=(lambda breaks: None) if one.norm is not None else None,
        )
        for one in cells
    ]


def cell(threat: str, strength: float, samples: int, batch: int):
    return stubs.cell_for(threat, strength, samples, batch_size=batch)


def split(count: int) -> Split:
    pixels, labels = images(count, stubs.CPU)
    return stubs.split_of(pixels, labels)
