"""Audit sheets: the results of all audits of a leaderboard row, and what withholds its rank. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..records.headline import Headline
from ..records.held_out import why_not_trained
from ..records.latest import Entry, entry
from ..records.record import Record
from .audit_record import SeedResult, result_of_audit, stored_result
from .library import names_of, records_audits
from .registry import NOT_ASKED
from .stored_records import StoredRecords

NOT_AUDITED, NOT_TRAINED = "not audited", "not trained"
MARKS = "marks"
"""Entry in the card of a training: by audit, what a run found amiss when it asked a few samples."""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """The results of all audits of one row of the leaderboard, over its training seeds.

    Attributes
    ----------
    results
        By audit, then seed; audits of the model first, and before them what the run itself found amiss.
    trained
        Whether the network of each training seed has learnt anything (`records.held_out`).
    done, missing
        Of the audits that a row must have been asked, those that each of its training seeds answered or
        failed at, and the others. No other row has a say in it.
    """

    results: Sequence[SeedResult]
    trained: bool = True
    done: Sequence[str] = ()
    missing: Sequence[str] = ()

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
        if not self.missing:
            return ""
        wanted = len(self.done) + len(self.missing)
        return f"{len(self.done)} of {wanted} model checks" if self.done else NOT_AUDITED

    def badge(self) -> str:
        """``16 passed, 2 flagged, 1 explained``, after `coverage`; ``not trained`` of a row that is not."""
        if not self.trained:
            return NOT_TRAINED
        coverage = self.coverage()
        parts = [coverage] if coverage else []
        parts += [f"{len(self.passed)} passed"] if self.passed and coverage != NOT_AUDITED else []
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
    found: dict[Entry, Sheet] = {}
    for row, seeds in by_seed.items():
        results = _results(seeds, headline)
        trained = {seed for seed, ours in seeds.items() if any(r.cell.kind != "throughput" for r in ours)}
        answered = {(result.name, result.seed) for result in results if result.verdict != NOT_ASKED}
        wanted = names_of("model") if headline.audits is None else headline.audits
        done = [name for name in wanted if all((name, seed) in answered for seed in trained)]
        missing = [name for name in wanted if name not in done]
        trainings = [r for ours in seeds.values() for r in ours if r.cell.kind == "training"]
        found[row] = Sheet(
            results=[*_marks(trainings), *results],
            trained=not any(why_not_trained(r) for r in trainings if r.status == "ok"),
            done=sorted(done),
            missing=sorted(missing),
        )
    return found


def _marks(trainings: Iterable[Record]) -> list[SeedResult]:
    """What runs found amiss before the first number, as flags of the audits that ask it at length."""
    return [
        SeedResult(
            name=name,
            title=f"{name}, asked before the first number",
            seed=record.cell.training_seed,
            verdict="flag",
            sentence=str(sentence),
            exempt=str(_expected(record).get(name, "")),
        )
        for record in trainings
        for name, sentence in dict(record.card.get(MARKS) or {}).items()
    ]


def _results(seeds: Mapping[int, Sequence[Record]], headline: Headline) -> list[SeedResult]:
    """The results of one row, by audit, then seed; audits of the model first."""
    results: dict[str, list[SeedResult]] = defaultdict(list)
    for seed, ours in sorted(seeds.items()):
        for record in ours:
            if record.cell.kind == "audit":
                results[record.cell.threat].append(stored_result(record))
        stored = StoredRecords(records=tuple(ours), reported=headline.reported)
        expected = _expected(stored.training)
        for audit in records_audits():
            exempt = str(expected.get(audit.name, ""))
            results[audit.name].append(result_of_audit(audit, stored, seed, exempt))
    last = [audit.name for audit in records_audits()]
    order = sorted(results, key=lambda name: (name in last, name))
    return [result for name in order for result in results[name]]


def _expected(training: Record | None) -> Mapping[str, object]:
    expected = training.card.get("expected_failures") if training else None
    return expected if isinstance(expected, Mapping) else {}
