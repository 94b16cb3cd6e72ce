"""Batches chosen by a measurement: exact sizes tried, memory that runs out, and a choice that is kept."""

from __future__ import annotations

import json

import pytest
import stubs
import torch
from robustode.bench.cli.main import main
from robustode.bench.config.plan import Plan, make_plan
from robustode.bench.config.preset import load_preset
from robustode.bench.config.run_request import RunRequest
from robustode.bench.records.record import Record
from robustode.bench.records.store import Store
from robustode.bench.runner import batch_size as batching
from robustode.bench.runner.batch_size import (
    BatchSizeFile,
    BatchTiming,
    candidate_sizes,
    choose_batch_size,
    choose_batch_sizes,
    smallest_near_fastest,
    time_sizes,
)
from robustode.bench.runner.run import RunResult, run_plan

AUTO = stubs.PRESET.replace("batch_size = 20\n", 'batch_size = "auto"\n')
SIZES = [16, 32, 64, 128, 256, 512, 1024]


class Clock:
    """Measures what it was told; remembers what it was asked."""

    def __init__(self, seconds: dict[int, float], full: float = float("inf"), error: Exception | None = None):
        self.seconds, self.full, self.asked = seconds, full, list[int]()
        self.error = error or torch.OutOfMemoryError("full")

    def __call__(self, size: int) -> BatchTiming:
        self.asked.append(size)
        if size >= self.full:
            raise self.error
        return BatchTiming(size=size, seconds=self.seconds.get(size, 1.0), memory=1000 * size)


@pytest.mark.parametrize(
    ("largest", "samples", "sizes"),
    [
        (1024, 10_000, SIZES),
        (8192, 10_000, [*SIZES, 2048, 4096, 8192]),
        (1024, 100, [16, 32, 64, 100]),
        (1024, 64, [16, 32, 64]),
        (1024, 16, [16]),
        (1024, 3, [3]),
    ],
)
def test_sizes_are_doubled_and_no_batch_is_larger_than_the_samples(largest, samples, sizes):
    assert candidate_sizes(largest, samples) == sizes


@pytest.mark.parametrize(
    ("seconds", "asked", "chosen"),
    [
        ({16: 8, 32: 4, 64: 2, 128: 1, 256: 1.5, 512: 2}, [16, 32, 64, 128, 256, 512], 128),
        ({16: 8, 32: 4, 64: 3, 128: 5, 256: 2, 512: 3, 1024: 3}, SIZES, 256),
        ({16: 1.05, 32: 1.0, 64: 1.2, 128: 1.2}, [16, 32, 64, 128], 16),
        ({16: 1.06, 32: 1.0, 64: 1.2, 128: 1.2}, [16, 32, 64, 128], 32),
        (dict.fromkeys(SIZES, 1.0), [16, 32, 64], 16),
        ({size: 1 / size for size in SIZES}, SIZES, 1024),
    ],
)
def test_the_smallest_size_near_the_fastest_is_taken_and_no_more_are_tried(seconds, asked, chosen):
    clock = Clock(seconds)
    timings = time_sizes(clock, SIZES, memory=1e9, seconds=1e9)
    assert clock.asked == asked
    assert smallest_near_fastest(timings) == chosen


FASTER = {size: 1e-3 / size for size in SIZES}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_memory_that_runs_out_ends_the_ladder(error):
    clock = Clock(FASTER, full=100, error=error)
    assert choose_batch_size(clock, SIZES, memory=1e9)[0] == 64
    assert clock.asked == [16, 32, 64, 128]


def test_a_size_that_would_exceed_the_memory_is_not_tried():
    clock = Clock(FASTER)
    assert choose_batch_size(clock, SIZES, memory=1000 * 128)[0] == 128
    assert clock.asked == [16, 32, 64, 128]


def test_a_size_that_would_take_too_long_is_not_tried():
    clock = Clock(dict.fromkeys(SIZES, 0.1) | {16: 0.2})
    assert [timing.size for timing in time_sizes(clock, SIZES, memory=1e9, seconds=4.0)] == [16]
    assert [timing.size for timing in time_sizes(clock, SIZES, memory=1e9, seconds=6.4)] == [16, 32, 64]


