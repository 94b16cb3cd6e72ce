"""Results folders that were made apart, such as on several machines, become one. No torch."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..._errors import InvalidArgument, RecordError
from .headline import Headline
from .latest import current, entry
from .model_files import ModelFile, label_from
from .record import Record
from .record_file import SUFFIX
from .store import Store


@dataclass(kw_only=True)
class Merged:
    """What a merged folder holds, and what was left out, a line each."""

    records: int = 0
    models: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Source:
    store: Store
    headline: Headline
    records: list[Record]

    @property
    def folder(self) -> Path:
        return self.store.folder


def merge(folders: Sequence[Path], out: Path) -> Merged:
    """Put the records, weights, adversarial examples and plans of `folders` into the new folder `out`.

    The folders stay as they are. Of two records of the same cell the one made last counts.

    Raises
    ------
    InvalidArgument
        When `out` holds something, a folder holds no records, or two folders do not fit together: other
        presets, other data, or one name for different models or weights. Nothing is written then.
    """
    out, done = Path(out), Merged()
    if len({Path(folder).resolve() for folder in folders}) < 2:
        raise InvalidArgument("merge takes two or more different results folders")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidArgument(f"{out} is there already: choose a new folder with --out")
    sources = [_read(Path(folder), done) for folder in folders]
    for number, source in enumerate(sources):
        for other in sources[:number]:
            _check_fit(other, source)
    with _made_whole(out) as new:
        target = Store(new)
        for number, source in enumerate(sources):
            _copy_files(source, new)
            for path in sorted(source.store.records.glob(f"*/*{SUFFIX}")):
                name = path.relative_to(source.folder)
                first = not any((other.folder / name).exists() for other in sources[:number])
                if first:
                    _copy(path, new / name)
                    examples = source.store.adversarial / path.parent.name / f"{path.stem}.zip"
                    if examples.exists():
                        _copy(examples, new / examples.relative_to(source.folder))
                else:
                    _add(source, name, target)
        _headline(sources, out).write(new)
        records, _ = Store(new).load()
    done.records, done.models = len(records), len({record.cell.model for record in records})
    return done


def _read(folder: Path, done: Merged) -> _Source:
    store = Store(folder)
    store.require_records()
    try:
        headline = Headline.read(folder)
    except RecordError as error:
        raise InvalidArgument(f"{folder}/plan.json: {error}") from None
    records, damages = store.load()
    done.notes += [f"cannot be used: {damage}" for damage in damages]
    return _Source(store=store, headline=headline, records=records)


def _check_fit(one: _Source, two: _Source) -> None:
    """Refuse folders whose rows cannot stand on one leaderboard, or of which one would hide the other's."""
    where = f"{one.folder} and {two.folder}"
    for what in ("preset", "rank", "reported", "audits"):
        if (a := getattr(one.headline, what)) != (b := getattr(two.headline, what)):
            raise InvalidArgument(f"{where} do not fit together: their plans differ in {what} ({a}, {b})")
    samples = [{r.cell.dataset: r.cell.index_sha256 for r in source.records} for source in (one, two)]
    for dataset in sorted(samples[0].keys() & samples[1].keys()):
        if samples[0][dataset] != samples[1][dataset]:
            raise InvalidArgument(f"{where} speak of different samples of {dataset}")
    used = [current(source.records, source.headline.preferred)[0] for source in (one, two)]
    rows = [{entry(r.cell): r.cell.variant() for r in records} for records in used]
    for row in sorted(rows[0].keys() & rows[1].keys()):
        if rows[0][row] != rows[1][row]:
            raise InvalidArgument(
                f"{where} hold different models, versions or recipes by the name {row[1]!r}: run one of them "
                "under another name, or with the other's code"
            )
    weights = [{r.cell.key(): r for r in records if r.cell.kind == "training"} for records in used]
    for key in weights[0].keys() & weights[1].keys():
        a, b = weights[0][key], weights[1][key]
        hashes = [record.card.get("checkpoint_sha256") for record in (a, b)]
        if a.status == b.status == "ok" and hashes[0] != hashes[1]:
            raise InvalidArgument(
                f"{where} both hold {a.cell.label()}, with different weights: leave it out of one of them"
            )


def _copy_files(source: _Source, new: Path) -> None:
    """Copy weights and benchmarks; the same weights are there already where two folders hold them."""
    for folder in ("checkpoints", "benchmarks"):
        for path in sorted((source.folder / folder).rglob("*")):
            target = new / path.relative_to(source.folder)
            if path.is_file() and not path.name.startswith(".") and not target.exists():
                _copy(path, target)


def _add(source: _Source, name: Path, target: Store) -> None:
    """Add the records of one model and training seed to those that another folder holds of it."""
    for record in source.records:
        cell = record.cell
        if source.store.path(cell) != source.folder / name:
            continue
        stored = target.get(cell)
        if stored is not None and _rank(stored) >= _rank(record):
            continue
        if "adversarial" in record.card:
            with suppress(OSError, RecordError):  # `verify` says that they are gone or damaged
                target.put_examples(cell, source.store.get_examples(cell))
        target.put(record)


def _rank(record: Record) -> tuple[bool, str]:
    """What succeeded counts before what failed, and what was made later before what was made earlier."""
    return record.status == "ok", str(record.environment.get("created", ""))


def _headline(sources: Sequence[_Source], out: Path) -> Headline:
    cells: dict[str, list[str]] = {}
    files: dict[str, ModelFile] = {}
    for source in sources:
        for where, keys in source.headline.cells.items():
            known = cells.setdefault(where, [])
            known += [key for key in keys if key not in known]
        for name, file in source.headline.files.items():
            place = label_from(file.path(source.folder), out.resolve())
            files[name] = replace(file, place=f"{place}:{file.place.rpartition(':')[2]}")
    return replace(sources[0].headline, cells=cells, files=files)


@contextmanager
def _made_whole(out: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `out` when the block is done, and is removed otherwise."""
    out.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        new.chmod(0o755)
        yield new
        if out.exists():
            out.rmdir()
        new.rename(out)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
