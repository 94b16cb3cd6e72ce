"""The command line described: commands, options, defaults, help. Reads nothing and loads no torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal, NoReturn

from ... import __version__

COMMANDS = ("run", "list", "new-model", "check", "report", "verify", "submit-attack", "transfer", "audit")
LISTS = ("models", "threats", "datasets", "presets", "audits")


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


def command_line() -> argparse.ArgumentParser:
    """Build the parser of every command; on a mistake it prints one line and exits with status 2."""
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
        "--flow",
        choices=("auto", "eager"),
        default="auto",
        help="what carries the flows: compiled steps where there are some, or torchdiffeq (default: auto)",
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
    shown = run.add_mutually_exclusive_group()
    shown.add_argument("--quiet", action="store_true", help="no progress, only the leaderboard and failures")
    shown.add_argument("--verbose", action="store_true", help="one line for each cell besides")

    listing = commands.add_parser("list", help="show what is registered", allow_abbrev=False)
    listing.add_argument("what", choices=LISTS)
    listing.add_argument("--json", action="store_true", help="for programs")

    new = commands.add_parser("new-model", help="write a one-file model to start from", allow_abbrev=False)
    new.add_argument("name", metavar="NAME", help="lower-case letters, digits and dashes")
    new.add_argument("file", nargs="?", type=Path, metavar="FILE.py", help="default: NAME.py in this folder")

    check = commands.add_parser(
        "check", help="does one model pass the conformance checks? under a minute", allow_abbrev=False
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
        "--models",
        metavar="A,B|FILE.py:FACTORY",
        help="the weights and examples of these alone; files alone say where models are, and all are checked",
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
        "--recipe", metavar="NAME", help="its training recipe, where it has several (default: the last run)"
    )
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
    audit = commands.add_parser(
        "audit",
        help="can the numbers be believed? checks on the trained models of a results folder",
        description="Run the checks of `robustode list audits` that ask a model on every trained model of a "
        "results folder, store each outcome, and write the report. A stored outcome is not asked for again.",
        allow_abbrev=False,
    )
    audit.add_argument(
        "--models", metavar="A,B|FILE.py:FACTORY", help="these models only, and where models from files are"
    )
    audit.add_argument("--checks", metavar="A,B", help="these checks only, separated by commas")
    audit.add_argument("--samples", type=int, default=128, metavar="N", help="test images (default: 128)")
    audit.add_argument("--seeds", type=int, metavar="N", help="training seeds 0 .. N-1 only (default: all)")
    audit.add_argument("--jobs", type=int, metavar="N", help="models audited at once (default: one a core)")
    audit.add_argument("--fresh", action="store_true", help="run every check again, stored or not")
    for command in (verify, submit, transfer, audit):
        command.add_argument(
            "--out", type=Path, default=Path("results/quick"), metavar="DIR", help="default: results/quick"
        )
        command.add_argument(
            "--data-root", type=Path, metavar="DIR", help="where datasets lie (default: $ROBUSTODE_DATA)"
        )
    return parser


def names_in(text: str | None) -> list[str]:
    """Split what an option like ``--models A,B`` was given; none for an option that was not used."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]
