"""A whole curve in one run: exact on linear models, monotone, the same in any batch, every query counted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import stubs
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from robustode._errors import InvalidArgument, NonFinite
from robustode.attacks import BUDGET_TOLERANCE, THREATS, violation
from robustode.attacks.core.cost_log import part, record_costs, split_in_proportion
from robustode.attacks.core.curve_search import CurveSearch
from robustode.bench.config.cells import accuracy_cells, training_cell
from robustode.bench.config.plan import make_plan
from robustode.bench.config.preset import load_preset
from robustode.bench.evaluation.attack_verification import CellVerification, _compact
from robustode.bench.evaluation.curve import evaluate_curve
from robustode.bench.records.adversarial_examples import add_steps
from robustode.bench.records.predictions import unanswered
from robustode.bench.records.store import Store
from robustode.bench.report.html.attack_parts import attack_parts
from robustode.bench.report.report import write_report
from robustode.bench.runner import cell_run as measure
from robustode.bench.runner.run import run_plan
from robustode.bench.runtime.checked_model import CheckedModel
from robustode.models import MODELS

BOTH = pytest.mark.parametrize("norm", ["linf", "l2"])
SHORT = {"steps": 20, "targets": 2, "queries": 20, "restarts": 2}
GRIDS = {"linf": [0.01, 0.02, 0.03, 0.05, 0.08, 0.12], "l2": [0.05, 0.1, 0.15, 0.25, 0.4, 0.6]}


def linear(count: int = 40, classes: int = 4, seed: int = 0):
    """A linear model, grey images away from the box, and each one's distance to the boundary by norm."""
    generator = torch.Generator().manual_seed(seed)
    model = stubs.Linear((1, 4, 4), classes).requires_grad_(False)
    model.head.weight.copy_(torch.randn(classes, 16, generator=generator))
    model.head.bias.copy_(-model.head.weight.sum(1) / 2)
    images = 0.5 + 0.3 * (torch.rand(count, 1, 4, 4, generator=generator) - 0.5)
    logits = model(images).double()
    labels = logits.argmax(1)
    normals = model.head.weight[None].double() - model.head.weight[labels][:, None].double()
    reach = {}
    for norm, size in (("linf", normals.abs().sum(2)), ("l2", normals.norm(dim=2))):
        lead = (logits.gather(1, labels[:, None]) - logits) / size.clamp_min(1e-9)
        reach[norm] = lead.scatter(1, labels[:, None], torch.inf).amin(1)
    return model, images, labels, reach


def small(norm: str, **changes):
    return THREATS.get(f"curve-{norm}").configure(**{**SHORT, **changes})


def grid_cells(threat, strengths, samples: int, reported=(), **changes):
    parameters = dict(threat.parameters)
    if threat.grid_matters:
        parameters |= {"strengths": list(strengths), "reported": list(reported)}
    cell = stubs.cell_for(threat, 0.0, samples, parameters=parameters, **changes)
    return [dataclasses.replace(cell, strength=strength) for strength in strengths]


def run(model, split, threat, strengths, reported=(), *, classes: int = 4, **changes):
    options = {k: changes.pop(k) for k in ("clean", "keep", "kept", "only") if k in changes}
    cells = grid_cells(threat, strengths, len(split), reported, **changes)
    cells = [cells[i] for i in options.pop("only", range(len(cells)))]
    return evaluate_curve(
        cells, model, split, threat, num_classes=classes, device=stubs.CPU, environment={}, **options
    )


# --- ground truth ---------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("name", ["curve", "fmn"])
def test_on_a_linear_model_the_curve_is_exact_on_either_side_of_every_margin(norm, name):
    model, images, labels, reach = linear(24)
    quantiles = [float(reach[norm].quantile(q)) for q in (0.1, 0.4, 0.6, 0.9)]
    grid = sorted({q * f for q in quantiles for f in (0.99, 1.01)})
    threat = small(norm, steps=50, queries=4, restarts=1) if name == "curve" else THREATS.get(f"fmn-{norm}")
    perturbed = threat.perturb_at_strengths(model, images, labels, grid, [grid[5]], 0)
    for eps, found in zip(grid, perturbed, strict=True):
        sure = (reach[norm] / eps - 1).abs() > 5e-3
        assert int(sure.sum()) >= 20
        assert torch.equal((model(found).argmax(1) != labels)[sure], (reach[norm] < eps)[sure])
        assert float(violation(found, images, eps, norm).max()) <= BUDGET_TOLERANCE


