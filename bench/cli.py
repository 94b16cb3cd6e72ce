"""argv -> a plan -> a call. Each subcommand imports what it needs, so help and report load no torch."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from .. import __version__
from .._errors import InvalidArgument, RobustodeError

if TYPE_CHECKING:
    from .plan import Plan
    from .work import Outlook

LISTS = ("models", "threats", "datasets", "presets")


class _Parser(argparse.ArgumentParser):
    """argparse with one clear line for a mistake, and a suggestion for a mistyped command."""

    def error(self, message: str) -> NoReturn:
        if "invalid choice" in message and self.prog == "robustode":
            import difflib

            typed = message.split("'")[1]
            near = difflib.get_close_matches(typed, COMMANDS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(COMMANDS)}"
            message = f"unknown command {typed!r}: {hint}"
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _batch_size(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number above 0 nor auto")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="robustode",
        description="The robustness benchmark for neural-ODE classifiers.",
        epilog="Start with `robustode run`: four models on 8x8 digits, no download, under 3 minutes.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"robustode {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    run = commands.add_parser(
        "run", help="train, evaluate and time models, then write the report", allow_abbrev=False
    )
    run.add_argument(
        "--preset", default="quick", metavar="NAME|FILE.toml", help="what to run (default: quick)"
    )
    run.add_argument(
        "--models",
        metavar="A,B|FILE.py:FACTORY",
        help="these models instead of the preset's, separated by commas",
    )
    run.add_argument(
        "--weights",
        type=Path,
        metavar="FILE.safetensors",
        help="evaluate these weights of the one model that --models names, instead of training it",
    )
    run.add_argument(
        "--seeds", type=int, metavar="N", help="training seeds 0 .. N-1 instead of the preset's number"
    )
    run.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    run.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="models trained and attacked at once on a CPU (default: one a thread, as memory allows)",
    )
    run.add_argument(
        "--batch-size",
        type=_batch_size,
        metavar="N|auto",
        help="samples attacked at once; auto measures what suits each model "
        "(default: the preset's number, on a GPU auto)",
    )
    run.add_argument(
        "--data-root", type=Path, metavar="DIR", help="where datasets lie (default: $ROBUSTODE_DATA)"
    )
    run.add_argument("--out", type=Path, metavar="DIR", help="results folder (default: results/<preset>)")
    run.add_argument("--fresh", action="store_true", help="do everything again, stored or not")
    run.add_argument(
        "--dry-run", action="store_true", help="say what would be done and how long it takes; do nothing"
    )
    run.add_argument("--quiet", action="store_true", help="no progress, only the leaderboard and failures")

    listing = commands.add_parser("list", help="show what is registered", allow_abbrev=False)
    listing.add_argument("what", choices=LISTS)
    listing.add_argument("--json", action="store_true", help="for programs")

    new = commands.add_parser("new-model", help="write a one-file model to start from", allow_abbrev=False)
    new.add_argument("name", metavar="NAME", help="lower-case letters, digits and dashes")
    new.add_argument("file", nargs="?", type=Path, metavar="FILE.py", help="default: NAME.py in this folder")

    check = commands.add_parser(
        "check", help="does one model keep the contract? under a minute", allow_abbrev=False
    )
    check.add_argument("model", metavar="NAME|FILE.py:FACTORY")

    report = commands.add_parser(
        "report", help="tables, plots and page again, from records alone", allow_abbrev=False
    )
    report.add_argument(
        "--out", type=Path, default=Path("results/quick"), metavar="DIR", help="default: results/quick"
    )
    report.add_argument(
        "--benchmarks",
        type=Path,
        metavar="FILE.json",
        help="add a pytest-benchmark file, as `tox -e bench` writes it",
    )
    verify = commands.add_parser(
        "verify",
        help="stored examples, checkpoints, records and numbers, re-checked",
        description="Re-check a results folder from its own files: no training, no attack.",
        allow_abbrev=False,
    )
    verify.add_argument(
        "--models", metavar="FILE.py:FACTORY,...", help="models from files that its records speak of"
    )
    submit = commands.add_parser(
        "submit-attack",
        help="lower a score with adversarial examples of your own",
        description="FILE.npz holds index (k,), each sample's number in its source, and image (k, c, h, w), "
        "float in [0, 1], uint8 or uint16; origin, a text, is shown on the page.",
        allow_abbrev=False,
    )
    submit.add_argument("file", type=Path, metavar="FILE.npz")
    submit.add_argument("--model", required=True, metavar="NAME|FILE.py:FACTORY", help="the attacked model")
    submit.add_argument("--seed", type=int, default=0, metavar="N", help="its training seed (default: 0)")
    submit.add_argument(
        "--norm", choices=("linf", "l2"), help="default: the norm that the leaderboard ranks by"
    )
    transfer = commands.add_parser(
        "transfer",
        help="replay each model's stored adversarial examples on all others",
        description="No training, no gradients: what breaks another model too joins its worst case.",
        allow_abbrev=False,
    )
    transfer.add_argument(
        "--models", metavar="A,B|FILE.py:FACTORY", help="replay on these models alone (default: on all)"
    )
    for command in (verify, submit, transfer):
        command.add_argument(
            "--out", type=Path, default=Path("results/quick"), metavar="DIR", help="default: results/quick"
        )
        command.add_argument(
            "--data-root", type=Path, metavar="DIR", help="where datasets lie (default: $ROBUSTODE_DATA)"
        )
    return parser


COMMANDS = ("run", "list", "new-model", "check", "report", "verify", "submit-attack", "transfer")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 something failed, 2 wrong arguments."""
    arguments = _parser().parse_args(argv)
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
    from .plugins import load_plugins

    load_plugins(lambda line: print(f"robustode: warning: {line}", file=sys.stderr))


