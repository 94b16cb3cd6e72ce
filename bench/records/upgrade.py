"""Makes a results folder of schema 1 one of schema 2, once. No torch.

The new files are made in ``<out>/upgrade/new`` and read back. Then a marker is written, the old folders move
to ``<out>/upgrade/old`` and the new ones take their places. Killed before the marker, the upgrade begins anew
from the untouched old files; killed after it, it goes on with the moves.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import lzma
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..._errors import InvalidArgument, RecordError
from . import schema_1
from .atomic import write_atomically
from .examples_archive import FORMER_SHA256, content_sha256
from .foreign_files import holds_schema_1
from .headline import Headline, stated_headline
from .lines import write_record
from .predictions import largest_norm, split_outcomes
from .record import Cell, Record
from .record_file import RecordFile
from .store import COMPLETE, UPGRADED, Store, locked
from .weights_file import SUFFIX, compress

TREES = ("adversarial", "checkpoints", "records")
"""Folders that are made anew; that of the records, by which a schema is told, is moved last."""
RENAMED_CHECKS = {"batch_independent": "batch-independence"}


@dataclass(kw_only=True)
class Upgrade:
    """What became of a folder.

    Attributes
    ----------
    records, examples, checkpoints
        How many were converted and read back.
    set_aside
        Files that could not be used, or that robustode did not write: copied to ``set-aside/``, a line each.
    """

    records: int = 0
    examples: int = 0
    checkpoints: int = 0
    set_aside: list[str] = field(default_factory=list)


def upgrade(folder: Path, say: Callable[[str], None] = lambda line: None) -> Upgrade:
    """Convert the results folder `folder`; one that is of schema 2 already stays as it is.

    Parameters
    ----------
    say
        Called with a line for each model.

    Raises
    ------
    InvalidArgument
        When it holds no records, or another process writes to it.
    RecordError
        When a new file does not give back what the old one held; nothing has been replaced then.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InvalidArgument(f"no records in {folder}: pass --out")
    if not (folder / "records").is_dir() and not (folder / UPGRADED / COMPLETE).exists():
        Store(folder).require_records()  # before the lock, which is a file
    with locked(folder):
        done = Upgrade()
        room = folder / UPGRADED
        if not (room / COMPLETE).exists():
            if not holds_schema_1(folder):
                Store(folder).require_records()
                return done
            if room.exists() and {path.name for path in room.iterdir()} - {"new", "old"}:
                raise InvalidArgument(f"{room} holds what robustode did not write: move it elsewhere")
            shutil.rmtree(room, ignore_errors=True)
            if next(folder.glob("records/*/*.jsonl"), None) is not None:
                raise InvalidArgument(
                    f"{folder} holds records of both schemas: move its .json or its .jsonl files elsewhere"
                )
            _convert(folder, room / "new", done, say)
            for tree in TREES:  # even where nothing of it could be read, so that the old files go
                if (folder / tree).exists():
                    (room / "new" / tree).mkdir(parents=True, exist_ok=True)
            write_atomically(room / COMPLETE, json.dumps(dataclasses.asdict(done)).encode())
        elif marker := (room / COMPLETE).read_bytes():
            done = Upgrade(**json.loads(marker))
        _swap(folder, room)
    return done


def _swap(folder: Path, room: Path) -> None:
    """Put the new folders in the places of the old ones; goes on where it was stopped."""
    for tree in TREES:
        new, old = room / "new" / tree, room / "old" / tree
        if new.exists():
            if (folder / tree).exists() and not old.exists():
                old.parent.mkdir(exist_ok=True)
                os.replace(folder / tree, old)
            os.replace(new, folder / tree)
    # The marker goes last of all but the empty folder, so that what is left is never taken for a new start.
    shutil.rmtree(room / "old", ignore_errors=True)
    shutil.rmtree(room / "new", ignore_errors=True)
    shutil.rmtree(room)


def _convert(folder: Path, new: Path, done: Upgrade, say: Callable[[str], None]) -> None:
    models = sorted(path for path in (folder / "records").iterdir() if path.is_dir())
    used: set[Path] = set()
    for number, path in enumerate(models, start=1):
        before = dataclasses.replace(done)
        used |= _convert_model(folder, path, Store(new), done)
        say(
            f"{path.name} ({number} of {len(models)}): {done.records - before.records} records, "
            f"{done.examples - before.examples} sets of adversarial examples, "
            f"{done.checkpoints - before.checkpoints} checkpoints, read back"
        )
    for tree in TREES:
        for path in sorted((folder / tree).rglob("*")):
            if path.is_file() and path not in used:
                target = folder / "set-aside" / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target)
                done.set_aside.append(path.relative_to(folder).as_posix())