@given(
    grid=st.lists(st.floats(0.005, 0.3), min_size=1, max_size=6, unique=True).map(sorted),
    reported=st.integers(0, 5),
    norm=st.sampled_from(["linf", "l2"]),
)
@settings(max_examples=6)
def test_a_curve_never_rises_and_stays_in_every_ball(grid, reported, norm):
    model, images, labels, _ = linear(8)
    threat = small(norm, steps=3, targets=1, queries=3, restarts=1)
    chosen = [grid[reported % len(grid)]]
    perturbed = threat.perturb_at_strengths(model, images, labels, grid, chosen, 0)
    broken = torch.stack([model(found).argmax(1) != labels for found in perturbed])
    assert (broken[1:] | ~broken[:-1]).all()
    for eps, found in zip(grid, perturbed, strict=True):
        assert float(violation(found, images, eps, norm).max()) <= BUDGET_TOLERANCE
    split = stubs.split_of(images, labels)
    correct = np.concatenate([r.outcomes["correct"] for r in run(model, split, threat, grid, chosen)])
    assert (correct[:-1] | ~correct[1:]).all()


@BOTH
def test_a_model_without_gradients_is_attacked_at_every_strength(norm):
    """Rounded logits have slope zero: distances of a minimal-norm attack are worth nothing there."""
    model, images, labels, _ = linear(3)
    rounded = stubs.Faulty((1, 4, 4), 4, lambda z, x: z.mul(1).round())
    rounded.load_state_dict(model.state_dict())
    labels = rounded(images).argmax(1)
    seen: list[float] = []
    with record_costs(lambda: (0, 0, 0)) as log:
        small(norm, steps=3).perturb_at_strengths(rounded, images, labels, [1e-6, 2e-6, 3e-6], [2e-6], 0)
        seen = [strength for (strength, name), _ in log.parts.items() if name == "square"]
    assert seen == [1e-6, 2e-6, 3e-6]


# --- what it does not depend on -------------------------------------------------------------------


@BOTH
def test_a_sample_does_not_depend_on_its_batch(norm):
    model, images, labels, _ = linear(12)
    model, images = model.double(), images.double()
    threat, grid = small(norm, steps=6, queries=5), GRIDS[norm]
    whole = threat.perturb_at_strengths(model, images, labels, grid, grid[2:3], list(range(12)))
    for rows in (slice(0, 5), slice(5, 6), slice(6, 12)):
        seeds = list(range(12))[rows]
        alone = threat.perturb_at_strengths(model, images[rows], labels[rows], grid, grid[2:3], seeds)
        torch.testing.assert_close(alone, whole[:, rows], rtol=0, atol=1e-9)


def test_strengths_that_do_not_ascend_are_refused():
    model, images, labels, _ = linear(2)
    for strengths in ([0.2, 0.1], [0.1, 0.1]):
        with pytest.raises(InvalidArgument, match="threat curve-linf: strengths must ascend"):
            THREATS.get("curve-linf").perturb_at_strengths(model, images, labels, strengths, [], 0)
    with pytest.raises(InvalidArgument, match="pgd-linf does one strength at a time"):
        THREATS.get("pgd-linf").perturb_at_strengths(model, images, labels, [0.1], [], 0)


def test_strength_zero_is_the_identity_in_a_grid_too():
    model, images, labels, _ = linear(2)
    found = THREATS.get("fmn-linf").perturb_at_strengths(model, images, labels, [0.0, 0.5], [], 0)
    assert torch.equal(found[0], images)
    assert (model(found[1]).argmax(1) != labels).all()


# --- counts ---------------------------------------------------------------------------------------


