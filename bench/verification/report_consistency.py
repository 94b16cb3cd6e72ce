"""What can be verified of a results folder without a model: that it is whole, and that its tables follow.

No torch.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from ..._errors import RecordError
from ..records.examples_archive import SUFFIX, names
from ..records.headline import Headline
from ..records.record import Record
from ..records.record_file import Damage
from ..records.store import Store
from ..report.report import PAGE, texts

_LINKED = re.compile(r'href="(figures/[\w.-]+)"')
_PICTURES = re.compile(r'<svg\b.*?</svg>|data:image/[^"]*', re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A disagreement, or a note: something that could not be checked, which proves nothing wrong.

    Attributes
    ----------
    file
        Relative to the results folder.
    what
        One line.
    """

    file: str
    what: str
    note: bool = False

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def check_listed(store: Store, records: Sequence[Record], damages: Sequence[Damage]) -> Iterator[Finding]:
    """Every record can be read, and none that ``plan.json`` lists is missing."""
    lost = Counter(damage.path.parent.name for damage in damages)
    for damage in damages:
        line = f" line {damage.line}" if damage.line else ""
        yield Finding(file=f"{damage.path.relative_to(store.folder).as_posix()}{line}", what=damage.reason)
    try:
        listed = Headline.read(store.folder).cells
    except RecordError as error:
        yield Finding(file="plan.json", what=str(error))
        return
    stored = {record.cell.key() for record in records}
    for unit, keys in listed.items():
        _, model, seed = unit.split("/") if unit.count("/") == 2 else ("", "*", "*")
        missing = [key for key in keys if key not in stored]
        for key in missing if len(missing) > lost[model] else ():
            file = f"records/{model}/seed{seed}.jsonl#{key[:12]}"
            yield Finding(file=file, what=f"missing: plan.json lists it for {unit}")


def check_orphans(store: Store, records: Sequence[Record]) -> Iterator[Finding]:
    """Note adversarial examples that no record counts."""
    counted = {store.examples_name(r.cell) for r in records if "adversarial" in r.card}
    for path in sorted(store.adversarial.glob(f"*/*{SUFFIX}")):
        file = path.relative_to(store.folder).as_posix()
        for name in sorted(names(path)):
            if f"{file}#{name}" not in counted:
                what = "no record that can be read counts these examples"
                yield Finding(file=f"{file}#{name}", what=what, note=True)


def check_tables(store: Store) -> Iterator[Finding]:
    """Each table of the report, and the page, is the one that the records make now.

    What pictures show is left out: another machine draws the same lines with other last digits. A page or
    figures that are absent are noted and nothing more, since `robustode report` makes them from the records.
    """
    made = texts(store.folder)
    if not (store.report / "cards").is_dir():
        made = {name: text for name, text in made.items() if not name.startswith("cards/")}
        what = "no model cards, the report is older than they are: run `robustode report` to write them"
        yield Finding(file="report/cards", what=what, note=True)
    for name, text in made.items():
        file = f"report/{name}"
        try:
            stored = (store.report / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            what = "missing: run `robustode report` to write it"
            yield Finding(file=file, what=what, note=name.endswith(".html"))
            continue
        except (OSError, UnicodeDecodeError):
            yield Finding(file=file, what="unreadable: run `robustode report` to write it")
            continue
        if name == PAGE:
            yield from _absent_figures(store, list(dict.fromkeys(_LINKED.findall(stored))))
            stored, text = without_pictures(stored), without_pictures(text)
        if stored != text:
            differ = _first_row if name.endswith(".csv") else _first_line
            yield Finding(file=file, what=differ(stored, text))


def _absent_figures(store: Store, shown: Sequence[str]) -> Iterator[Finding]:
    absent = [name for name in shown if not (store.report / name).is_file()]
    if absent:
        what = (
            f"{len(absent)} of the page's {len(shown)} are missing ({absent[0]}, ...): run `robustode report`"
        )
        yield Finding(file="report/figures", what=what, note=True)


def without_pictures(page: str) -> str:
    """The page without what is drawn: inline SVG, and images embedded as data."""
    return _PICTURES.sub("", page)


def _first_row(stored: str, made: str) -> str:
    """Name the first row and column in which two CSV texts differ."""
    old, new = (list(csv.reader(io.StringIO(text))) for text in (stored, made))
    if not old or old[0] != new[0]:
        return "its columns are not those that the records make"
    for number, (ours, theirs) in enumerate(zip_longest(old[1:], new[1:]), start=1):
        if ours is None or theirs is None:
            return f"it has {len(old) - 1} rows, the records make {len(new) - 1}"
        for column, a, b in zip_longest(new[0], ours, theirs, fillvalue=""):
            if a != b:
                names = ("dataset", "model", "threat", "norm", "strength", "statistic")
                row = dict(zip(new[0], theirs, strict=True))
                where = " ".join(row[name] for name in names if row.get(name))
                return f"row {number} ({where}), column {column}: it says {a!r}, the records give {b!r}"
    return "it differs from what the records make in its line ends or quotes"


def _first_line(stored: str, made: str) -> str:
    for number, (a, b) in enumerate(zip_longest(stored.splitlines(), made.splitlines()), start=1):
        if a != b:
            return f"line {number} is not what the records make: {_excerpt(a, b)}"
    return "it differs from what the records make in its line ends"


def _excerpt(a: str | None, b: str | None) -> str:
    """The first word in which two lines differ, as each has it."""
    if a is None or b is None:
        return "a line too few" if a is None else "a line too many"
    pairs = zip_longest(a.split(), b.split(), fillvalue="")
    x, y = next(((x, y) for x, y in pairs if x != y), ("other spaces", ""))
    return f"it says {x!r}, the records give {y!r}"
