"""Audit sheets: the results of all audits of a leaderboard row, and what withholds its rank. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..records.headline import Headline
from ..records.latest import Entry, entry
from ..records.record import Record
from .audit_record import SeedResult, result_of_audit, stored_result
from .library import names_of, records_audits
from .stored_records import StoredRecords

NOT_AUDITED = "not audited"


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """The results of all audits of one row of the leaderboard, over its training seeds.

    Attributes
    ----------
    results
        By audit, then seed; audits of the model first.
    done
        Model audits that were run at every training seed at which they were run for a row of the dataset.
    missing
        Model audits that were run for another row of the dataset, but not at each training seed of this one.
    shown
        Whether the leaderboard shows audits: a row of the dataset has a model audit, or an audit of records
        flags one.
    """

    results: Sequence[SeedResult]
    done: Sequence[str] = ()
    missing: Sequence[str] = ()
    shown: bool = True

    def names(self, *verdicts: str) -> list[str]:
        """The audits with one of these verdicts at some seed; an explained flag is ``exempt``."""
        found = [f.name for f in self.results if _verdict(f) in verdicts]
        return list(dict.fromkeys(found))

    @property
    def against(self) -> list[str]:
        """The audits that withhold a rank: flagged without an explanation, or failed to run."""
        return self.names("flag", "failed")

    @property
    def explained(self) -> list[str]:
        """The audits whose flags the model explains at every seed."""
        against = self.against
        return [name for name in self.names("exempt") if name not in against]

    @property
    def passed(self) -> list[str]:
        """The audits that every seed passes, apart from seeds to which they do not apply."""
        other = {*self.against, *self.explained}
        return [name for name in self.names("pass") if name not in other]

    def coverage(self) -> str:
        """``not audited`` or ``3 of 18 model checks`` where some are missing; else empty."""
        known = {*names_of("model"), *self.done, *self.missing}
        if not self.shown or len(known) == len(self.done) or not (self.done or self.missing):
            return ""
        return f"{len(self.done)} of {len(known)} model checks" if self.done else NOT_AUDITED

    def badge(self) -> str:
        """``16 passed, 2 flagged, 1 explained``, after `coverage`; empty unless `shown`."""
        if not self.shown:
            return ""
        coverage = self.coverage()
        parts = [coverage] if coverage else []
        parts += [f"{len(self.passed)} passed"] if coverage != NOT_AUDITED else []
        parts += [f"{len(self.against)} flagged"] if self.against else []
        parts += [f"{len(self.explained)} explained"] if self.explained else []
        return ", ".join(parts)


def _verdict(line: SeedResult) -> str:
    return "exempt" if line.verdict == "flag" and line.exempt else line.verdict


def sheets(records: Iterable[Record], headline: Headline) -> dict[Entry, Sheet]:
    """The sheet of each row: its stored audits, and the audits of its records, which are run here.

    Parameters
    ----------
    records
        The records that count.
    """
    by_seed: dict[Entry, dict[int, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        by_seed[entry(record.cell)][record.cell.training_seed].append(record)
    done = {row: _model_audits(seeds) for row, seeds in by_seed.items()}
    of_dataset: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for row, mine in done.items():
        of_dataset[row[0]] |= mine
    found: dict[Entry, Sheet] = {}
    for row, seeds in by_seed.items():
        trained = {seed for seed, ours in seeds.items() if any(r.cell.kind != "throughput" for r in ours)}
        wanted = {(name, seed) for name, seed in of_dataset[row[0]] if seed in trained}
        missing = {name for name, _ in wanted - done[row]}
        if of_dataset[row[0]] and not done[row]:
            missing = {name for name, _ in of_dataset[row[0]]}
        found[row] = Sheet(
            results=_results(seeds, headline),
            done=sorted({name for name, _ in done[row]} - missing),
            missing=sorted(missing),
        )
    shown = {row[0] for row, sheet in found.items() if of_dataset[row[0]] or sheet.against or sheet.explained}
    return {row: replace(sheet, shown=row[0] in shown) for row, sheet in found.items()}


def _model_audits(seeds: Mapping[int, Sequence[Record]]) -> set[tuple[str, int]]:
    """The model audits that were run, as (name, training seed)."""
    return {(r.cell.threat, seed) for seed, ours in seeds.items() for r in ours if r.cell.kind == "audit"}


def _results(seeds: Mapping[int, Sequence[Record]], headline: Headline) -> list[SeedResult]:
    """The results of one row, by audit, then seed; audits of the model first."""
    results: dict[str, list[SeedResult]] = defaultdict(list)
    for seed, ours in sorted(seeds.items()):
        for record in ours:
            if record.cell.kind == "audit":
                results[record.cell.threat].append(stored_result(record))
        stored = StoredRecords(records=tuple(ours), reported=headline.reported)
        expected = _expected(stored)
        for audit in records_audits():
            exempt = str(expected.get(audit.name, ""))
            results[audit.name].append(result_of_audit(audit, stored, seed, exempt))
    last = [audit.name for audit in records_audits()]
    order = sorted(results, key=lambda name: (name in last, name))
    return [result for name in order for result in results[name]]


def _expected(stored: StoredRecords) -> Mapping[str, object]:
    training = stored.training
    expected = training.card.get("expected_failures") if training else None
    return expected if isinstance(expected, Mapping) else {}