def _convert_model(folder: Path, path: Path, store: Store, done: Upgrade) -> set[Path]:
    """Convert the files of one model and read them back; the old files that are not needed any more."""
    old: dict[Path, Record] = {}
    for file in sorted(path.glob("*.json")):
        try:
            record = schema_1.read_record(file.read_bytes())
        except RecordError:
            continue
        if (record.cell.model, schema_1.file_stem(record.cell)) == (path.name, file.stem):
            old[file] = record
    shown = _shown_strengths(folder, old.values())
    used, made = set(old), {}
    for record in sorted(old.values(), key=lambda r: str(r.environment.get("created", ""))):
        new = _upgraded(record, shown)
        if "adversarial" in record.card:
            source = folder / "adversarial" / path.name / f"{schema_1.file_stem(record.cell)}.npz"
            new, converted = _with_examples(store, new, source)
            done.examples += converted
            used |= {source} if converted else set()
        store.put(new)
        made[record.cell.key()] = new
        done.records += 1
        if record.cell.kind == "training" and record.status == "ok":
            source = folder / "checkpoints" / path.name / _weights_name(record.cell)
            if _convert_weights(record, source, store.checkpoint_path(record.cell)):
                used |= {source, source.with_suffix(".json")}
                done.checkpoints += 1
    for partial in (folder / "checkpoints" / path.name).glob(f"*.partial{SUFFIX}"):
        if partial.with_name(partial.name.replace(".partial", "")) not in used:
            write_atomically(store.checkpoints / path.name / partial.name, partial.read_bytes())
            used.add(partial)
    _read_back(old, made, store, path.name)
    return used


def _shown_strengths(folder: Path, records: Iterable[Record]) -> dict[str, float]:
    """By threat the strength at which figures show examples."""
    headline = stated_headline(folder) or Headline()
    found: dict[tuple[str, str | None], set[float]] = defaultdict(set)
    for record in records:
        if "image" in record.examples:
            found[record.cell.threat, record.cell.norm].add(record.cell.strength)
    return {threat: headline.shown_strength(threat, norm, grid) for (threat, norm), grid in found.items()}


def _upgraded(record: Record, shown: Mapping[str, float]) -> Record:
    """The record as this schema has it; its adversarial examples apart."""
    cell, outcomes, measures, card = (
        record.cell,
        dict(record.outcomes),
        dict(record.measures),
        dict(record.card),
    )
    if cell.kind == "accuracy" and record.status == "ok":
        measures |= largest_norm(outcomes["norm"]) if "norm" in outcomes else {}
        outcomes = split_outcomes(outcomes["prediction"], outcomes["correct"])
    if "expected_failures" in card:
        failures = dict(card["expected_failures"])
        for former, name in RENAMED_CHECKS.items():
            if former in failures:
                failures.setdefault(name, failures.pop(former))
        card["expected_failures"] = failures
    in_figures = cell.training_seed == 0 and cell.strength == shown.get(cell.threat)
    examples = record.examples if in_figures else {}
    return dataclasses.replace(record, outcomes=outcomes, measures=measures, card=card, examples=examples)


def _with_examples(store: Store, record: Record, source: Path) -> tuple[Record, bool]:
    """Store the examples of `source` and let the card of `record` vouch for them; whether that was possible.

    Where they do not match the card, it goes on vouching for others, and `verify` says so.
    """
    facts = {name: value for name, value in record.card["adversarial"].items() if name != "file"}
    converted = False
    try:
        data = source.read_bytes()
        examples = schema_1.read_examples(data)
    except (OSError, RecordError):
        pass
    else:
        converted = True
        new = store.put_examples(record.cell, examples)
        if content_sha256(store.get_examples(record.cell)) != content_sha256(examples):
            raise RecordError(f"{source} does not read back the same")
        if hashlib.sha256(data).hexdigest() == facts.get("sha256"):
            facts |= {"sha256": new["sha256"], FORMER_SHA256: facts["sha256"]}
    return dataclasses.replace(record, card={**record.card, "adversarial": facts}), converted


def _weights_name(cell: Cell) -> str:
    return f"{cell.dataset}-seed{cell.training_seed}-{cell.key()[:12]}{SUFFIX}"


def _convert_weights(training: Record, source: Path, target: Path) -> bool:
    """Compress the weights that `training` vouches for; False where they are not there or others."""
    try:
        plain = source.read_bytes()
    except OSError:
        return False
    if hashlib.sha256(plain).hexdigest() != training.card.get("checkpoint_sha256"):
        return False
    write_atomically(target, compress(plain))
    if lzma.decompress(target.read_bytes()) != plain:
        raise RecordError(f"{source} does not read back the same")
    return True


def _read_back(old: Mapping[Path, Record], made: Mapping[str, Record], store: Store, model: str) -> None:
    """Compare each record read from the new files with the old one: key, outcomes, and all that is kept."""
    found: dict[str, Record] = {}
    for path in (store.records / model).glob("*"):
        records, damages = RecordFile(path).load()
        if damages:
            raise RecordError(f"does not read back: {damages[0]}")
        found |= {record.cell.key(): record for record in records}
    for file, record in old.items():
        key = record.cell.key()
        new = found.get(key)
        correct = record.outcomes.get("correct")
        if (
            new is None
            or write_record(new) != write_record(made[key])
            or (correct is not None and not np.array_equal(correct, new.outcomes["correct"]))
        ):
            raise RecordError(f"{file} does not read back the same")