@pytest.mark.parametrize(("full", "asked", "chosen"), [(5, [16, 8, 4], 4), (1, [16, 8, 4, 2, 1], 1)])
def test_where_the_first_size_does_not_fit_it_is_halved(full, asked, chosen):
    clock = Clock({}, full=full)
    size, timings = choose_batch_size(clock, SIZES, memory=1e9)
    assert (clock.asked, size) == (asked, chosen)
    assert len(timings) == (full > 1)


def test_any_other_error_is_not_taken_for_full_memory():
    with pytest.raises(RuntimeError, match="broken"):
        choose_batch_size(Clock({}, full=1, error=RuntimeError("broken")), SIZES, memory=1e9)


def test_a_real_model_is_measured(few):
    timing = batching.measure_batches(stubs.Linear((1, 8, 8), 10), few, stubs.CPU)(300)
    assert timing.size == 300, "more than there are images: they are repeated"
    assert timing.seconds > 0
    assert timing.memory > 300 * 64 * 4, "at least the gradient"


# --- in a run -----------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """Stands for every measurement: the candidate_sizes of 40 samples is 16, 32, 40."""
    clock = Clock({16: 0.02, 32: 0.01, 40: 0.015})
    monkeypatch.setattr(batching, "measure_batches", lambda *_: clock)
    return clock


def plan_of(tmp_path, *specs, text: str = AUTO, seeds: int = 1) -> Plan:
    preset = load_preset(str(stubs.preset_file(tmp_path, text)))
    return make_plan(preset, models=list(specs) or [stubs.spec("linear")], seeds=seeds)


def do(plan: Plan, few, out, **options) -> RunResult:
    return run_plan(plan, few, Store(out), device=stubs.CPU, **options)


def sizes_in(out) -> set[tuple[str, int]]:
    records: list[Record] = Store(out).load()[0]
    kinds = ("accuracy", "certificate")
    return {(r.cell.threat, r.cell.batch_size) for r in records if r.cell.kind in kinds}


def test_a_run_measures_once_a_model_and_finds_its_cells_again(few, tmp_path, clock):
    text = AUTO.replace('name = "clean"\n', 'name = "clean"\nbatch_size = 7\n')
    plan, out = plan_of(tmp_path, text=text, seeds=2), tmp_path / "out"
    said = stubs.Listening()
    assert do(plan, few, out, reporter=said) == RunResult(done=2 * stubs.CELLS)
    assert clock.asked == [16, 32, 40]
    assert "linear · 32 samples at once, measured up to 40" in said.lines
    assert sizes_in(out) == {("clean", 7), ("gaussian", 32), ("pgd-linf", 32), ("lipschitz", 32)}
    (choice,) = json.loads((out / "batch_sizes.json").read_text()).values()
    assert choice == {"batch_size": 32, "seconds_per_sample": {"16": 0.02, "32": 0.01, "40": 0.015}}
    clock.seconds[16] = 0.001
    assert do(plan, few, out) == RunResult(skipped=2 * stubs.CELLS)
    assert clock.asked == [16, 32, 40]
    assert do(plan, few, out, fresh=True).done == 2 * stubs.CELLS
    assert clock.asked == 2 * [16, 32, 40]
    assert BatchSizeFile(out).get(next(iter(BatchSizeFile(out)._read()))) == 16
    assert do(plan, few, out) == RunResult(skipped=2 * stubs.CELLS)


def test_records_without_a_choice_are_gone_on_with(few, tmp_path, clock):
    """As when a run of the CPU's goes on on a GPU."""
    out = tmp_path / "out"
    do(plan_of(tmp_path, text=stubs.PRESET), few, out)
    assert do(plan_of(tmp_path), few, out) == RunResult(skipped=stubs.CELLS)
    assert clock.asked == []
    other = plan_of(tmp_path, stubs.spec("linear", version=2))
    assert do(other, few, out).done == stubs.CELLS
    assert clock.asked == [16, 32, 40]