@BOTH
def test_queries_of_samples_that_never_break_are_exact(norm):
    model, images, labels, _ = linear(5)
    split, threat = stubs.split_of(images, labels), small(norm)
    grid, reported = [1e-6, 2e-6, 3e-6], [1e-6, 3e-6]
    records = run(model, split, threat, grid, reported)
    runs = SHORT["restarts"]
    minimal = (SHORT["steps"] + 1) * runs + 11, SHORT["steps"] * runs
    forwards, backwards = threat.queries(threat.parameters)
    autoattack_stages = forwards - minimal[0], backwards - minimal[1]
    assert sum(r.forwards for r in records) == 5 * (1 + minimal[0] + 2 * autoattack_stages[0] + 3)
    assert sum(r.backwards for r in records) == 5 * (minimal[1] + 2 * autoattack_stages[1])
    assert [r.measures["strengths_in_run"] for r in records] == [3.0] * 3


@BOTH
def test_the_parts_sum_to_what_the_record_counts(norm):
    model, images, labels, _ = linear()
    split, grid = stubs.split_of(images, labels), GRIDS[norm]
    known = labels.numpy()
    records = run(model, split, small(norm, restarts=1, steps=7), grid, grid[2:3], clean=known, batch_size=16)
    for number, record in enumerate(records):
        parts = {k: v for k, v in record.measures.items() if k.startswith("part.")}
        before = ~records[number - 1].outcomes["correct"][0] if number else np.zeros(40, bool)
        alone = (~record.outcomes["correct"][0] & ~before).sum()
        own = 40 - int(before.sum())  # its predictions: those not broken below, breaks alone and shuffled
        assert record.forwards == own + 2 * alone + sum(
            v for k, v in parts.items() if k.endswith(".forwards")
        )
        assert record.backwards == sum(v for k, v in parts.items() if k.endswith(".backwards"))
        broken = sum(v for k, v in parts.items() if k.endswith(".broken"))
        assert 0 <= broken - round(40 * (1 - record.accuracy)) <= 1, "one may not survive being rounded"
        assert 0 < sum(v for k, v in parts.items() if k.endswith(".seconds")) <= record.seconds
    table = attack_parts(records)
    assert table["evaluations"].sum() == 0, "a linear model has no field"
    assert table["backwards"].sum() == sum(record.backwards for record in records)
    assert set(table["part"]) >= {"start", "fmn", "apgd-ce", "apgd-t", "fab-t", "square"}


def test_every_part_knows_its_field_evaluations():
    """A fixed grid of four steps: four for each sample of every forward pass, in each part."""
    spec = MODELS.get("resnet")
    torch.manual_seed(0)
    model = spec.build((1, 4, 4), 4, **{**spec.resolve(), "layers": 4}).eval()
    images = torch.rand(6, 1, 4, 4)
    split = stubs.split_of(images, model(images).argmax(1))
    records = run(model, split, small("linf", restarts=1, steps=3), GRIDS["linf"], GRIDS["linf"][2:3])
    table = attack_parts(records)
    assert table["forwards"].sum() > 0
    assert table["evaluations"].sum() == 4 * table["forwards"].sum()
    assert (table["evaluations"] - 4 * table["forwards"]).abs().max() <= 4, "whole shares of each"
    assert [record.nfe for record in records] == [4.0] * len(records)
    without = [
        dataclasses.replace(r, measures={k: v for k, v in r.measures.items() if "evalu" not in k})
        for r in records
    ]
    assert attack_parts(without)["evaluations"].isna().all(), "records of before they were counted"


def test_autoattack_alone_notes_its_parts_too():
    from robustode.bench.evaluation.accuracy import evaluate_cell

    model, images, labels, _ = linear(10)
    threat = THREATS.get("autoattack-linf").configure(steps=5, targets=2, queries=10)
    cell, split = stubs.cell_for(threat, 0.05, 10), stubs.split_of(images, labels)
    record = evaluate_cell(cell, model, split, threat, num_classes=4, device=stubs.CPU, environment={})
    total = dict.fromkeys(("forwards", "backwards", "broken"), 0.0)
    for name, value in record.measures.items():
        what = name.rpartition(".")[2]
        total[what] = total.get(what, 0.0) + value
    assert total["forwards"] == record.forwards - 20, "clean predictions and those of the perturbed images"
    assert total["backwards"] == record.backwards
    assert total["broken"] == round(10 * (1 - record.accuracy))


