"""argv -> a call. Each subcommand imports what it needs, so help and report load no torch."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ..._errors import InvalidArgument, RobustodeError
from .arguments import command_line, names_in


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 something failed, 2 wrong arguments."""
    arguments = command_line().parse_args(argv)
    # Read when torch is loaded: idle OpenMP threads soon sleep instead of spinning, which on a machine that
    # does anything else besides is up to 20 times faster.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    handler = globals()[f"_{arguments.command.replace('-', '_')}"]
    try:
        return int(handler(arguments))
    except RobustodeError as error:
        print(f"robustode: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except OSError as error:
        print(
            f"robustode: error: {error.strerror or error}: {error.filename or ''}".rstrip(": "),
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(
            "\nrobustode: stopped; what was finished is stored, and the same command goes on from there",
            file=sys.stderr,
        )
        return 130


def _find_plugins() -> None:
    """Load the models of installed packages; one that cannot be used is one line, and no obstacle."""
    from ..plugins.entry_points import load_plugins

    load_plugins(lambda line: print(f"robustode: warning: {line}", file=sys.stderr))


def _run(arguments: Namespace) -> int:
    from ..config.preset import load_preset

    preset = load_preset(arguments.preset)
    _find_plugins()

    from ...models import get_ode_backend, use_ode_backend
    from .run import run_command

    with use_ode_backend("torchdiffeq" if arguments.flow == "eager" else get_ode_backend()):
        return run_command(arguments, preset, _show)


def _show(out: Path) -> int:
    """Write the report and print the leaderboard and the page's path."""
    from rich.console import Console

    from ..report.leaderboard.terminal import WIDTH, terminal_table
    from ..report.report import write_report

    report = write_report(out)
    console = Console()
    width = console.width if console.is_terminal else max(console.width, WIDTH)
    Console(width=width).print(terminal_table(report.leaderboard, width))
    for problem in report.problems:
        print(f"not used: {problem}", file=sys.stderr)
    board = report.leaderboard
    complete = board[board["status"] == "ok"]
    if "audit_missing" in board and (unasked := int((complete["audit_missing"] != "").sum())):
        print(
            f"{unasked} of {len(board)} rows were not asked every check that others were, and stand below "
            f"those that were: `robustode audit --out {out}` asks the rest, with --models FILE.py:FACTORY "
            "for each that comes from a file"
        )
    if report.superseded:
        print(f"{report.superseded} records of older versions or checkpoints are not shown")
    print(f"open {report.page.resolve()}")
    return 0


def _report(arguments: Namespace) -> int:
    if arguments.benchmarks:
        from ..report.benchmark_tables import add_benchmarks

        add_benchmarks(arguments.out, arguments.benchmarks)
    return _show(arguments.out)


def _verify(arguments: Namespace) -> int:
    from ..plugins.model_file import named_models
    from ..verification.verify import verify

    _find_plugins()
    references = names_in(arguments.models)
    if arguments.models is not None and not references:
        raise InvalidArgument("--models names no model")
    names, specs = named_models(references)
    done = verify(
        arguments.out,
        arguments.data_root,
        specs,
        only=names if any(".py" not in reference for reference in references) else None,
        say=lambda line: print(line, flush=True),
    )
    for note in done.notes:
        print(f"note: {note}")
    print(
        f"checked: records {done.records}, models {done.models}, adversarial examples {done.predicted}; "
        f"disagreements: {len(done.disagreements)}, notes: {len(done.notes)}"
    )
    for finding in done.disagreements:
        print(f"disagrees: {finding}", file=sys.stderr)
    return 1 if done.disagreements else 0


def _audit(arguments: Namespace) -> int:
    from ..audits.run import audit_folder

    if arguments.jobs is not None and arguments.jobs < 1:
        raise InvalidArgument(f"--jobs must be at least 1, not {arguments.jobs}")
    done = audit_folder(
        arguments.out,
        arguments.data_root,
        models=names_in(arguments.models),
        checks=names_in(arguments.checks),
        samples=arguments.samples,
        seeds=arguments.seeds,
        fresh=arguments.fresh,
        jobs=arguments.jobs,
        say=lambda line: print(line, flush=True),
    )
    print(f"{done.done} checks done, {done.skipped} stored already")
    status = _show(arguments.out)
    for line in done.failures:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if done.failures else status


def _submit_attack(arguments: Namespace) -> int:
    from ..report.report import write_report
    from ..verification.submit import submit
    from ..verification.submitted_file import read_submission

    _find_plugins()
    sent = read_submission(arguments.file)
    verdict = submit(
        arguments.out,
        sent,
        arguments.model,
        norm=arguments.norm,
        seed=arguments.seed,
        recipe=arguments.recipe,
        data_root=arguments.data_root,
    )
    cell = verdict.cell
    for reason, count in sorted(verdict.rejected.items()):
        print(f"rejected {count}: {reason}")
    others = [norm for norm in verdict.norms if norm != cell.norm and arguments.norm is None]
    if others and any(reason.startswith("out of budget") for reason in verdict.rejected):
        print(f"judged in {cell.norm}; --norm {others[0]} judges in {others[0]}")
    print(f"accepted {verdict.accepted} of {len(sent.index)}, from {sent.origin}")
    if not verdict.accepted:
        new = " that is not stored already" if verdict.rejected["stored already"] else ""
        against = f"{cell.model} in {cell.norm} {cell.strength:g}"
        print(f"nothing{new} holds against {against}", file=sys.stderr)
        return 1
    which = f"{cell.model} ({cell.recipe['name']}) seed {cell.training_seed}"
    where = f"{which}, {cell.norm} {cell.strength:g}"
    remark = "" if verdict.after < verdict.before else ": no sample falls that stood before"
    remark = remark if verdict.new else " (stored already)"
    print(f"{where}: worst case {verdict.before:.1%} -> {verdict.after:.1%}{remark}")
    print(f"open {write_report(arguments.out).page.resolve()}")
    return 0


def _transfer(arguments: Namespace) -> int:
    from ..plugins.model_file import named_models
    from ..records.store import Store
    from ..runner.model_transfer import replay_all

    store = Store(arguments.out)
    if not store.records.is_dir():
        raise InvalidArgument(f"no records in {store.folder}: run `robustode run` first, or pass --out")
    names, specs = named_models(names_in(arguments.models))
    if arguments.models is not None and not names:
        raise InvalidArgument("--models names no model")
    with store.lock():
        done = replay_all(
            store,
            names=names or None,
            specs=specs,
            data_root=arguments.data_root,
            say=lambda line: print(line, flush=True),
        )
    for note in done.notes:
        print(f"note: {note}")
    print(f"{done.done} cells done, {done.skipped} stored already")
    status = _show(arguments.out)
    for line in done.failures:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if done.failures else status


def _list(arguments: Namespace) -> int:
    from .list import listing

    if arguments.what == "models":
        _find_plugins()
    print(listing(arguments.what, as_json=arguments.json))
    return 0


def _new_model(arguments: Namespace) -> int:
    from ...models import MODELS
    from ..plugins.new_model import new_model

    if arguments.name in MODELS:
        raise InvalidArgument(f"model {arguments.name!r} is registered already: choose another name")
    path = new_model(arguments.name, arguments.file)
    registered = path.resolve().parent == Path(__file__).resolve().parents[2] / "models"
    model = arguments.name if registered else f"{path}:build"
    print(f"wrote {path}")
    print(f"next: robustode check {model}")
    print(f"then: robustode run --models {model}")
    print(f"or, with weights of your own: robustode run --models {model} --weights FILE.safetensors")
    return 0


def _check(arguments: Namespace) -> int:
    from rich.console import Console

    from ..conformance.checks import check_model
    from ..plugins.model_file import resolve_model

    _find_plugins()
    console = Console(highlight=False)
    told: dict[str | None, str] = {}
    for result in check_model(resolve_model(arguments.model)):
        first = result.check if result.passed else told.setdefault(result.error, result.check)
        line = str(result) if first == result.check else f"FAIL    {result.check}: for the reason of {first}"
        console.print(line, markup=False, soft_wrap=True)
    return 1 if told else 0
