"""The command line described: commands, options, defaults, help. Reads nothing and loads no torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from ... import __version__
from .values import batch_size, seconds, time_limits, training_seeds, width

LISTS = ("models", "threats", "datasets", "presets", "audits")
MODELS = "A,B|FILE.py:FACTORY"
AUDIT_COST = "30 s to 3 min for each model and seed on digits, 1 to 9 min on MNIST"
"""What all audits take on one core, by the stored records of `results/`."""


class _Parser(argparse.ArgumentParser):
    """argparse with one clear line for a mistake, and a suggestion for a mistyped command."""

    def error(self, message: str) -> NoReturn:
        if "invalid choice" in message and self.prog == "robustode":
            import difflib

            typed = message.split("'")[1]
            known = self._commands()
            near = difflib.get_close_matches(typed, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            message = f"unknown command {typed!r}: {hint}"
        if message.endswith("required: COMMAND"):
            message = f"no command: give one of {', '.join(self._commands())}"
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")

    def _commands(self) -> list[str]:
        return [name for action in self._actions for name in action.choices or ()]


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of descriptions and examples, and gives no line to the word COMMAND."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)
        self._action_max_length = 4 + len("submit-attack")  # argparse forgets their indentation

    def _format_action(self, action: argparse.Action) -> str:
        text = super()._format_action(action)
        return text.split("\n", 1)[1] if isinstance(action, argparse._SubParsersAction) else text


def command_line() -> argparse.ArgumentParser:
    """Build the parser of every command; on a mistake it prints one line and exits with status 2."""
    parser = _Parser(
        prog="robustode",
        usage="robustode COMMAND [OPTIONS]",
        description="The robustness benchmark for neural-ODE classifiers.",
        epilog="example:\n"
        "  robustode run          four models on 8x8 digits, no download, under 3 minutes\n"
        "  robustode run --help   what a command does, its options and an example",
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"robustode {__version__}")
    commands = parser.add_subparsers(
        dest="command",
        required=True,
        prog="robustode",
        metavar="COMMAND",
        title="commands",
        parser_class=_Parser,
    )
    _add_run(commands)
    _add_model_commands(commands)
    _add_results_commands(commands)
    return parser


def _command(
    commands: Any, name: str, help: str, description: str, example: str, usage: str = "[OPTIONS]"
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        usage=f"robustode {name} {usage}",
        description=description,
        epilog=f"example:\n  robustode {name} {example}",
        formatter_class=_Help,
        allow_abbrev=False,
    )
    return command


def _add_run(commands: Any) -> None:
    run = _command(
        commands,
        "run",
        "train, attack and time models, then write the report",
        "Train, attack and time models, and write the report. Stored cells are skipped.",
        "--preset quick --models ch-node,my_model.py:build --seeds 3",
    )
    run.add_argument("--preset", default="quick", metavar="NAME|FILE.toml", help="default: quick")
    run.add_argument("--models", metavar=MODELS, help="these models instead of the preset's")
    run.add_argument(
        "--weights",
        type=Path,
        metavar="FILE.safetensors",
        help="weights of the one model: it is not trained",
    )
    _add_load(run)
    _add_seeds(run, "not the preset's")
    run.add_argument("--device", default="auto", metavar="NAME", help="auto (default), cpu, cuda or cuda:N")
    run.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="models run at once (default: one per core)",
    )
    run.add_argument(
        "--flow",
        choices=("auto", "eager"),
        default="auto",
        help="compiled solver (auto) or torchdiffeq (eager)",
    )
    run.add_argument(
        "--batch-size",
        type=batch_size,
        metavar="N|auto",
        help="samples at once; GPU default: auto (measured)",
    )
    run.add_argument(
        "--data-root", type=Path, metavar="DIR", help="default: $ROBUSTODE_DATA or ~/.cache/robustode"
    )
    run.add_argument("--out", type=Path, metavar="DIR", help="results folder (default: results/<preset>)")
    run.add_argument(
        "--time-limit",
        type=time_limits,
        metavar="T[,T]",
        help="for a training, and for each other cell: 2h,10m",
    )
    run.add_argument("--fresh", action="store_true", help="do everything again, stored or not")
    run.add_argument("--dry-run", action="store_true", help="show what is left and its time, then stop")
    shown = run.add_mutually_exclusive_group()
    shown.add_argument("--quiet", action="store_true", help="only the leaderboard and failures")
    shown.add_argument("--verbose", action="store_true", help="a line for each threat and timing too")


def _add_seeds(command: argparse.ArgumentParser, otherwise: str) -> None:
    which = command.add_mutually_exclusive_group()
    which.add_argument("--seeds", type=int, metavar="N", help=f"training seeds 0 .. N-1 ({otherwise})")
    which.add_argument("--seed", type=training_seeds, metavar="K[,K]", help="training seeds by name")


def _add_model_commands(commands: Any) -> None:
    listing = _command(
        commands,
        "list",
        "show the models, threats, datasets, presets or audits",
        "Show what is registered, one line per entry.",
        "models",
        "WHAT [--json]",
    )
    listing.add_argument("what", choices=LISTS, metavar="WHAT", help=", ".join(LISTS))
    _add_load(listing)
    listing.add_argument("--json", action="store_true", help="as JSON, with every property")

    for kind, ending, description in (
        ("model", "py", "Write a small model that passes `robustode check`; change it into yours."),
        ("threat", "py", "Write a small attack that runs; change it into yours, or into noise."),
        ("dataset", "py", "Write a small dataset that runs; change it into yours."),
        ("preset", "toml", "Write a small preset that runs; change it into yours."),
    ):
        new = _command(
            commands,
            f"new-{kind}",
            f"write a one-file {kind} to start from",
            description,
            f"my-{kind} my_{kind}.{ending}",
            f"NAME [FILE.{ending}]",
        )
        new.add_argument("name", metavar="NAME", help="lower-case letters, digits and dashes")
        new.add_argument(
            "file",
            nargs="?",
            type=Path,
            metavar=f"FILE.{ending}",
            help=f"default: NAME.{ending} here, with _ for - and .",
        )
        if kind == "dataset":
            new.add_argument(
                "--images", type=Path, metavar="DIR", help="a folder of images, one folder per class"
            )

    check = _command(
        commands,
        "check",
        "does one model pass the conformance checks?",
        "Run the conformance checks and the fast audits on one untrained model, under a\n"
        "minute on two cores. Exit status 1 where one fails.",
        "my_model.py:build",
        "MODEL",
    )
    check.add_argument("model", metavar="MODEL", help="a registered name, or FILE.py:FACTORY")
    _add_load(check)


def _add_results_commands(commands: Any) -> None:
    report = _command(
        commands,
        "report",
        "write tables, figures and page again from records",
        "Write leaderboard, figures and page from the stored records; runs no model.",
        "--models node,ch-node --figures accuracy --width 3.4in",
    )
    report.add_argument(
        "--benchmarks",
        type=Path,
        metavar="FILE.json",
        help="add results of `tox -e bench` to the page",
    )
    paper = report.add_argument_group("for a paper; any of these writes DIR/paper, and no report")
    paper.add_argument("--models", metavar="A,B", help="rows of these models (default: all)")
    paper.add_argument(
        "--threats", metavar="A,B", help="threats or norms: pgd-l2, linf, worst-case, gaussian"
    )
    paper.add_argument("--figures", metavar="A,B", help="accuracy, gap, sandwich, heatmap, critical, ...")
    paper.add_argument("--format", metavar="A,B", help="pdf, svg, png (default: pdf)")
    paper.add_argument("--width", type=width, metavar="LENGTH", help="of a figure: 3.4in, 86mm, 246pt")
    paper.add_argument("--dpi", type=int, metavar="N", help="resolution of pixels (default: 300)")
    paper.add_argument("--style", type=Path, metavar="FILE.mplstyle", help="matplotlib style over ours")
    paper.add_argument("--columns", metavar="A,B", help="of leaderboard.tex, named as in leaderboard.csv")
    paper.add_argument("--intervals", action="store_true", help="95%% intervals in leaderboard.tex")
    verify = _command(
        commands,
        "verify",
        "re-check stored examples, weights and numbers",
        "Re-check a results folder from its own files: no training, no attack.\n"
        "Exit status 1 where something disagrees.",
        "--out results/quick",
    )
    verify.add_argument(
        "--models",
        metavar=MODELS,
        help="check these models only; FILE.py:FACTORY alone only says where a model is: all are checked",
    )
    submit = _command(
        commands,
        "submit-attack",
        "lower a score with adversarial examples of your own",
        "FILE.npz holds `index` (k,), each sample's number in its source,\n"
        "`image` (k, c, h, w), float in [0, 1], uint8 or uint16, and `origin`, a text\n"
        "for the page.",
        "mine.npz --model node --norm linf",
        "FILE.npz --model MODEL [OPTIONS]",
    )
    submit.add_argument("file", type=Path, metavar="FILE.npz", help="the adversarial examples")
    submit.add_argument("--model", required=True, metavar="NAME|FILE.py:FACTORY", help="the attacked model")
    submit.add_argument("--seed", type=int, default=0, metavar="N", help="its training seed (default: 0)")
    submit.add_argument("--recipe", metavar="NAME", help="its training recipe (default: the last run's)")
    submit.add_argument("--norm", choices=("linf", "l2"), help="default: the norm of the ranking")
    transfer = _command(
        commands,
        "transfer",
        "replay each model's adversarial examples on all others",
        "Replay stored adversarial examples of every other model; no training, no\n"
        "gradients. What breaks a model lowers its worst case.",
        "--out results/standard --models ch-node",
    )
    transfer.add_argument("--models", metavar=MODELS, help="replay on these models only (default: all)")
    audit = _command(
        commands,
        "audit",
        "check trained models for known ways a number can mislead",
        "Run the audits that need a model (see `robustode list audits`) on every trained\n"
        "model of a results folder, store each outcome, and write the report. A stored\n"
        "outcome is not computed again. All of them take\n"
        f"{AUDIT_COST};\n"
        "--checks and --samples make it shorter.",
        "--out results/quick --checks finite,determinism",
    )
    audit.add_argument("--models", metavar=MODELS, help="these models only, or where a moved file is")
    audit.add_argument("--checks", metavar="A,B", help="these audits only")
    audit.add_argument("--samples", type=int, default=128, metavar="N", help="test images (default: 128)")
    _add_seeds(audit, "default: all")
    audit.add_argument("--jobs", type=int, metavar="N", help="models audited at once (default: one per core)")
    audit.add_argument(
        "--time-limit", type=seconds, default=300.0, metavar="TIME", help="for each audit (default: 5m)"
    )
    audit.add_argument("--fresh", action="store_true", help="run every audit again, stored or not")
    upgrade = _command(
        commands,
        "upgrade",
        "convert a results folder of robustode 0.1",
        "Read records, adversarial examples and checkpoints of schema 1, write them as\n"
        "this version does, check that they read back the same, and replace the old\n"
        "files. Stopped half way, the same command goes on.",
        "--out results/mine",
    )
    merging = _command(
        commands,
        "merge",
        "make one results folder of several",
        "Put the records, weights and adversarial examples of folders of one preset, made\n"
        "apart, into a new folder, and write its report. The folders stay as they are.",
        "results/a results/b --out results/both",
        "DIR DIR... --out DIR",
    )
    merging.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="results folders, two or more")
    merging.add_argument("--out", required=True, type=Path, metavar="DIR", help="the new folder")
    for command in (report, verify, submit, transfer, audit, upgrade):
        command.add_argument(
            "--out",
            type=Path,
            default=Path("results/quick"),
            metavar="DIR",
            help="results folder (default: results/quick)",
        )
    for command in (verify, submit, transfer, audit):
        _add_load(command)
        command.add_argument(
            "--data-root", type=Path, metavar="DIR", help="default: $ROBUSTODE_DATA or ~/.cache/robustode"
        )


def _add_load(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--load",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.py",
        help="import what registers models, threats or datasets (may be repeated)",
    )


def names_in(text: str | None) -> list[str]:
    """Split the value of an option like ``--models A,B``; empty for an option that was not used."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]
