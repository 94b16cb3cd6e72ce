"""Which audits there are, found by listing their folders. No torch until `all_audits` is called."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import import_module
from pathlib import Path

from ..._errors import InvalidArgument
from ..._registry import unknown_name
from .registry import AUDITS, Audit, Needs

FOLDERS: dict[Needs, str] = {"model": "model_audits", "records": "record_audits"}
"""Where the audits lie, by what they need."""


@cache
def names_of(needs: Needs) -> tuple[str, ...]:
    """The names of the audits of one folder, sorted; none of them is imported."""
    files = (Path(__file__).parent / FOLDERS[needs]).glob("*.py")
    return tuple(sorted(file.stem.replace("_", "-") for file in files if not file.stem.startswith("_")))


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """`names`, of audits of a model; raise `UnknownName` for any other."""
    known = names_of("model")
    for name in names:
        if name not in known:
            raise unknown_name("check of a model", name, list(known))
    return tuple(names)


def records_audits() -> list[Audit]:
    """The audits that read records alone, by name; no torch is loaded."""
    return _load("records")


def all_audits() -> list[Audit]:
    """Every audit: those of the model before those of records, those that take seconds first."""
    return sorted(
        [*_load("model"), *_load("records")], key=lambda a: (a.needs != "model", not a.fast, a.name)
    )


def audit_names() -> list[str]:
    """The names of `all_audits`."""
    return [audit.name for audit in all_audits()]


def _load(needs: Needs) -> list[Audit]:
    """Import the files of one folder, each of which registers the audit that it is called as."""
    found = []
    for name in names_of(needs):
        module = f"{FOLDERS[needs]}.{name.replace('-', '_')}"
        import_module(f".{module}", __package__)
        if name not in AUDITS or AUDITS.get(name).needs != needs:
            raise InvalidArgument(f"{__package__}.{module} must register the audit {name!r}, needs={needs!r}")
        found.append(AUDITS.get(name))
    return found