def test_a_damaged_file_is_no_choice(tmp_path):
    choices = BatchSizeFile(tmp_path)
    assert choices.get("a") is None
    for text in ("{", "[]", '{"a": 3}', '{"a": {"batch_size": "many"}}', '{"a": {"batch_size": 0}}'):
        (tmp_path / "batch_sizes.json").write_text(text)
        assert choices.get("a") is None
    choices.put("a", 64, [])
    choices.put("b", 32, [])
    assert (choices.get("a"), choices.get("b")) == (64, 32)


def test_a_model_that_fails_has_no_choice_and_fails_where_it_is_trained(few, tmp_path):
    def crash(logits, images):
        raise ValueError("no")

    plan = plan_of(tmp_path, stubs.faulty("bad", crash))
    settled = choose_batch_sizes(plan, few, Store(tmp_path / "out"), stubs.CPU)
    assert settled.batch_sizes == {}
    assert not (tmp_path / "out").exists()
    (line,) = do(plan, few, tmp_path / "out").failures
    assert line.startswith("bad seed 0 · training: error: the model raised ValueError")


def test_a_number_is_not_measured(few, tmp_path, clock):
    plan = plan_of(tmp_path, text=stubs.PRESET)
    assert choose_batch_sizes(plan, few, Store(tmp_path), stubs.CPU) is plan
    assert clock.asked == []


def test_processes_take_the_size_that_was_chosen(tmp_path):
    preset, out = load_preset(str(stubs.preset_file(tmp_path, AUTO))), tmp_path / "out"
    request = RunRequest(preset=preset, models=("resnet", "node"))
    outcome = run_plan(request.plan(), request.data(), Store(out), device=stubs.CPU, request=request, jobs=2)
    assert outcome.failures == []
    chosen = {key.split("/")[1]: c["batch_size"] for key, c in BatchSizeFile(out)._read().items()}
    cells = [r.cell for r in Store(out).load()[0] if r.cell.kind == "accuracy"]
    assert {(cell.model, cell.batch_size) for cell in cells} == set(chosen.items())


# --- on the command line ------------------------------------------------------------------------


def dry(capsys, *arguments) -> list[str]:
    assert main(["run", *map(str, arguments), "--models", "resnet", "--device", "cpu", "--dry-run"]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_dry_run_does_not_measure(tmp_path, capsys, monkeypatch, clock):
    monkeypatch.chdir(tmp_path)
    preset = stubs.preset_file(tmp_path, stubs.PRESET)
    line = "batch size auto: resnet to be measured"
    assert dry(capsys, "--preset", preset, "--batch-size", "auto")[-1] == line
    assert dry(capsys, "--preset", stubs.preset_file(tmp_path, AUTO))[-1] == line
    assert dry(capsys, "--preset", preset, "--batch-size", "12")[-1].endswith("results in results/tiny")
    assert clock.asked == []
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]


@pytest.mark.parametrize("wish", ["0", "-3", "1.5", "many", ""])
def test_a_wrong_batch_size_is_one_line(wish, capsys):
    with pytest.raises(SystemExit) as end:
        main(["run", f"--batch-size={wish}"])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{wish!r} is neither a whole number above 0 nor auto" in line


@pytest.mark.parametrize(
    ("device", "wish", "size"), [("cuda", None, "auto"), ("cuda", "8", 8), ("cpu", None, 20)]
)
def test_a_gpu_measures_unless_told(tmp_path, monkeypatch, device, wish, size):
    from robustode.bench.cli import run as run_command

    planned = []

    def stop(plan, *_args, **options):
        planned.append((plan.preset.batch_size, options["request"].plan().preset.batch_size))
        raise KeyboardInterrupt

    monkeypatch.setattr(run_command, "pick_device", lambda wish: torch.device(device))
    monkeypatch.setattr(run_command, "run_plan", stop)
    preset = stubs.preset_file(tmp_path)
    arguments = ["run", "--preset", str(preset), "--out", str(tmp_path / "out")]
    assert main([*arguments, *(["--batch-size", wish] if wish else [])]) == 130
    assert planned == [(size, size)]