def _run(arguments: argparse.Namespace) -> int:
    from .preset import load_preset

    preset = load_preset(arguments.preset)
    _find_plugins()

    from contextlib import nullcontext

    import torch
    from rich.console import Console

    from .batching import known_batch_sizes
    from .device import pick_device
    from .given import Given
    from .progress import Quiet, Terminal
    from .request import Request
    from .run import run_plan
    from .store import Store
    from .train import build_model
    from .work import elapsed, look_ahead
    from .workers import at_once

    names = (
        [name.strip() for name in arguments.models.split(",") if name.strip()]
        if arguments.models is not None
        else None
    )
    if names == []:
        raise InvalidArgument("--models names no model")
    if arguments.jobs is not None and arguments.jobs < 1:
        raise InvalidArgument(f"--jobs must be at least 1, not {arguments.jobs}")
    request = Request(
        preset=preset,
        models=tuple(dict.fromkeys(names)) if names else None,
        seeds=arguments.seeds,
        data_root=arguments.data_root,
        batch_size=arguments.batch_size,
        given=Given.read(arguments.weights) if arguments.weights else None,
    )
    plan = request.plan()
    device = pick_device(arguments.device)
    if arguments.batch_size is None and device.type == "cuda":
        request = dataclasses.replace(request, batch_size="auto")
        plan = request.plan()
    data = request.data()
    if plan.given:
        spec = plan.specs[0]
        plan.given.check(build_model(spec.build, data, plan.hyperparameters(spec), 0))
    out = arguments.out or Path("results") / preset.name
    if arguments.dry_run:
        store = Store(out)
        if not arguments.fresh:
            plan = known_batch_sizes(plan, data, store, device)
        threads = torch.get_num_threads() // at_once(len(plan.specs) * plan.seeds, device, arguments.jobs)
        outlooks = look_ahead(plan, data, store, device, fresh=arguments.fresh, threads=max(1, threads))
        processes = at_once(sum(len(outlook.busy) for outlook in outlooks), device, arguments.jobs)
        return _dry_run(plan, outlooks, elapsed(outlooks, processes), processes, out)
    console = Console()
    with nullcontext(Quiet()) if arguments.quiet else Terminal(console) as reporter:
        outcome = run_plan(
            plan,
            data,
            Store(out),
            device=device,
            fresh=arguments.fresh,
            reporter=reporter,
            request=request,
            jobs=arguments.jobs,
        )
    if not arguments.quiet:
        print(f"{outcome.done} cells done, {outcome.skipped} stored already")
    status = _show(out)
    for line in outcome.failures:
        print(f"failed: {line}", file=sys.stderr)
    for problem in outcome.problems:
        print(f"set aside and done again: {problem}", file=sys.stderr)
    return 1 if outcome.failures else status


