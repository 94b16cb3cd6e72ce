"""From argv to a call, and from an error to one line and an exit status. Help and report load no torch."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence

from ..._errors import RobustodeError
from ..runtime.announcements import sentence, telling
from ..runtime.printed import each_line_once, replace_unknown_characters
from . import model_commands, results_commands
from .arguments import command_line
from .shared import load_plugins_with_warnings, show_report, show_warning


def run_command(arguments: Namespace) -> int:
    """Run a preset and show its report; 1 where something failed."""
    from ..config.preset import load_preset

    preset = load_preset(arguments.preset)
    load_plugins_with_warnings()

    from ...models import get_ode_backend, use_ode_backend
    from .run import run_preset

    with use_ode_backend("torchdiffeq" if arguments.flow == "eager" else get_ode_backend()):
        return run_preset(arguments, preset, show_report)


HANDLERS: dict[str, Callable[[Namespace], int]] = {
    "run": run_command,
    "list": model_commands.list_command,
    "new-model": model_commands.new_file_command,
    "new-threat": model_commands.new_file_command,
    "new-dataset": model_commands.new_file_command,
    "new-preset": model_commands.new_file_command,
    "check": model_commands.check_command,
    "report": results_commands.report_command,
    "verify": results_commands.verify_command,
    "submit-attack": results_commands.submit_attack_command,
    "transfer": results_commands.transfer_command,
    "audit": results_commands.audit_command,
    "upgrade": results_commands.upgrade_command,
    "merge": results_commands.merge_command,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 something failed, 2 wrong arguments."""
    replace_unknown_characters()
    arguments = command_line().parse_args(argv)
    # Read when torch is loaded: idle OpenMP threads soon sleep instead of spinning, which on a machine that
    # does anything else besides is up to 20 times faster.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    # Read when numba is loaded: else its error messages start colorama, which at exit writes an escape
    # sequence to every terminal, with TERM=dumb and NO_COLOR too.
    os.environ.setdefault("NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING", "1")
    # Read when matplotlib is loaded: a notebook hands on a backend that may not be installed here, and
    # figures are only written to files.
    os.environ["MPLBACKEND"] = "agg"
    try:
        with telling(lambda source, names: show_warning(sentence(source, names))), each_line_once():
            if getattr(arguments, "load", None) and arguments.command != "run":  # a run does it by its plan
                from ..plugins.model_file import load_registrations

                load_registrations(arguments.load)
            return HANDLERS[arguments.command](arguments)
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
            "\nrobustode: stopped; finished cells are stored, and the same command continues from there",
            file=sys.stderr,
        )
        return 130
