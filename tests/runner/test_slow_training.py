"""Limits follow the estimate and what is measured; a training that takes long is told before it starts."""

from __future__ import annotations

import dataclasses

import pytest
import stubs
from robustode.bench.cli.main import main
from robustode.bench.config.plan import Plan, make_plan
from robustode.bench.config.preset import TimeLimits, load_preset
from robustode.bench.config.run_request import RunRequest
from robustode.bench.records.store import Store
from robustode.bench.runner.cost_estimate import Cost
from robustode.bench.runner.model_weights import ModelWeights
from robustode.bench.runner.run import run_plan
from robustode.bench.runner.run_context import RunContext
from robustode.bench.runner.schedule import RemainingWork, cells_of
from robustode.bench.runner.slow_training import slow_training
from robustode.bench.runtime.time_limit import Limit

ADAPTIVE = """
import torch
from torch import nn
from torchdiffeq import odeint

class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 64)
    def forward(self, t, state):
        return torch.tanh(self.layer(state))

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.field, self.head = Field(), nn.Linear(64, classes)
    def forward(self, images):
        return self.head(odeint(self.field, images.flatten(1), torch.tensor([0.0, 1.0]), method="dopri5")[-1])

def anode(shape, classes):
    return Net(classes)
"""


@pytest.fixture
def plan(tmp_path) -> Plan:
    return make_plan(load_preset(str(stubs.preset_file(tmp_path))), models=[stubs.spec("stub")])


def context(plan: Plan, few, tmp_path, cost: Cost) -> RunContext:
    return RunContext(
        plan=plan,
        data=few,
        store=Store(tmp_path / "out"),
        device=stubs.CPU,
        spec=plan.specs[0],
        seed=0,
        cost=cost,
        reporter=stubs.Listening(),
    )


SET = TimeLimits(training=7.0, cell=2.0)


def test_limits_are_at_least_the_presets_and_follow_the_estimate(plan, few, tmp_path):
    run = context(plan, few, tmp_path, Cost(forward=0.5, backward=0.5))
    training, clean, *_ = cells_of(plan, run.training, None, few, stubs.CPU)
    assert run.limit([training]) == 4 * run.seconds_for([training]) > 60
    assert run.limit([clean]) == 4 * 40 * 0.5
    run.measured(10.0, 30.0)
    assert run.limit([clean]) == 4 * 3 * 40 * 0.5, "what is measured counts"
    cheap = context(plan, few, tmp_path, Cost(forward=1e-6, backward=1e-6))
    assert (cheap.limit([training]), cheap.limit([clean]), cheap.limit([clean] * 3)) == (60, 30, 90)
    cheap.measured(10.0, 1.0)
    assert cheap.pace == 1.0
    fixed = context(dataclasses.replace(plan, time_limits=SET), few, tmp_path, run.cost)
    assert (fixed.limit([training]), fixed.limit([clean]), fixed.limit([clean] * 3)) == (7, 2, 6)


def test_the_limit_of_a_training_follows_its_epochs_and_says_so_once(plan, few, tmp_path):
    run = context(plan, few, tmp_path, Cost(forward=0.0, backward=0.0))
    weights = ModelWeights(run)
    weights._limit = Limit(60.0, "training")
    follow = weights._follow(10)
    follow(1, 1.0)
    assert (weights._limit.seconds, run.reporter.lines) == (60.0, [])
    follow(2, 30.0)
    assert weights._limit.seconds == pytest.approx(4 * 8 * 30, abs=40)
    follow(3, 31.0)
    (line,) = run.reporter.lines
    assert line.startswith("stub seed 0 · training takes longer than was estimated: epoch 2 of 10 took 30 s")
    fixed = ModelWeights(context(dataclasses.replace(plan, time_limits=SET), few, tmp_path, run.cost))
    fixed._limit = Limit(7.0, "training")
    fixed._follow(10)(1, 30.0)
    assert fixed._limit.seconds == 7.0, "what the user has set stays"


def test_a_training_that_takes_long_is_told_with_what_helps(plan):
    known = Cost(forward=1.0, backward=1.0)
    work = RemainingWork(
        model="anode", cost=known, cells=9, left=9, seconds=99.0, training=3720.0, adaptive=98
    )
    line = slow_training(work, plan)
    assert line is not None
    assert line.startswith("anode: the training of each seed takes about 1 h 02 min and may take 4 h 08 min")
    for remedy in ("--time-limit", "--weights", "fixed grid", "fewer epochs", "98 evaluations"):
        assert remedy in line
    assert "grid" not in str(slow_training(dataclasses.replace(work, adaptive=None), plan))
    assert slow_training(dataclasses.replace(work, training=59.0), plan) is None
    assert slow_training(dataclasses.replace(work, training=None), plan) is None, "it is stored, or given"
    short = slow_training(work, dataclasses.replace(plan, time_limits=SET))
    assert "is stopped after 7 s (--time-limit sets it)" in str(short)
    late = Cost(forward=0.0, backward=0.0, problem="one batch took longer than its limit of 20 s")
    stuck = slow_training(dataclasses.replace(work, cost=late, training=None), plan)
    assert "cannot be timed (one batch took longer than its limit of 20 s) and is stopped after 1 min" in str(
        stuck
    )
    broken = dataclasses.replace(work, cost=dataclasses.replace(late, failed=True), training=None)
    assert slow_training(broken, plan) is None, "that it fails is told elsewhere"


@pytest.mark.usefixtures("registries")
def test_a_dry_run_and_a_run_say_so_before_anything_is_trained(tmp_path, digits, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(ADAPTIVE)
    preset = stubs.preset_file(tmp_path, stubs.PRESET.replace("training = 60", "training = 0.001"))
    argv = ["run", "--preset", str(preset), "--models", "mine.py:anode", "--dry-run"]
    assert main(argv) == 0
    cells, slow, *_ = capsys.readouterr().out.splitlines()
    assert "(limits: training " in cells
    assert slow.startswith("anode: the training of each seed takes about ")
    assert "its solver chooses its steps" in slow
    assert main([*argv, "--time-limit", "2h,10m"]) == 0
    out = capsys.readouterr().out
    assert "(limits: training 2 h 00 min, a cell 10 min 00 s)" in out
    assert "of each seed" not in out
    request = RunRequest(preset=load_preset(str(preset)), models=("mine.py:anode",), seeds=1)
    listening = stubs.Listening()

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("robustode.bench.runner.model_weights.train", stop)
    with pytest.raises(KeyboardInterrupt):
        run_plan(request.plan(), digits, Store(tmp_path / "out"), device=stubs.CPU, reporter=listening)
    assert listening.lines[1].startswith("anode: the training of each seed takes about ")