@given(st.integers(0, 10**6), st.lists(st.integers(0, 50), min_size=1, max_size=9))
def test_shares_are_whole_and_sum_to_the_total(total, weights):
    shares = split_in_proportion(total, weights)
    assert sum(shares) == total
    assert min(shares) >= 0
    if any(weights):
        assert all(abs(s - total * w / sum(weights)) <= 1 for s, w in zip(shares, weights, strict=True))


def test_without_a_cost_log_nothing_is_asked():
    asked = []
    with part("x", [0.1], lambda: asked.append(1) or [1]):
        pass
    assert asked == []


# --- the harness ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["curve-linf", "fmn-l2"])
def test_every_strength_is_judged_and_every_break_is_the_image_that_is_stored(name):
    model, images, labels, reach = linear()
    threat = small("linf") if name == "curve-linf" else THREATS.get(name)
    split, grid = stubs.split_of(images, labels), GRIDS[threat.norm]
    kept = {}
    records = run(model, split, threat, grid, grid[2:3], keep=lambda c, b: kept.update({c.strength: b}))
    for eps, record in zip(grid, records, strict=True):
        broken, breaks = np.flatnonzero(~record.outcomes["correct"][0]), kept[eps]
        np.testing.assert_array_equal(breaks.index, broken)
        stored = torch.from_numpy(add_steps(images[broken].numpy(), breaks.steps))
        assert (model(stored).argmax(1) != labels[broken]).all()
        assert float(violation(stored, images[broken], eps, threat.norm).max()) <= BUDGET_TOLERANCE
        sure = (reach[threat.norm] / eps - 1).abs().numpy() > 3e-2
        np.testing.assert_array_equal(~record.outcomes["correct"][0][sure], (reach[threat.norm] < eps)[sure])
        assert record.outcomes["norm"].max() <= eps + BUDGET_TOLERANCE


def test_some_strengths_alone_are_those_of_the_whole_run():
    model, images, labels, _ = linear(20)
    split, grid, threat = stubs.split_of(images, labels), GRIDS["linf"], small("linf")
    whole = run(model, split, threat, grid, grid[2:3])
    for record in run(model, split, threat, grid, grid[2:3], only=[4, 1]):
        same = whole[grid.index(record.cell.strength)]
        np.testing.assert_array_equal(*(stubs.predicted(each, split) for each in (record, same)))
        assert (record.forwards, record.backwards) == (same.forwards, same.backwards)


def test_a_check_that_fails_counts_at_that_strength_and_what_is_confirmed_is_carried():
    """A threat that claims everything: only what the harness confirms is broken, and it stays broken."""
    model, images, labels, _ = linear(6)
    target = images.clone()

    def curve(model, images, labels, strengths, reported, seed):
        grid = images.expand(len(strengths), *images.shape).clone()
        grid[0, 0] = (images[0] - 0.3 * torch.sign(weight[labels[0]])).clamp(0, 1)
        return grid

    weight = model.head.weight.view(4, 1, 4, 4)
    threat = dataclasses.replace(THREATS.get("fmn-linf"), curve=curve, parameters={}, name="claims")
    records = run(model, stubs.split_of(target, labels), threat, [0.3, 0.4, 0.5])
    for record in records:
        assert record.outcomes["correct"][0].tolist() == [False] + [True] * 5


@BOTH
@pytest.mark.parametrize("what", ["logits", "gradient"])
def test_nan_is_never_robustness(norm, what):
    model, images, labels, _ = linear(6)
    faults = {
        "logits": lambda z, x: torch.where(x.flatten(1).amax(1)[:, None] > 0.6, torch.nan, z),
        "gradient": lambda z, x: z + (x - x).flatten(1).sqrt().sum(1, keepdim=True),
    }
    spoiled = stubs.Faulty((1, 4, 4), 4, faults[what])
    spoiled.load_state_dict(model.state_dict())
    images = images if what == "gradient" else images.clamp(0.4, 0.59)
    split = stubs.split_of(images, labels)
    if what == "gradient":
        with pytest.raises(NonFinite):
            run(spoiled, split, small(norm), GRIDS[norm])
        return
    last = run(spoiled, split, small(norm), GRIDS[norm])[-1]
    assert last.status == "ok"
    assert not last.outcomes["correct"].any(), "each image reaches where there is no answer"
    assert unanswered(last.outcomes).any()


