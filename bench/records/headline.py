"""What the leaderboard shows: the plan snapshot ``<out>/plan.json`` that a run writes. No torch."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..._errors import RecordError
from .atomic import write_atomically
from .latest import current
from .model_files import ModelFile, read_model_files
from .record import Record

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The strengths that the leaderboard reports, and the one it ranks by.

    Attributes
    ----------
    preset, title
        The preset's name, and what the page is called.
    reported
        Strength by key, in pixel units; a key is a noise threat's name (``gaussian``) or the norm of
        an attack (``linf``, the worst case over every attack of that norm).
    rank
        The key of `reported` that models are ranked by.
    audits
        The audits that a row must have been asked to count as audited; None for every audit of a model.
    cells
        Keys of the cells that the last run of each model asked for, by ``dataset/model/seed``: these
        records count, whatever else the folder holds.
    files
        Where the models that come from files lie, by the models' names.
    """

    preset: str = ""
    title: str = "robustode leaderboard"
    reported: Mapping[str, float] = field(default_factory=dict)
    rank: str = ""
    audits: Sequence[str] | None = None
    cells: Mapping[str, Sequence[str]] = field(default_factory=dict)
    files: Mapping[str, ModelFile] = field(default_factory=dict)

    @property
    def preferred(self) -> frozenset[str]:
        """All keys in `cells`."""
        return frozenset(key for keys in self.cells.values() for key in keys)

    def shown_strength(self, threat: str, norm: str | None, strengths: Iterable[float]) -> float:
        """The one of `strengths` at which figures show examples of `threat`.

        It is the one nearest to the reported strength, or the smallest where none is.
        """
        wanted = self.reported.get(norm or threat)
        return min(strengths, key=lambda s: (0.0 if wanted is None else abs(s - wanted), s))

    @classmethod
    def read(cls, folder: Path) -> Headline:
        """Read ``<folder>/plan.json``.

        Raises
        ------
        RecordError
            When the file is absent, damaged, or of a schema this version does not know.
        """
        try:
            body = json.loads((Path(folder) / "plan.json").read_text(encoding="utf-8"))
            if body["schema_version"] != SCHEMA_VERSION:
                raise RecordError(f"schema version {body['schema_version']!r} is not known")
            reported = {str(name): float(strength) for name, strength in body["reported"].items()}
            rank = str(body["rank"])
            if rank not in reported and reported:
                raise RecordError(f"it ranks by {rank!r}, which it does not report")
            audits = body.get("audits")
            cells = {str(where): [str(key) for key in keys] for where, keys in body.get("cells", {}).items()}
            return cls(
                preset=str(body["preset"]),
                title=str(body["title"]),
                reported=reported,
                rank=rank,
                audits=None if audits is None else [str(name) for name in audits],
                cells=cells,
                files=read_model_files(body.get("files")),
            )
        except RecordError:
            raise
        except Exception as error:
            raise RecordError(f"not a plan: {type(error).__name__}: {error}") from None

    @classmethod
    def guess(cls, records: Iterable[Record]) -> Headline:
        """Choose the middle strength of each grid; rank by ``linf`` if it is there, else the first key."""
        grids: dict[str, set[float]] = defaultdict(set)
        for record in records:
            cell = record.cell
            if cell.kind == "accuracy" and cell.family != "clean":
                grids[cell.norm or cell.threat].add(cell.strength)
        reported = {name: sorted(grid)[(len(grid) - 1) // 2] for name, grid in sorted(grids.items())}
        return cls(reported=reported, rank="linf" if "linf" in reported else next(iter(reported), ""))

    def write(self, folder: Path) -> None:
        """Write ``<folder>/plan.json``, whole or not at all."""
        body: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "preset": self.preset,
            "title": self.title,
            "reported": dict(self.reported),
            "rank": self.rank,
            **({} if self.audits is None else {"audits": list(self.audits)}),
            "cells": {where: list(keys) for where, keys in sorted(self.cells.items())},
            **(
                {"files": {name: vars(file) for name, file in sorted(self.files.items())}}
                if self.files
                else {}
            ),
        }
        text = json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(Path(folder) / "plan.json", text.encode())


def stated_headline(folder: Path) -> Headline | None:
    """The headline that a results folder states; None where it states none that can be read."""
    with suppress(RecordError):
        return Headline.read(folder)
    return None


def headline_of(folder: Path, records: Iterable[Record]) -> Headline:
    """The headline that a results folder states, else one guessed from those of its `records` that count."""
    return stated_headline(folder) or Headline.guess(current(records)[0])


def preferred_keys(folder: Path) -> frozenset[str]:
    """Keys of the cells that the last runs in a results folder asked for; none where it does not say."""
    stated = stated_headline(folder)
    return stated.preferred if stated else frozenset()
