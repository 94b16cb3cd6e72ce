"""What several commands do: load plug-ins, write the report and show it. Loads no torch by itself."""

from __future__ import annotations

import sys
from pathlib import Path

from .arguments import AUDIT_COST

_UNLIMITED = 10_000  # characters of a line in a pipe or a file


def load_plugins_with_warnings() -> None:
    """Load the models of installed packages; one that cannot be loaded is a warning on stderr."""
    from ..plugins.entry_points import load_plugins

    load_plugins(show_warning)


def show_warning(line: str) -> None:
    """Print a warning on stderr."""
    print(f"robustode: warning: {line}", file=sys.stderr)


def show_report(out: Path) -> int:
    """Write the report and print the leaderboard and the page's path."""
    from rich.console import Console

    from ..records.headline import stated_headline
    from ..report.leaderboard.terminal_table import terminal_table
    from ..report.report import write_report

    report = write_report(out)
    console = Console()
    if console.is_terminal:
        console.print(terminal_table(report.leaderboard, console.width))
    else:
        Console(width=_UNLIMITED).print(terminal_table(report.leaderboard, None))
    for problem in report.problems:
        print(f"not used: {problem}", file=sys.stderr)
    board = report.leaderboard
    complete = board[board["status"] == "ok"]
    if unaudited := int((complete["audit_missing"] != "").sum()):
        print(
            f"not fully audited: {unaudited} of {len(board)} rows; `robustode audit --out {out}` runs what "
            f"is missing ({AUDIT_COST})"
        )
    if report.moved:
        print(
            f"moved to {out / 'set-aside' / 'report'}, no list says who wrote them: {len(report.moved)} files"
        )
    stated = stated_headline(out)
    for name, file in sorted(stated.files.items()) if stated else ():
        if name in set(board["model"]) and (change := file.problem(out)):
            print(f"note: {name}: {change}; what is shown is as it was when it was run", file=sys.stderr)
    if report.superseded:
        print(f"{report.superseded} records of older versions or checkpoints are not shown")
    print(f"page: {report.page.resolve()}")
    return 0
