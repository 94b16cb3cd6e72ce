"""A results folder holds what robustode wrote; a folder in which other files are in the way is refused.

No torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ..._errors import InvalidArgument, RecordError
from .headline import stated_headline
from .lines import read_line
from .report_files import foreign_report_files, listed_names, read_manifest, refuse_changed

LOCK = ".lock"
FOLDERS = ("records", "adversarial", "checkpoints", "report", "benchmarks", "set-aside")
"""What robustode makes in a results folder, next to single files."""

_SCHEMA_1 = re.compile(r".+-seed\d+-[0-9a-f]{12}\.json")


def refuse_foreign_files(folder: Path) -> None:
    """Refuse `folder` where a file that robustode did not write, or that was changed since, is in the way.

    Raises
    ------
    InvalidArgument
        Names the files; nothing was written.
    """
    report = folder / "report"
    found = [name for name in FOLDERS if (folder / name).exists() and not (folder / name).is_dir()]
    found += [name for name in (LOCK,) if (folder / name).is_dir() or _size(folder / name)]
    if not found and not is_results_folder(folder):
        found += _in_the_way(folder)
    if not found:
        found += [f"report/{name}" for name in foreign_report_files(report)]
    if found:
        raise InvalidArgument(
            f"{folder} holds what robustode did not write and will not touch ({listed_names(found)}): "
            "choose another folder with --out, or move it"
        )
    refuse_changed(report)


def is_results_folder(folder: Path) -> bool:
    """Whether robustode wrote to `folder` before: its plan, a record or its list of report files is there."""
    if stated_headline(folder) is not None or read_manifest(folder / "report") is not None:
        return True
    return any(map(_has_record, folder.glob("records/*/seed*.jsonl"))) or holds_schema_1(folder)


def holds_schema_1(folder: Path) -> bool:
    """Whether records of robustode 0.1, damaged or not, are in `folder`: a file each, its key in the name."""
    return any(_SCHEMA_1.fullmatch(path.name) for path in folder.glob("records/*/*.json"))


def _in_the_way(folder: Path) -> Iterator[str]:
    """Files with names that robustode writes, in a folder that it has not written to."""
    patterns = ("plan.json", "batch_sizes.json", "records/*/seed*.jsonl", "adversarial/*/seed*.zip")
    for pattern in patterns:
        yield from (path.relative_to(folder).as_posix() for path in sorted(folder.glob(pattern)))


def _has_record(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return any(map(_is_line, file))
    except OSError:
        return False


def _is_line(line: bytes) -> bool:
    try:
        read_line(line.rstrip(b"\n"))
    except RecordError:
        return False
    except InvalidArgument:  # of a newer schema
        return True
    return True


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
