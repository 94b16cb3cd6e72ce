"""The gate of a pull request: `verify` on the results that a branch changes, and on these alone.

``python -m robustode.bench.verification.ci_gate --against origin/main`` exits with 0 when all of them agree
with themselves, 1 when something disagrees or a changed model could not be run, 2 when nothing could be
compared.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ..._errors import InvalidArgument, RobustodeError
from ..runtime.printed import replace_unknown_characters

OF_MODELS = ("records", "checkpoints", "adversarial")
"""Folders inside a results folder that have one folder per model."""


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        raise InvalidArgument(f"git cannot be run: {error}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"git {arguments[0]} failed"]
        raise InvalidArgument(f"git {arguments[0]}: {lines[0]}")
    return done.stdout


def changed_files(root: Path, against: str, under: str = "results") -> list[str]:
    """Files below `under` that differ from where HEAD left `against`, commits and working tree alike.

    Parameters
    ----------
    root
        Top of a git checkout.
    against
        A commit; what happened there since the branch began does not count.

    Returns
    -------
    paths
        Relative to `root`, sorted; files that were deleted are among them.

    Raises
    ------
    InvalidArgument
        When `root` is no checkout, or the two have no common ancestor.
    """
    base = _git(root, "merge-base", "--", against, "HEAD").strip()
    found = _git(root, "diff", "--name-only", "--no-renames", "-z", base, "--", under)
    new = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", under)
    return sorted({path for path in (found + new).split("\0") if path})


def changed_entries(root: Path, paths: Sequence[str]) -> dict[Path, set[str]]:
    """The results folders that `paths` lie in, and the models whose own files are among them.

    A folder that holds no records, or is gone, is left out.
    """
    found: dict[Path, set[str]] = {}
    for path in paths:
        parts = Path(path).parts
        folder = root.joinpath(*parts[:2])
        if len(parts) < 3 or not (folder / "records").is_dir():
            continue
        models = found.setdefault(folder, set())
        if len(parts) > 4 and parts[2] in OF_MODELS:
            models.add(parts[3])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Verify what has changed; the exit status."""
    replace_unknown_characters()
    parser = argparse.ArgumentParser(
        prog="python -m robustode.bench.verification.ci_gate", description=__doc__
    )
    parser.add_argument(
        "--against",
        default="origin/main",
        metavar="REF",
        help="where the branch began (default: origin/main)",
    )
    parser.add_argument(
        "--data-root", type=Path, metavar="DIR", help="where datasets lie (default: $ROBUSTODE_DATA)"
    )
    arguments = parser.parse_args(argv)
    try:
        return _gate(arguments.against, arguments.data_root)
    except (RobustodeError, OSError) as error:
        print(f"gate: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _gate(against: str, data_root: Path | None) -> int:
    from .verify import verify

    root = Path(_git(Path.cwd(), "rev-parse", "--show-toplevel").strip())
    entries = changed_entries(root, changed_files(root, against))
    if not entries:
        print(f"no results differ from {against}")
    failed = 0
    for folder, models in entries.items():
        name = folder.relative_to(root).as_posix()
        print(f"{name}: changed models: {', '.join(sorted(models)) or 'none'}", flush=True)
        left = {name for name in models if any((folder / "records" / name).glob("*.jsonl"))}
        done = verify(folder, data_root, only=left, search=False)
        lines = [str(finding) for finding in done.disagreements]
        lines += [f"{unit} was not run again: its file belongs into models/" for unit in done.unrun]
        for note in done.notes:
            print(f"note: {name}/{note}")
        for line in lines:
            print(f"disagrees: {name}/{line}", file=sys.stderr)
        print(f"{name}: models run {done.models}, adversarial examples {done.predicted}, wrong {len(lines)}")
        failed += bool(lines)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
