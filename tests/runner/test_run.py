"""The whole benchmark: resumed wherever it stopped, and never stopped by one bad model."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import stubs
import torch
from robustode._errors import InvalidArgument
from robustode.bench.config.cells import training_cell
from robustode.bench.config.plan import Plan, make_plan
from robustode.bench.config.preset import load_preset
from robustode.bench.data import load_data
from robustode.bench.records.headline import Headline
from robustode.bench.records.latest import current
from robustode.bench.records.lines import read_line
from robustode.bench.records.record import Record
from robustode.bench.records.store import Store
from robustode.bench.runner import cell_run as measure
from robustode.bench.runner import cost_estimate as estimate
from robustode.bench.runner import model_weights
from robustode.bench.runner import schedule as work
from robustode.bench.runner.model_run import ModelRun
from robustode.bench.runner.run import RunResult, run_plan
from robustode.models import ModelSpec


def plan_of(folder: Path, *specs: ModelSpec, text: str = stubs.PRESET, seeds: int = 1) -> Plan:
    folder.mkdir(parents=True, exist_ok=True)
    models = list(specs) or [stubs.spec("linear")]
    return make_plan(load_preset(str(stubs.preset_file(folder, text))), models=models, seeds=seeds)


def do(plan: Plan, data, folder: Path, **options) -> RunResult:
    return run_plan(plan, data, Store(folder), device=stubs.CPU, **options)


def loaded(folder: Path) -> dict[tuple, Record]:
    records, problems = Store(folder).load()
    assert problems == []
    return {
        (r.cell.model, r.cell.training_seed, r.cell.kind, r.cell.threat, r.cell.strength): r for r in records
    }


def same_results(one: Path, two: Path) -> None:
    """The same cells, with the same outcomes sample by sample; only times may differ."""
    first, second = loaded(one), loaded(two)
    assert set(first) == set(second)
    for name, record in first.items():
        other = second[name]
        assert record.cell == other.cell
        assert record.status == other.status == "ok"
        if record.cell.kind == "throughput":
            continue
        assert set(record.outcomes) == set(other.outcomes)
        for key, array in record.outcomes.items():
            np.testing.assert_array_equal(array, other.outcomes[key])


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted((folder / "records").rglob("*.jsonl"))}


def test_a_run_stores_every_cell(few, tmp_path):
    outcome = do(plan_of(tmp_path, seeds=2), few, tmp_path / "out")
    assert outcome == RunResult(done=2 * stubs.CELLS, skipped=0)
    records = loaded(tmp_path / "out")
    assert len(records) == 2 * stubs.CELLS
    assert Headline.read(tmp_path / "out").reported == {"gaussian": 0.1, "linf": 0.05}
    training = records["linear", 0, "training", "training", 0.0]
    assert training.forwards == training.backwards == 2 * 200
    assert training.measures["parameters"] == 650
    assert training.measures["best_epoch"] in (1, 2)
    assert training.card["input_shape"] == [1, 8, 8]
    assert training.outcomes["train_loss"].shape == (2,)
    clean = records["linear", 0, "accuracy", "clean", 0.0]
    assert clean.cell.checkpoint_sha256 == training.card["checkpoint_sha256"]
    assert clean.environment["versions"]["torch"]
    for record in records.values():
        assert record.status == "ok"
        assert record.environment["source_sha256"]


def test_a_finished_run_is_not_done_again(few, tmp_path, monkeypatch):
    plan = plan_of(tmp_path)
    do(plan, few, tmp_path / "out")
    before = snapshot(tmp_path / "out")

    def never(*_args, **_kwargs):
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(model_weights, "train", never)
    for name in ("evaluate_cell", "measure_cell"):
        monkeypatch.setattr(measure, name, never)
    assert do(plan, few, tmp_path / "out") == RunResult(done=0, skipped=stubs.CELLS)
    assert snapshot(tmp_path / "out") == before


def test_a_run_leaves_no_superseded_lines(few, tmp_path):
    plan = plan_of(tmp_path)
    for fresh in (False, True):
        do(plan, few, tmp_path / "out", fresh=fresh)
        (lines,) = snapshot(tmp_path / "out").values()
        keys = [body["key"] for body in map(read_line, lines.splitlines()) if "key" in body]
        assert len(keys) == len(set(keys)) == stubs.CELLS


def test_fresh_does_everything_again_to_the_same_result(few, tmp_path):
    plan = plan_of(tmp_path)
    do(plan, few, tmp_path / "out")
    assert do(plan, few, tmp_path / "out", fresh=True) == RunResult(done=stubs.CELLS, skipped=0)
    do(plan, few, tmp_path / "other")
    same_results(tmp_path / "out", tmp_path / "other")


@pytest.mark.parametrize("call", [0, 2])
def test_an_interrupted_run_goes_on_where_it_was(few, tmp_path, monkeypatch, call):
    plan = plan_of(tmp_path)
    do(plan, few, tmp_path / "whole")
    calls = []
    real = measure.evaluate_cell

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == call + 1:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(measure, "evaluate_cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        do(plan, few, tmp_path / "out")
    monkeypatch.undo()
    assert do(plan, few, tmp_path / "out") == RunResult(done=stubs.CELLS - 1 - call, skipped=1 + call)
    same_results(tmp_path / "whole", tmp_path / "out")


def test_one_more_model_leaves_the_others_alone(few, tmp_path):
    do(plan_of(tmp_path), few, tmp_path / "out")
    before = snapshot(tmp_path / "out")
    outcome = do(plan_of(tmp_path, stubs.spec("linear"), stubs.spec("second")), few, tmp_path / "out")
    assert outcome == RunResult(done=stubs.CELLS, skipped=stubs.CELLS)
    assert before.items() <= snapshot(tmp_path / "out").items()


def test_a_raised_version_is_done_again(few, tmp_path):
    do(plan_of(tmp_path), few, tmp_path / "out")
    raised = plan_of(tmp_path, stubs.spec("linear", version=2))
    assert do(raised, few, tmp_path / "out") == RunResult(done=stubs.CELLS, skipped=0)


def test_what_was_not_the_reported_strength_is_done_again_with_its_examples(few, tmp_path):
    other = stubs.PRESET.replace(
        "strengths = [0.05]\nreported = 0.05", "strengths = [0.05, 0.1]\nreported = 0.1"
    )
    assert other != stubs.PRESET
    do(plan_of(tmp_path, stubs.spec("linear"), text=other), few, tmp_path / "out")
    outcome = do(plan_of(tmp_path, stubs.spec("linear")), few, tmp_path / "out")
    assert (outcome.done, outcome.failures) == (1, []), "the attack at .05, whose examples were not kept"
    kept = [r for r in Store(tmp_path / "out").load()[0] if "adversarial" in r.card]
    assert sorted(record.cell.strength for record in kept) == [0.05, 0.1]


TWO = """
[[threats]]
name = "fgsm-linf"
strengths = [0.05]
reported = 0.05
samples = 20
"""


def broken_in_worst_case(records) -> set[int]:
    """Numbers, among the first 20 samples, of those that an attack broke and clean predictions did not."""
    clean = next(r for r in records if r.cell.family == "clean").outcomes["correct"][0, :20]
    survived = np.all([r.outcomes["correct"][0, :20] for r in records if r.cell.norm == "linf"], axis=0)
    return set(np.flatnonzero(clean & ~survived).tolist())


@pytest.mark.parametrize("parts", [1, 2], ids=["at once", "one attack after the other"])
def test_an_example_of_each_sample_that_the_worst_case_counts_is_stored_once(few, tmp_path, parts):
    if parts == 2:
        do(plan_of(tmp_path, stubs.spec("linear"), text=stubs.PRESET + TWO), few, tmp_path / "out")
        before = Store(tmp_path / "out")
        for record in before.load()[0]:
            if record.cell.threat == "fgsm-linf":
                stubs.forget(before, record.cell)
    do(plan_of(tmp_path, stubs.spec("linear"), text=stubs.PRESET + TWO), few, tmp_path / "out")
    store = Store(tmp_path / "out")
    records = [r for r in store.load()[0] if r.cell.kind == "accuracy"]
    attacks = [r for r in records if r.cell.norm == "linf"]
    assert sorted(r.cell.threat for r in attacks) == ["fgsm-linf", "pgd-linf"]
    assert {r.card["adversarial"]["samples"] for r in attacks} == {20}
    found = [store.get_examples(r.cell).index.tolist() for r in attacks]
    numbers = [few.test.indices[:20].tolist().index(number) for part in found for number in part]
    assert len(numbers) == len(set(numbers))
    assert set(numbers) == broken_in_worst_case(records) != set()


def crash(logits, images):
    raise ValueError("I do not feel well\nsecond line")


def sleep(logits, images):
    time.sleep(60)


def leave(logits, images):
    sys.exit(3)


def darken(logits, images):
    images.mul_(0.5)
    return logits


BAD = {
    "raises": (stubs.faulty("bad", crash), "error", "the model raised ValueError: I do not feel well"),
    "nan": (stubs.faulty("bad", lambda z, x: z * torch.nan), "nonfinite", "logits are NaN or infinite"),
    "shape": (stubs.faulty("bad", lambda z, x: z[:, :3]), "contract", "the model returned shape"),
    "sleeps": (stubs.faulty("bad", sleep), "timeout", "training bad took longer than its limit of 1 s"),
    "exits": (stubs.faulty("bad", leave), "error", "the model raised SystemExit: 3"),
    "exits when built": (
        stubs.spec("bad", lambda s, c: sys.exit(3)),
        "error",
        "the model cannot be built: Sys",
    ),
    "in place": (stubs.faulty("bad", darken), "contract", "the model changes its input in place"),
    "no module": (stubs.spec("bad", lambda shape, classes: "model"), "contract", "the factory returned str"),
    "no factory": (stubs.spec("bad", lambda shape: None), "error", "the model cannot be built: TypeError"),
}


@pytest.mark.parametrize(
    ("spec", "status", "message"), [pytest.param(*value, id=name) for name, value in BAD.items()]
)
def test_a_bad_model_stops_no_other(few, tmp_path, monkeypatch, spec, status, message):
    for module in (estimate, work):
        monkeypatch.setattr(module, "ESTIMATE_LIMIT", 0.1)
    text = stubs.PRESET.replace("training = 60", "training = 1")
    plan = plan_of(tmp_path, stubs.spec("first"), spec, stubs.spec("last"), text=text)
    outcome = do(plan, few, tmp_path / "out")
    assert outcome.done == 2 * stubs.CELLS + 1
    (line,) = outcome.failures
    assert line.startswith(f"bad seed 0 · training: {status}: {message}")
    assert "\n" not in line
    records = loaded(tmp_path / "out")
    bad = records["bad", 0, "training", "training", 0.0]
    assert (bad.status, dict(bad.outcomes)) == (status, {})
    assert bad.error.startswith(message)
    assert len([r for r in records.values() if r.cell.model in ("first", "last") and r.status == "ok"]) == (
        2 * stubs.CELLS
    )
    again = do(plan, few, tmp_path / "out")
    assert (again.done, again.skipped) == (1, 2 * stubs.CELLS), "only the failed one is tried again"
    assert again.failures == outcome.failures


def test_a_model_that_is_mended_is_trained(few, tmp_path):
    do(plan_of(tmp_path, stubs.faulty("bad", crash)), few, tmp_path / "out")
    outcome = do(plan_of(tmp_path, stubs.spec("bad")), few, tmp_path / "out")
    assert outcome == RunResult(done=stubs.CELLS, skipped=0)


def test_a_model_that_fails_under_one_threat_fails_there_alone(few, tmp_path):
    def fault(logits, images):
        if float(images[:, 0, 0, 0].detach().max()) > 0.45:  # a corner that is black in every digit
            raise TypeError("too noisy for me")  # an error of its code: another is no answer of a sample
        return logits

    plan = plan_of(tmp_path, stubs.faulty("picky", fault))
    outcome = do(plan, few, tmp_path / "out")
    records = loaded(tmp_path / "out")
    wrong = {name: r for name, r in records.items() if r.status != "ok"}
    assert [name[3:] for name in wrong] == [("gaussian", 0.3)]
    (failure,) = outcome.failures
    assert failure.startswith(
        "picky seed 0 · gaussian 0.3: error: the model raised TypeError: too noisy for me (test_run.py:"
    )
    assert outcome.done == stubs.CELLS
    assert do(plan, few, tmp_path / "out").skipped == stubs.CELLS - 1


def test_breaks_are_judged_alone_at_strengths_that_are_not_reported_too(few, tmp_path):
    """The model is wrong for whatever was perturbed, unless it comes alone: no such break counts."""

    def fault(logits, images):
        perturbed = bool((images.detach() * 16 % 1).any())  # digits have 17 grey levels
        return logits.roll(1, 1) if perturbed and len(images) > 1 and not images.requires_grad else logits

    text = stubs.PRESET.replace("strengths = [0.05]", "strengths = [1e-6, 2e-6]")
    text = text.replace("reported = 0.05", "reported = 2e-6")
    do(plan_of(tmp_path, stubs.faulty("together", fault), text=text), few, tmp_path / "out")
    records = loaded(tmp_path / "out")
    clean = records["together", 0, "accuracy", "clean", 0.0]
    noisy = records["together", 0, "accuracy", "gaussian", 0.1]
    assert noisy.accuracy < clean.accuracy / 2, "noise is not an attack: nothing of it is asked alone"
    for strength, stored in ((1e-6, False), (2e-6, True)):
        record = records["together", 0, "accuracy", "pgd-linf", strength]
        assert record.accuracy == clean.accuracy
        assert ("adversarial" in record.card) is stored


def test_a_cell_that_takes_too_long_is_a_timeout(few, tmp_path):
    def fault(logits, images):
        if images.requires_grad:
            time.sleep(60)
        return logits

    text = stubs.PRESET.replace("cell = 30", "cell = 0.5")
    outcome = do(plan_of(tmp_path, stubs.faulty("slow", fault), text=text), few, tmp_path / "out")
    assert outcome.failures == [
        "slow seed 0 · pgd-linf 0.05: timeout: slow seed 0 · pgd-linf 0.05 took longer than its limit of "
        "0.5 s (--time-limit sets it)"
    ]


@pytest.mark.parametrize("damage", ["cut", "edited"])
def test_a_damaged_record_is_set_aside_and_done_again(few, tmp_path, damage):
    plan = plan_of(tmp_path)
    do(plan, few, tmp_path / "whole")
    do(plan, few, tmp_path / "out")
    cell = loaded(tmp_path / "out")["linear", 0, "accuracy", "pgd-linf", 0.05].cell
    path = Store(tmp_path / "out").path(cell)
    lines = path.read_text().splitlines(True)
    (number,) = [n for n, line in enumerate(lines) if cell.key()[:32] in line]
    line = lines[number]
    lines[number] = line[:300] + "\n" if damage == "cut" else line.replace('"forwards":', '"forwards":1')
    path.write_text("".join(lines))
    outcome = do(plan, few, tmp_path / "out")
    assert (outcome.done, outcome.skipped, outcome.failures) == (1, stubs.CELLS - 1, [])
    assert [(damage.path, damage.line) for damage in outcome.damages] == [(path, number + 1)]
    assert (tmp_path / "out" / "set-aside" / "linear" / path.name).exists()
    same_results(tmp_path / "whole", tmp_path / "out")


def test_an_altered_checkpoint_is_named_and_fresh_mends_it(few, tmp_path):
    plan = plan_of(tmp_path, stubs.spec("linear"), stubs.spec("other"))
    do(plan, few, tmp_path / "out")
    path = Store(tmp_path / "out").checkpoint_path(training_cell(plan, plan.specs[0], 0, few))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    for _ in range(2):  # the record of the training is kept: weights put back are used again
        outcome = do(plan, few, tmp_path / "out")
        (line,) = outcome.failures
        assert "is damaged (Corrupt input data): delete it to train again" in line
        assert outcome.skipped == stubs.CELLS
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert do(plan, few, tmp_path / "out").skipped == 2 * stubs.CELLS
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert do(plan, few, tmp_path / "out", fresh=True).failures == []


def test_a_training_that_fails_when_done_again_is_not_timed_on_its_old_weights(few, tmp_path, monkeypatch):
    plan, listening = plan_of(tmp_path), stubs.Listening()
    do(plan, few, tmp_path / "out")
    timing = ("linear", 0, "throughput", "inference", 0.0)
    before = loaded(tmp_path / "out")[timing].environment

    def never(*_args, **_kwargs):
        raise ValueError("not today")

    monkeypatch.setattr(model_weights, "train", never)
    outcome = do(plan, few, tmp_path / "out", fresh=True, reporter=listening)
    assert outcome.done == len(outcome.failures) == 1
    assert listening.done == pytest.approx(listening.total)
    assert loaded(tmp_path / "out")[timing].environment == before


def test_weights_that_are_gone_when_timings_begin_are_a_failure(few, tmp_path, monkeypatch):
    real = ModelRun.evaluate

    def lose(self):
        keys = real(self)
        self.context.store.checkpoint_path(self.context.training).unlink()
        return keys

    monkeypatch.setattr(ModelRun, "evaluate", lose)
    outcome = do(plan_of(tmp_path), few, tmp_path / "out")
    (line,) = outcome.failures
    assert line.startswith("linear seed 0 · timings: CheckpointError: ")


def test_a_second_run_of_the_same_folder_is_refused(few, tmp_path):
    plan, store = plan_of(tmp_path), Store(tmp_path / "out")
    with store.lock(), pytest.raises(InvalidArgument, match="another run is writing to"):
        do(plan, few, tmp_path / "out")
    assert store.load() == ([], [])


def test_the_reported_work_adds_up(few, tmp_path):
    plan, listening = plan_of(tmp_path, seeds=2), stubs.Listening()
    do(plan, few, tmp_path / "out", reporter=listening)
    assert listening.total > 0
    assert listening.done == pytest.approx(listening.total)
    assert [line.split(":")[0] for line in listening.lines[:10]] == [
        f"18 cells to do, 0 stored already; results in {tmp_path / 'out'}",
        "linear seed 0 · training, 2 epochs",
        "linear seed 0 · trained",
        "linear seed 0 · clean",
        "linear seed 0 · gaussian",
        "linear seed 0 · pgd-linf",
        "linear seed 0 · lipschitz",
        "linear seed 0 · trajectories",
        "linear seed 1 · training, 2 epochs",
        "linear seed 1 · trained",
    ]
    assert [line.split(":")[0] for line in listening.lines[-4:]] == [
        f"linear seed {seed} · {what}" for seed in (0, 1) for what in ("inference", "training-step")
    ]
    again = stubs.Listening()
    do(plan, few, tmp_path / "out", reporter=again)
    assert (again.total, again.done, len(again.lines)) == (0, 0, 1)
    assert again.lines[0].startswith("0 cells to do, 18 stored already")


def test_results_do_not_depend_on_the_models_beside(few, tmp_path):
    do(plan_of(tmp_path), few, tmp_path / "alone")
    do(plan_of(tmp_path, stubs.spec("first"), stubs.spec("linear")), few, tmp_path / "both")
    alone, both = loaded(tmp_path / "alone"), loaded(tmp_path / "both")
    for name, record in alone.items():
        if record.cell.kind == "accuracy":
            np.testing.assert_array_equal(*(stubs.predicted(each, few.test) for each in (record, both[name])))


# --- killed for good ----------------------------------------------------------------------------

LONGER = stubs.PRESET.replace('["resnet"]', '["resnet", "node"]').replace("epochs = 2", "epochs = 6")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    plan = make_plan(load_preset(str(stubs.preset_file(folder, LONGER))))
    assert do(plan, load_data("digits"), folder / "out").failures == []
    return folder / "out"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize(
    ("pattern", "content"),
    [("checkpoints/node/*.partial.safetensors", b""), ("records/resnet/*.jsonl", b'"threat":"gaussian"')],
)
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(uninterrupted, tmp_path, pattern, content):
    preset, out = stubs.preset_file(tmp_path, LONGER), tmp_path / "out"
    command = [sys.executable, "-m", "robustode", "run", "--preset", preset, "--out", out, "--device", "cpu"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
    )
    try:
        deadline = time.monotonic() + 300
        while not any(content in path.read_bytes() for path in out.glob(pattern)):
            assert process.poll() is None, "it ended before the moment to kill it"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    plan = make_plan(load_preset(str(preset)))
    outcome = do(plan, load_data("digits"), out)
    assert outcome.failures == []
    assert outcome.damages == []
    assert 0 < outcome.done < 2 * (stubs.CELLS + stubs.FLOW_CELLS)
    same_results(uninterrupted, out)
    assert not list(out.rglob(".tmp-*"))
    assert not list(out.rglob("*.partial.*"))


def test_a_cell_is_the_same_work_in_another_process(uninterrupted):
    """Keys carry no address, order or time."""
    cells = [record.cell for record in loaded(uninterrupted).values()]
    assert len({cell.key() for cell in cells}) == len(cells) == 2 * (stubs.CELLS + stubs.FLOW_CELLS)
    for cell in cells:
        assert dataclasses.replace(cell).key() == cell.key()


def test_going_back_to_an_earlier_recipe_shows_its_numbers_again(few, tmp_path):
    out = tmp_path / "out"
    text = stubs.PRESET.replace("epochs = 2", "epochs = 1")
    first, second = (
        plan_of(tmp_path),
        make_plan(load_preset(str(stubs.preset_file(tmp_path, text))), models=[stubs.spec("linear")]),
    )
    boards = []
    for plan in (first, second, first):
        do(plan, few, out)
        records, _ = Store(out).load()
        headline = Headline.read(out)
        used, _ = current(records, headline.preferred)
        boards.append({record.cell.recipe["epochs"] for record in used})
    assert boards == [{2}, {1}, {2}]
