"""Units side by side: the same results as one after the other, and nothing lost when a process ends."""

from __future__ import annotations

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
from robustode.bench.config.preset import load_preset
from robustode.bench.config.run_request import RunRequest
from robustode.bench.records.headline import Headline
from robustode.bench.records.store import Store
from robustode.bench.report.statistics import summarise
from robustode.bench.runner import schedule as work
from robustode.bench.runner import workers
from robustode.bench.runner.cost_estimate import Cost
from robustode.bench.runner.run import RunResult, run_plan

CELLS = stubs.CELLS + stubs.FLOW_CELLS
"""Of one model with a flow."""
DYING = '''
import os
from pathlib import Path
import torch
from torch import nn

class Model(nn.Module):
    """Ends its process at the first attack, while a file called ``attacked`` stands beside it."""

    def __init__(self, size, classes):
        super().__init__()
        self.head = nn.Linear(size, classes)

    def forward(self, images):
        if images.requires_grad and not self.training and Path("attacked").exists():
            os._exit(3)
        return self.head(images.flatten(1))

def dying(shape, classes):
    return Model(shape[0] * shape[1] * shape[2], classes)
'''


def request_of(folder: Path, *models: str, text: str = stubs.PRESET, seeds: int = 1) -> RunRequest:
    preset = load_preset(str(stubs.preset_file(folder, text)))
    return RunRequest(preset=preset, models=models, seeds=seeds)


def do(request: RunRequest, out: Path, **options) -> RunResult:
    return run_plan(request.plan(), request.data(), Store(out), device=stubs.CPU, request=request, **options)


def do_here(request: RunRequest, out: Path) -> RunResult:
    """Do it in this process, one model run after the other."""
    return run_plan(request.plan(), request.data(), Store(out), device=stubs.CPU)


def results(out: Path) -> dict[str, dict[str, np.ndarray]]:
    records, problems = Store(out).load()
    assert problems == []
    assert all(record.status == "ok" for record in records)
    timings = {record.cell.key(): {} for record in records if record.cell.kind == "throughput"}
    return timings | {r.cell.key(): dict(r.outcomes) for r in records if r.cell.kind != "throughput"}


def test_side_by_side_gives_what_one_after_the_other_gives_on_as_many_threads(tmp_path):
    assert torch.get_num_threads() == 1
    request, listening = request_of(tmp_path, "resnet", "node"), stubs.Listening()
    together = do(request, tmp_path / "two", jobs=2, reporter=listening)
    assert together == RunResult(done=2 * CELLS)
    assert do_here(request, tmp_path / "one") == together
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    assert one.keys() == two.keys()
    for key, outcomes in one.items():
        for name, array in outcomes.items():
            np.testing.assert_array_equal(array, two[key][name])
    assert listening.done == pytest.approx(listening.total)
    said = [line.split(":")[0] for line in listening.lines]
    assert {"resnet seed 0 · trained", "node seed 0 · pgd-linf"} <= set(said)
    passes = ("inference", "training-step", "flow", "flow-gradient")
    assert said[-4:] == [f"node seed 0 · {what}" for what in passes]
    assert do(request, tmp_path / "two", jobs=2) == RunResult(skipped=2 * CELLS)


def test_every_process_has_its_share_of_the_threads(tmp_path):
    torch.set_num_threads(2)
    try:
        text = stubs.PRESET.replace("epochs = 2", "epochs = 1").replace("samples = 40", "samples = 4")
        do(request_of(tmp_path, "resnet", "node", text=text), tmp_path / "out")
    finally:
        torch.set_num_threads(1)
    records, _ = Store(tmp_path / "out").load()
    shares = {
        r.cell.kind == "throughput": (r.environment["processes"], r.environment["threads"]) for r in records
    }
    assert shares == {False: (2, 1), True: (1, 2)}
    assert "training_seconds" not in set(summarise(records)["statistic"]), "they were not alone"


def test_a_process_takes_the_hash_of_the_network_that_the_run_has(tmp_path, registries):
    (tmp_path / "mine.py").write_text(
        "import os\nfrom torch import nn\n\n\ndef build(shape, classes):\n"
        "    net = nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))\n"
        "    net.process = os.getpid()  # so that each process would find a hash of its own\n"
        "    return net\n"
    )
    request = request_of(tmp_path, f"{tmp_path}/mine.py:build")
    assert do(request, tmp_path / "out").failures == []
    plan = request.plan()
    found = {record.cell.network_sha256 for record in Store(tmp_path / "out").load()[0]}
    assert found == {plan.network_sha256(plan.specs[0], request.data())}