@BOTH
def test_modes_flags_and_generators_are_put_back(norm):
    model, images, labels, _ = linear(3)
    model.train().requires_grad_(True)
    state = torch.get_rng_state()
    small(norm).perturb_at_strengths(CheckedModel(model, 4), images, labels, GRIDS[norm], [], 0)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


# --- a run ----------------------------------------------------------------------------------------

THREAT = """
[[threats]]
name = "curve-linf"
strengths = [0.02, 0.05, 0.1]
reported = 0.05
samples = 12
samples_on_gpu = 20
[threats.parameters]
steps = 4
targets = 1
queries = 5
restarts = 1

[[threats]]
name = "fmn-linf"
strengths = [0.05, 0.1]
reported = 0.05
samples = 12
[threats.parameters]
steps = 4

[throughput]"""


def preset(folder, old: str = "", new: str = ""):
    text = stubs.PRESET.replace("\n[throughput]", THREAT, 1)
    assert old in text
    return load_preset(str(stubs.preset_file(folder, text.replace(old, new) if old else text)))


def test_the_grid_is_part_of_a_curves_key_and_not_of_a_minimal_norm_attacks(tmp_path, digits):
    def keys(name, *change, **options):
        plan = make_plan(preset(tmp_path, *change), models=[stubs.spec("linear")])
        training = training_cell(plan, plan.specs[0], 0, digits)
        cells = accuracy_cells(plan, training, "0", None, digits, **options)
        return {c.strength: (c.key(), c.samples) for c in cells if c.threat == name}

    other = ("strengths = [0.02, 0.05, 0.1]", "strengths = [0.03, 0.05, 0.1]")
    assert keys("curve-linf")[0.1] != keys("curve-linf", *other)[0.1]
    assert keys("curve-linf")[0.1][1] == 12
    assert keys("curve-linf", on_gpu=True)[0.1][1] == 20
    narrow = ("strengths = [0.05, 0.1]", "strengths = [0.05]")
    assert keys("fmn-linf")[0.05] == keys("fmn-linf", *narrow)[0.05]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("strengths = [0.02, 0.05, 0.1]", "strengths = [0.05, 0.02, 0.1]", "curve-linf: its strengths must"),
        ("samples_on_gpu = 20", "samples_on_gpu = 5", "samples_on_gpu = 5 is fewer than samples = 12"),
        ("samples_on_gpu = 20", "samples_on_gpu = 0", r"samples_on_gpu = 0: input should be greater"),
        ('restarts = 1\n\n[[threats]]\nname = "fmn', 'gap = 0\n\n[[threats]]\nname = "fmn', "gap must"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, old, new, message):
    with pytest.raises(InvalidArgument, match=message) as caught:
        make_plan(preset(tmp_path, old, new))
    assert len(str(caught.value).splitlines()) == 1


