"""The files of a report, written so that nobody else's is lost: ``report/manifest.json`` has their hashes.

No torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..._errors import InvalidArgument
from .atomic import move_file, write_atomically

MANIFEST = "manifest.json"
"""The list of the files that robustode wrote into ``report/``."""
SCHEMA_VERSION = 1

Hashes = Mapping[str, tuple[str, ...]]
"""By name of a file, relative to ``report/``, the SHA-256 of what robustode wrote: the last report, and one
that was stopped half way."""

_NAME = re.compile(r"(figures/|cards/)?[^./\\][^/\\]*")
_EARLIER = b"rank,dataset,model,recipe,"


def read_manifest(report: Path) -> Hashes | None:
    """What robustode wrote into the folder `report`; None where there is no list that it made."""
    try:
        body = json.loads((report / MANIFEST).read_text(encoding="utf-8"))
        if body["made_by"] != "robustode" or body["schema_version"] != SCHEMA_VERSION:
            return None
        files = {str(name): tuple(map(str, hashes)) for name, hashes in body["files"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return {name: hashes for name, hashes in files.items() if _NAME.fullmatch(name)}


def foreign_report_files(report: Path) -> list[str]:
    """Names of files in a folder `report` that is none of robustode's reports; hidden files do not count."""
    if read_manifest(report) is not None or _of_earlier_version(report):
        return []
    found = (path.relative_to(report) for path in sorted(report.rglob("*")) if not path.is_dir())
    return [path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts)]


def changed_report_files(report: Path, new: Hashes | None = None) -> list[str]:
    """Names of the listed files, and of those of `new`, that hold something else than robustode wrote."""
    listed, new = read_manifest(report), new or {}
    if listed is None:
        return []
    return [
        name
        for name in sorted({*listed, *new})
        if os.path.lexists(report / name)
        and _hash_of(report / name) not in (*listed.get(name, ()), *new.get(name, ()))
    ]


def refuse_changed(report: Path, new: Hashes | None = None) -> None:
    """Refuse a report that would overwrite what somebody changed or put there; nothing is written then."""
    if changed := changed_report_files(report, new):
        raise InvalidArgument(
            f"{listed_names(changed)} in {report} {'is' if len(changed) == 1 else 'are'} not as robustode "
            "wrote: move or delete what you changed, then run `robustode report`"
        )


def write_report_files(report: Path, files: Mapping[str, bytes], aside: Path) -> list[Path]:
    """Write `files` into `report` and remove what an earlier report wrote and this one does not.

    Parameters
    ----------
    files
        Content by name, relative to `report`.
    aside
        Where files go that are in the way of a report by a version that made no list: their content may be
        anybody's.

    Returns
    -------
    list of Path
        Where such files are now.

    Raises
    ------
    InvalidArgument
        When a file to be written or removed is not as robustode wrote it; nothing is written then.
    """
    new = {name: (_hash(data),) for name, data in files.items()}
    refuse_changed(report, new)
    old, moved = read_manifest(report), list[Path]()
    if old is None:
        for name in sorted({MANIFEST, *files}):
            if os.path.lexists(report / name) and _hash_of(report / name) not in new.get(name, ()):
                moved.append(move_file(report / name, aside / name))
    old = old or {}
    both = {name: tuple(dict.fromkeys([*old.get(name, ()), *new.get(name, ())])) for name in {*old, *new}}
    _write_manifest(report, both)  # so that a report that is stopped half way can be made again
    for name, data in files.items():
        write_atomically(report / name, data)
    for name in old.keys() - new.keys():
        (report / name).unlink(missing_ok=True)
    _write_manifest(report, new)
    return moved


def listed_names(names: Iterable[str], most: int = 3) -> str:
    """``a, b and 4 more``."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _of_earlier_version(report: Path) -> bool:
    """Whether a version that made no list wrote the report."""
    try:
        with open(report / "leaderboard.csv", "rb") as file:
            return file.read(len(_EARLIER)) == _EARLIER
    except OSError:
        return False


def _write_manifest(report: Path, hashes: Hashes) -> None:
    body = {
        "made_by": "robustode",
        "schema_version": SCHEMA_VERSION,
        "files": {name: list(hashes[name]) for name in sorted(hashes)},
    }
    write_atomically(report / MANIFEST, (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode())


def _hash_of(path: Path) -> str | None:
    try:
        return _hash(path.read_bytes())
    except OSError:
        return None


def _hash(data: bytes) -> str:
    """SHA-256 of a file, whichever line ends git gave it."""
    return hashlib.sha256(data.replace(b"\r\n", b"\n")).hexdigest()
