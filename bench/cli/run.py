"""What `robustode run` does with its arguments: a request, then a dry run or the run and its outcome."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from rich.console import Console

from ..._errors import InvalidArgument
from ..audits.library import check_names
from ..config.plan import Plan
from ..config.preset import Preset, TimeLimits
from ..config.pretrained import PretrainedWeights
from ..config.run_request import RunRequest
from ..data import Data
from ..records.foreign_files import refuse_foreign_files
from ..records.record import Record
from ..records.store import Store
from ..runner.batch_size import known_batch_sizes
from ..runner.build_planned import build_planned
from ..runner.run import run_plan
from ..runner.run_context import ADVICE
from ..runner.schedule import RemainingWork, estimate_duration, estimate_remaining
from ..runner.slow_training import slow_training
from ..runner.taken_names import refuse_taken_names
from ..runner.workers import count_processes
from ..runtime.device import pick_device
from ..runtime.progress import Quiet, Reporter, Terminal, duration
from ..runtime.time_limit import time_limit
from ..throughput.machine_load import BUSY
from .arguments import names_in
from .run_lines import result_line


def run_preset(arguments: argparse.Namespace, preset: Preset, show: Callable[[Path], int]) -> int:
    """Run `preset` as the arguments change it, or say with ``--dry-run`` what that would be.

    Parameters
    ----------
    show
        Writes the report of a results folder, prints the leaderboard and returns an exit status.

    Returns
    -------
    int
        Exit status: 1 where something failed, else what `show` returned.

    Raises
    ------
    RobustodeError
        For arguments that cannot be run, data that are not there, a results folder in use, and one in which
        other files are in the way.
    """
    out = arguments.out or Path("results") / preset.name
    refuse_foreign_files(out)
    check_names(preset.audits or ())
    request = _request(arguments, preset)
    plan = request.plan()
    device = pick_device(arguments.device)
    if device.index is not None:
        torch.cuda.set_device(device)  # what names no device is on the same one
    if arguments.batch_size is None and device.type == "cuda":
        request = dataclasses.replace(request, batch_size="auto")
        plan = request.plan()
    data = request.data()
    if plan.pretrained:
        plan = _with_fitted_weights(plan, data)
        request = dataclasses.replace(request, pretrained=plan.pretrained)
    if arguments.dry_run:
        return _dry_run(arguments, plan, data, out, device)
    with reporter_of(arguments) as reporter:

        def on_evaluated(model: str, seed: int, records: list[Record], seconds: float) -> None:
            reporter.line(result_line(model, seed, records, seconds, plan.headline().reported))

        outcome = run_plan(
            plan,
            data,
            Store(out),
            device=device,
            fresh=arguments.fresh,
            reporter=reporter,
            request=request,
            jobs=arguments.jobs,
            on_evaluated=on_evaluated,
        )
    if not arguments.quiet:
        print(f"{outcome.done} cells done, {outcome.skipped} stored already")
        if outcome.others_load > BUSY:
            print(
                f"other processes used up to {outcome.others_load:.0%} of the machine during the timings: "
                "those marked * are not reliable"
            )
    status = show(out)
    for line in outcome.failures:
        print(f"failed: {line}", file=sys.stderr)
    for damage in outcome.damages:
        print(f"set aside and done again: {damage}", file=sys.stderr)
    return 1 if outcome.failures else status


def _with_fitted_weights(plan: Plan, data: Data) -> Plan:
    """The plan with its pretrained weights under the names of its model; says on stderr what was changed."""
    assert plan.pretrained
    (spec,) = plan.specs
    with time_limit(plan.limits.training, f"building {spec.name}", ADVICE):
        weights, note = plan.pretrained.fitted(build_planned(plan, spec, data, 0))
    if note:
        print(f"note: {weights.path.name}: {note}", file=sys.stderr)
    return dataclasses.replace(plan, pretrained=weights)


def reporter_of(arguments: argparse.Namespace) -> AbstractContextManager[Reporter]:
    """What shows the progress: nothing with ``--quiet``, every cell's line with ``--verbose``."""
    return nullcontext(Quiet()) if arguments.quiet else Terminal(Console(), verbose=arguments.verbose)


def _request(arguments: argparse.Namespace, preset: Preset) -> RunRequest:
    names = names_in(arguments.models)
    if arguments.models is not None and not names:
        raise InvalidArgument("--models names no model")
    if arguments.jobs is not None and arguments.jobs < 1:
        raise InvalidArgument(f"--jobs must be at least 1, not {arguments.jobs}")
    limits = arguments.time_limit
    return RunRequest(
        preset=preset,
        models=tuple(dict.fromkeys(names)) if names else None,
        load=tuple(arguments.load),
        seeds=arguments.seed or arguments.seeds,
        data_root=arguments.data_root,
        batch_size=arguments.batch_size,
        pretrained=PretrainedWeights.read(arguments.weights) if arguments.weights else None,
        time_limits=TimeLimits(training=limits[0], cell=limits[1]) if limits else None,
    )


def _limits(work: RemainingWork, plan: Plan) -> str:
    """How long a training and each other cell may take; empty where nothing is left."""
    if not work.left or work.cost.failed:
        return ""
    training = plan.allowed(plan.limits.training, work.training or 0.0)
    cell = plan.allowed(plan.limits.cell, work.longest)
    return f" (limits: training {duration(training)}, a cell {duration(cell)})"


def _dry_run(arguments: argparse.Namespace, plan: Plan, data: Data, out: Path, device: torch.device) -> int:
    """Print what is left of each model, how long all of it takes, and where the results go.

    Returns 1 where a model that something is left of fails when it is asked for one batch.
    """
    store = Store(out)
    if not arguments.fresh:
        refuse_taken_names(plan, data, store)
        plan = known_batch_sizes(plan, data, store, device)
    threads = torch.get_num_threads() // count_processes(len(plan.model_runs), device, arguments.jobs)
    remaining = estimate_remaining(plan, data, store, device, fresh=arguments.fresh, threads=max(1, threads))
    processes = count_processes(sum(len(work.seconds_by_seed) for work in remaining), device, arguments.jobs)
    for work in remaining:
        todo = f"{work.left} of {work.cells} cells to do"
        problem = work.cost.problem if work.left else ""
        time = f"cannot be timed: {problem}" if problem else f"about {duration(work.seconds)}"
        print(f"{work.model:<24} {todo:>24}  {time}{_limits(work, plan)}")
    for slow in filter(None, (slow_training(work, plan) for work in remaining)):
        print(slow)
    preset = plan.preset
    says = f"; the preset says: {preset.cost}" if preset.cost else ""
    print(f"{preset.name}: {preset.title}{says}")
    how = "one after the other" if processes == 1 else f"{processes} at once"
    seconds = estimate_duration(remaining, processes)
    ahead = [work for work in remaining if work.left]
    untimed = [work.model for work in ahead if work.cost.problem]
    without = f", without {', '.join(untimed)}" if untimed else ""
    total = f"about {duration(seconds)} here, {how}, from one batch of each model{without}"
    if ahead and len(untimed) == len(ahead):
        total = "how long it takes cannot be told: no model could be timed"
    print(f"{total}; results in {out}")
    if preset.batch_size == "auto":
        sizes = [f"{spec.name} {plan.batch_sizes.get(spec.name, 'to be measured')}" for spec in plan.specs]
        print(f"batch size auto: {', '.join(sizes)}")
    return int(any(work.cost.failed and work.left for work in remaining))
