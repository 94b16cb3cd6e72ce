"""A whole robustness curve in one run against AutoAttack from scratch at each strength."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import robustode
import stubs
from robustode.attacks import THREATS
from robustode.bench.data import load_data
from robustode.bench.evaluation.accuracy import evaluate_cell
from robustode.bench.evaluation.curve import evaluate_curve

ROOT = Path(__file__).parents[2]
GRIDS = {
    "linf": ([0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3], 0.1),
    "l2": ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0], 0.5),
}
"""Eight strengths, and the reported one: near the middle of the curves of the published digits models."""
SAMPLES = 50
SHORT = {"steps": 8, "targets": 1, "queries": 5}
"""What both are cut to where nothing is timed."""


@pytest.mark.benchmark(group="robustness curve")
@pytest.mark.parametrize("norm", GRIDS)
@pytest.mark.parametrize("name", ["ch-node", "resnet"])
def test_curve(benchmark, against, tried, name, norm):
    """The same or lower robust accuracy at every strength, with a fifth of the gradients at most."""
    model = robustode.load_model(ROOT / "results" / "digits", name)
    strengths, reported = GRIDS[norm]
    samples = 8 if tried else SAMPLES
    split = load_data("digits").test.first(samples)
    sizes = SHORT if tried else {}
    plain, curve = (THREATS.get(f"{what}-{norm}").configure(**sizes) for what in ("autoattack", "curve"))
    common = {"num_classes": 10, "device": stubs.CPU, "environment": {}}
    grid = {**curve.parameters, "strengths": strengths, "reported": [reported]}

    def whole():
        cells = [replace(stubs.cell_for(curve, eps, samples), parameters=grid) for eps in strengths]
        return evaluate_curve(cells, model, split, curve, **common)

    def loop():
        cells = [stubs.cell_for(plain, eps, samples) for eps in strengths]
        scratch[:] = [evaluate_cell(cell, model, split, plain, **common) for cell in cells]

    scratch: list = []
    what = f"{name}, {norm}, 8 strengths, {samples} digits"
    records = against(
        whole, loop, what=what, name="autoattack at each strength", batch=samples, goal="ratio >= 5", pairs=1
    )
    ours, theirs = ([record.accuracy for record in each] for each in (records, scratch))
    gradients = [sum(record.backwards for record in each) for each in (records, scratch)]
    benchmark.extra_info |= {
        "strengths": strengths,
        "reported": reported,
        "robust_accuracy": ours,
        "baseline_robust_accuracy": theirs,
        "backwards": gradients[0],
        "baseline_backwards": gradients[1],
        "forwards": sum(record.forwards for record in records),
        "baseline_forwards": sum(record.forwards for record in scratch),
    }
    assert all(mine <= other for mine, other in zip(ours, theirs, strict=True))
    assert ours == sorted(ours, reverse=True)
    if not tried:
        assert 5 * gradients[0] <= gradients[1]
