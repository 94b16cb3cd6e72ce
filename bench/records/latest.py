"""Which records count: one variant, one checkpoint and one answer of each kind, never mixed. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import Any

from ..._registry import unknown_name
from .record import SUBMISSION, Cell, Record

Entry = tuple[str, str, str]


def entry(cell: Cell) -> Entry:
    """Name the row of the leaderboard a cell belongs to: (dataset, model, recipe name)."""
    return cell.dataset, cell.model, str(cell.recipe.get("name", ""))


def training_card(records: Iterable[Record]) -> Mapping[str, Any]:
    """What a row's model says of itself: the card of its first training that succeeded; else empty."""
    trainings = [r for r in records if r.cell.kind == "training" and r.status == "ok"]
    first = min(trainings, key=lambda r: r.cell.training_seed, default=None)
    return {} if first is None else first.card


def current(records: Iterable[Record], preferred: Collection[str] = ()) -> tuple[list[Record], int]:
    """Keep the newest variant, checkpoint and answer of each kind; never mix them with older ones.

    For each (dataset, model, recipe name) only the newest variant counts, for each of its training
    seeds only the newest checkpoint, and for each question (a threat at a strength, a batch size on
    a device) only the newest record, by ``environment["created"]``. A record whose key is `preferred`,
    because the last run asked for it, counts as newer than one whose key is not.

    Returns
    -------
    used, superseded
        The records that count, in the order given, and how many do not.
    """
    all_records = list(records)
    ages = {id(record): _age(record, preferred) for record in all_records}
    used = _newest(all_records, ages, lambda c: entry(c), lambda c: c.variant())
    used = _newest(
        used,
        ages,
        lambda c: None if c.kind == "training" else (entry(c), c.training_seed),
        lambda c: c.checkpoint_sha256 or "",
    )
    # Pointwise worst cases need one list of test samples, so one index per row.
    used = _newest(used, ages, lambda c: entry(c) if c.kind == "accuracy" else None, lambda c: c.index_sha256)
    used = _newest(used, ages, _question, lambda c: c.key())
    return used, len(all_records) - len(used)


def newest_training(
    records: Iterable[Record], preferred: Collection[str], recipe: str | None = None
) -> Record | None:
    """The training that the last run asked for, else the one made last; of `recipe` alone, if one is named.

    Raises
    ------
    UnknownName
        When there are trainings and none has that recipe.
    """
    trainings = [record for record in records if record.cell.kind == "training" and record.status == "ok"]
    known = sorted({entry(record.cell)[2] for record in trainings})
    if trainings and recipe is not None and recipe not in known:
        raise unknown_name("recipe", recipe, known)
    asked = [record for record in trainings if recipe in (None, entry(record.cell)[2])]
    return max(asked, key=lambda record: _age(record, preferred), default=None)


def _age(record: Record, preferred: Collection[str]) -> tuple[bool, str]:
    return record.cell.key() in preferred, str(record.environment.get("created", ""))


def _question(cell: Cell) -> Hashable:
    timing = (cell.batch_size, cell.device) if cell.kind == "throughput" else ()
    what = (cell.kind, cell.protocol, cell.threat, cell.norm, cell.strength)
    # Its threat's name holds a few digits of the file's hash: enough to read, not to tell files apart.
    sent = submission(cell) if cell.family == SUBMISSION else ()
    return entry(cell), cell.training_seed, what, timing, sent


def submission(cell: Cell) -> tuple[str, str]:
    """Which submission a cell is of: the hash of the whole file, and who sent it."""
    return str(cell.parameters.get("file_sha256")), str(cell.parameters.get("origin"))


def _newest(
    records: list[Record],
    ages: Mapping[int, tuple[bool, str]],
    group: Callable[[Cell], Hashable],
    choice: Callable[[Cell], str],
) -> list[Record]:
    """Keep, in each group, the records of the newest choice; the group None is left alone."""
    members: dict[Hashable, list[Record]] = defaultdict(list)
    for record in records:
        members[group(record.cell)].append(record)
    old: set[int] = set()
    for where, rivals in members.items():
        if where is None or len(rivals) == 1:
            continue
        chosen = [choice(record.cell) for record in rivals]
        newest = max((ages[id(record)], name) for record, name in zip(rivals, chosen, strict=True))[1]
        old |= {id(record) for record, name in zip(rivals, chosen, strict=True) if name != newest}
    return [record for record in records if id(record) not in old]