def test_how_many_are_best(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(workers, "free_memory", lambda: 100 * workers.MEMORY)
    assert [workers.default_processes(units) for units in (0, 1, 3, 50)] == [1, 1, 3, 8]
    monkeypatch.setattr(workers, "free_memory", lambda: 2 * workers.MEMORY)
    assert workers.default_processes(50) == 2
    monkeypatch.setattr(workers, "free_memory", lambda: 0)
    assert workers.default_processes(50) == 1


@pytest.mark.parametrize("fresh", [False, True])
def test_a_process_that_ends_is_a_failure_of_its_cell_alone(tmp_path, monkeypatch, registries, fresh):
    (tmp_path / "dying.py").write_text(DYING, encoding="utf-8")
    (tmp_path / "attacked").touch()
    monkeypatch.chdir(tmp_path)
    text = stubs.PRESET.replace("strengths = [0.05]", "strengths = [0.05, 0.1]")
    request = request_of(tmp_path, "dying.py:dying", "resnet", text=text)
    outcome = do(request, tmp_path / "out", jobs=2, fresh=fresh)
    records = {(r.cell.model, r.cell.threat, r.cell.strength): r for r in Store(tmp_path / "out").load()[0]}
    assert outcome.failures == [
        f"dying seed 0 · pgd-linf {eps}: error: its process ended with exit status 3" for eps in (0.05, 0.1)
    ]
    assert {name for name, r in records.items() if r.status != "ok"} == {
        ("dying", "pgd-linf", 0.05),
        ("dying", "pgd-linf", 0.1),
    }
    done = [(threat, strength) for model, threat, strength in records if model == "dying"]
    assert len(done) == stubs.CELLS + 1 - 2, "all of its cells, but not timed here"
    assert {("gaussian", 0.3), ("lipschitz", 0.0), ("trajectories", 0.0)} <= set(done)
    ours = Headline.read(tmp_path / "out").cells["digits/dying/0"]
    assert sorted(ours) == sorted(r.cell.key() for (model, *_), r in records.items() if model == "dying")
    assert (outcome.done, outcome.skipped) == (len(records), 0)
    if fresh:
        return
    (tmp_path / "attacked").unlink()
    again = do(request, tmp_path / "out", jobs=2)
    assert again.failures == []
    assert again.done == 2 + 2, "what failed, and the timings"
    assert len(results(tmp_path / "out")) == CELLS + 1 + stubs.CELLS + 1


def test_a_process_that_ends_in_training_leaves_nothing_to_go_on_with(tmp_path, monkeypatch, registries):
    text = DYING.replace("images.requires_grad and not self.training", "self.training")
    (tmp_path / "dying.py").write_text(text, encoding="utf-8")
    request = request_of(tmp_path, "dying.py:dying")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(work, "measure_cost", lambda *_, **__: Cost(forward=0.0, backward=0.0))
    (tmp_path / "attacked").touch()
    outcome = do(request, tmp_path / "out")
    assert outcome.failures == ["dying seed 0 · training: error: its process ended with exit status 3"]
    assert outcome.done == 1
    (record,) = Store(tmp_path / "out").load()[0]
    assert record.status == "error"


def test_an_error_of_the_harness_is_raised_here(tmp_path, monkeypatch):
    def put(self: Store, record: object) -> Path:
        raise OSError("the disk with the records is full")

    request = request_of(tmp_path, "resnet")
    monkeypatch.setattr(Store, "put", put)
    with pytest.raises(OSError, match="records"):
        do(request, tmp_path / "out", jobs=2)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_processes_end_with_the_run_and_the_next_goes_on(tmp_path, how):
    text = stubs.PRESET.replace("epochs = 2", "epochs = 12")
    preset, out = stubs.preset_file(tmp_path, text), tmp_path / "out"
    command = [sys.executable, "-m", "robustode", "run", "--preset", preset, "--out", out, "--device", "cpu"]
    command += ["--models", "resnet,node", "--jobs", "2"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    deadline = time.monotonic() + 300
    while len(list(out.glob("checkpoints/*/*.partial.safetensors"))) < 2:
        assert process.poll() is None, "it ended before the moment to stop it"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if how == "SIGKILL":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGINT)
    message = process.communicate(timeout=60)[1].decode()
    assert process.returncode == (-signal.SIGKILL if how == "SIGKILL" else 130)
    if how == "SIGINT":
        (line,) = message.strip().splitlines()
        assert line.startswith("robustode: stopped")
    while True:  # nothing goes on writing
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)
    request = RunRequest(preset=load_preset(str(preset)), models=("resnet", "node"))
    assert do_here(request, out).failures == []
    assert len(results(out)) == 2 * CELLS
    assert not list(out.rglob("*.partial.*"))