def _dry_run(plan: Plan, outlooks: list[Outlook], seconds: float, processes: int, out: Path) -> int:
    from .progress import duration

    for outlook in outlooks:
        todo = f"{outlook.left} of {outlook.cells} cells to do"
        print(f"{outlook.model:<24} {todo:>24}  about {duration(outlook.seconds)}")
    preset = plan.preset
    print(f"{preset.name}: {preset.title}; the preset says: {preset.cost}")
    how = "one after the other" if processes == 1 else f"{processes} at once"
    print(f"about {duration(seconds)} here, {how}, from one batch of each model; results in {out}")
    if preset.batch_size == "auto":
        sizes = [f"{spec.name} {plan.batch_sizes.get(spec.name, 'to be measured')}" for spec in plan.specs]
        print(f"batch size auto: {', '.join(sizes)}")
    return 0


def _show(out: Path) -> int:
    """Write the report and print the leaderboard and the page's path."""
    from rich.console import Console

    from .report import write_report
    from .terminal import WIDTH, terminal_table

    report = write_report(out)
    console = Console()
    width = console.width if console.is_terminal else max(console.width, WIDTH)
    Console(width=width).print(terminal_table(report.leaderboard, width))
    for problem in report.problems:
        print(f"not used: {problem}", file=sys.stderr)
    if report.superseded:
        print(f"{report.superseded} records of older versions or checkpoints are not shown")
    print(f"open {report.page.resolve()}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    if arguments.benchmarks:
        from .benchmarks import add_benchmarks

        add_benchmarks(arguments.out, arguments.benchmarks)
    return _show(arguments.out)


def _verify(arguments: argparse.Namespace) -> int:
    from .external import load_external
    from .verify import verify

    _find_plugins()
    names = [name.strip() for name in (arguments.models or "").split(",") if name.strip()]
    done = verify(
        arguments.out,
        arguments.data_root,
        [load_external(name) for name in names],
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


def _submit_attack(arguments: argparse.Namespace) -> int:
    from .report import write_report
    from .submission import read_submission
    from .submit import submit

    _find_plugins()
    sent = read_submission(arguments.file)
    verdict = submit(
        arguments.out,
        sent,
        arguments.model,
        norm=arguments.norm,
        seed=arguments.seed,
        data_root=arguments.data_root,
    )
    cell = verdict.cell
    for reason, count in sorted(verdict.rejected.items()):
        print(f"rejected {count}: {reason}")
    print(f"accepted {verdict.accepted} of {len(sent.index)}, from {sent.origin}")
    if not verdict.accepted:
        print(f"nothing holds against {cell.model} in {cell.norm} {cell.strength:g}", file=sys.stderr)
        return 1
    where = f"{cell.model} seed {cell.training_seed}, {cell.norm} {cell.strength:g}"
    stored = "" if verdict.new else " (stored already)"
    print(f"{where}: worst case {verdict.before:.1%} -> {verdict.after:.1%}{stored}")
    print(f"open {write_report(arguments.out).page.resolve()}")
    return 0


def _transfer(arguments: argparse.Namespace) -> int:
    from .external import load_external
    from .store import Store
    from .transfer import replay_all

    store, names = Store(arguments.out), None
    if not store.records.is_dir():
        raise InvalidArgument(f"no records in {store.folder}: run `robustode run` first, or pass --out")
    if arguments.models is not None:
        names = [name.strip() for name in arguments.models.split(",") if name.strip()]
        if not names:
            raise InvalidArgument("--models names no model")
    specs = {name: load_external(name) for name in names or () if ".py" in name}
    with store.lock():
        done = replay_all(
            store,
            names=[specs[name].name if name in specs else name for name in names] if names else None,
            specs=list(specs.values()),
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


def _list(arguments: argparse.Namespace) -> int:
    from .listing import listing

    if arguments.what == "models":
        _find_plugins()
    print(listing(arguments.what, as_json=arguments.json))
    return 0


def _new_model(arguments: argparse.Namespace) -> int:
    from .scaffold import new_model

    path = new_model(arguments.name, arguments.file)
    registered = path.resolve().parent == Path(__file__).resolve().parents[1] / "models"
    model = arguments.name if registered else f"{path}:build"
    print(f"wrote {path}")
    print(f"next: robustode check {model}")
    print(f"then: robustode run --models {model}")
    print(f"or, with weights of your own: robustode run --models {model} --weights FILE.safetensors")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from .conformance import check_model
    from .external import resolve_model

    _find_plugins()
    console = Console(highlight=False)
    passed = True
    for result in check_model(resolve_model(arguments.model)):
        passed &= result.passed
        console.print(str(result), markup=False, soft_wrap=True)
    return 0 if passed else 1