def test_a_run_stores_a_curve_and_finishes_one_that_is_partly_there(few, tmp_path, monkeypatch):
    plan = make_plan(preset(tmp_path), models=[stubs.spec("linear")])
    store = Store(tmp_path / "out")
    run_plan(plan, few, store, device=stubs.CPU, jobs=1)
    ours = [r for r in store.load()[0] if r.cell.threat in ("curve-linf", "fmn-linf")]
    assert len(ours) == 5
    assert all(r.status == "ok" for r in ours)
    assert {r.cell.strength for r in ours if "adversarial" in r.card} == {0.05}
    calls = []
    real = measure.evaluate_curve
    monkeypatch.setattr(measure, "evaluate_curve", lambda c, *a, **k: calls.append(c) or real(c, *a, **k))
    gone = [r for r in ours if (r.cell.threat, r.cell.strength) in (("curve-linf", 0.1), ("fmn-linf", 0.05))]
    for record in gone:
        stubs.forget(store, record.cell)
    assert run_plan(plan, few, store, device=stubs.CPU, jobs=1).done == 2
    assert [[c.strength for c in cells] for cells in calls] == [[0.1], [0.05]]
    for record in gone:
        again = store.get(record.cell)
        np.testing.assert_array_equal(again.outcomes["correct"], record.outcomes["correct"])
    calls.clear()
    assert run_plan(plan, few, store, device=stubs.CPU, jobs=1).done == 0
    assert calls == []
    page = write_report(store.folder).page.read_text()
    assert "Attack parts" in page
    assert (store.report / "attack_parts.csv").read_text().startswith("dataset,model,recipe,threat,strength")


def test_a_curve_that_fails_is_a_failure_at_every_strength(few, tmp_path):
    """The root of zero has no derivative, and only attacks ask for one at the images."""
    spec = stubs.faulty("nan", lambda z, x: z + (x - x).flatten(1).sqrt().sum(1, keepdim=True))
    plan = make_plan(preset(tmp_path), models=[spec])
    store = Store(tmp_path / "out")
    run_plan(plan, few, store, device=stubs.CPU, jobs=1)
    ours = [r for r in store.load()[0] if r.cell.threat == "curve-linf"]
    assert [r.status for r in ours] == ["nonfinite"] * 3


@pytest.mark.parametrize(
    ("radius", "over", "kept"), [(0.5, 4e-7, True), (0.5, 8e-7, False), (10.0, 4e-6, True)]
)
def test_what_float32_oversteps_is_kept_as_the_harness_allows(radius, over, kept):
    """A sample is never called broken at a radius whose image of it was dropped for its last digits."""
    images = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    curve = CurveSearch(
        stubs.two_class(torch.ones(1, 16, 16), 0.0).double(),
        images,
        torch.zeros(1, dtype=torch.long),
        0,
        [radius],
        "l2",
    )
    found = torch.full_like(images, (radius + over) / 16)
    curve.offer(curve.all_samples, found, torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.bool))
    assert curve.broken.tolist() == [[kept]]
    assert torch.equal(curve.best[0], found if kept else images)
    assert kept == (float(violation(found, images, radius, "l2")) <= BUDGET_TOLERANCE * max(1.0, radius) / 2)


def test_what_is_broken_is_kept_only_where_it_is_stored_and_without_its_batch():
    """Memory grows with the samples that are stored, not with the batches and strengths they come from."""
    model, images, labels, _ = linear(30)
    split = stubs.split_of(images, labels)
    threat, grid = small("l2"), GRIDS["l2"]
    every, one = {}, {}
    records = run(model, split, threat, grid, keep=lambda c, b: every.update({c.strength: b}))
    held: list[int] = []
    original = CellVerification.forget_breaks

    def forget(self):
        original(self)
        held.append(len(self._steps))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CellVerification, "forget_breaks", forget)
        again = run(
            model,
            split,
            threat,
            grid,
            keep=lambda c, b: one.update({c.strength: b}),
            kept=lambda c: c.strength == grid[2],
        )
    assert list(one) == [grid[2]]
    for name in ("index", "label", "steps"):
        np.testing.assert_array_equal(getattr(one[grid[2]], name), getattr(every[grid[2]], name))
    assert one[grid[2]].steps.dtype == np.int32
    for record, other in zip(records, again, strict=True):
        np.testing.assert_array_equal(record.outcomes["correct"], other.outcomes["correct"])
    assert held
    assert not any(held)
    batch = np.zeros((9, 1, 4, 4), np.int32)
    batch[0, 0, 0, 0], batch[1, 0, 0, 0] = -40000, 30000
    large, little = _compact(batch[0]), _compact(batch[1])
    assert (large.dtype, little.dtype) == (np.int32, np.int16)
    assert large.base is None
    assert little.base is None
    assert (large[0, 0, 0], little[0, 0, 0]) == (-40000, 30000)
