"""From records to audit sheets: what was found of each row, and what it does to its rank. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..records.headline import Headline
from ..records.latest import Entry, entry
from ..records.record import Record
from .evidence import Evidence
from .library import names_of, records_audits
from .outcome import Finding, read_finding, stored_finding

UNASKED = "not audited"


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Everything that was found of one row of the leaderboard, over its training seeds.

    Attributes
    ----------
    findings
        By check, then seed; checks that ask the model first.
    asked
        Checks that the model was asked at every training seed at which a row of its dataset was.
    missing
        Checks that another row of the dataset was asked, and this one not at each of its training seeds.
    told
        Whether the leaderboard speaks of audits: a row of the dataset was asked, or a check of records
        counts against one or is explained.
    """

    findings: Sequence[Finding]
    asked: Sequence[str] = ()
    missing: Sequence[str] = ()
    told: bool = True

    def names(self, *verdicts: str) -> list[str]:
        """The checks with one of these verdicts at some seed; a flag with a reason is ``exempt``."""
        found = [f.name for f in self.findings if _shown(f) in verdicts]
        return list(dict.fromkeys(found))

    @property
    def against(self) -> list[str]:
        """The checks that withhold a rank: flagged without a reason, or not to be run."""
        return self.names("flag", "failed")

    @property
    def explained(self) -> list[str]:
        """The checks whose flags the model explains at every seed."""
        against = self.against
        return [name for name in self.names("exempt") if name not in against]

    @property
    def passed(self) -> list[str]:
        """The checks that every seed passes, among those that apply to one."""
        other = {*self.against, *self.explained}
        return [name for name in self.names("pass") if name not in other]

    def coverage(self) -> str:
        """``not audited`` or ``3 of 18 model checks`` where some were not asked; else empty."""
        known = {*names_of("model"), *self.asked, *self.missing}
        if not self.told or len(known) == len(self.asked) or not (self.asked or self.missing):
            return ""
        return f"{len(self.asked)} of {len(known)} model checks" if self.asked else UNASKED

    def badge(self) -> str:
        """``16 passed, 2 flagged, 1 explained``, after what was not asked; empty where nothing is told."""
        if not self.told:
            return ""
        coverage = self.coverage()
        parts = [coverage] if coverage else []
        parts += [f"{len(self.passed)} passed"] if coverage != UNASKED else []
        parts += [f"{len(self.against)} flagged"] if self.against else []
        parts += [f"{len(self.explained)} explained"] if self.explained else []
        return ", ".join(parts)


def _shown(finding: Finding) -> str:
    return "exempt" if finding.verdict == "flag" and finding.exempt else finding.verdict


def sheets(records: Iterable[Record], headline: Headline) -> dict[Entry, Sheet]:
    """The sheet of each row: what its stored audits say, and the checks that read its records, run here.

    Parameters
    ----------
    records
        The records that count.
    """
    units: dict[Entry, dict[int, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        units[entry(record.cell)][record.cell.training_seed].append(record)
    asked = {row: _asked(seeds) for row, seeds in units.items()}
    of_dataset: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for row, mine in asked.items():
        of_dataset[row[0]] |= mine
    found: dict[Entry, Sheet] = {}
    for row, seeds in units.items():
        trained = {seed for seed, ours in seeds.items() if any(r.cell.kind != "throughput" for r in ours)}
        wanted = {(name, seed) for name, seed in of_dataset[row[0]] if seed in trained}
        missing = {name for name, _ in wanted - asked[row]}
        if of_dataset[row[0]] and not asked[row]:
            missing = {name for name, _ in of_dataset[row[0]]}
        found[row] = Sheet(
            findings=_findings(seeds, headline),
            asked=sorted({name for name, _ in asked[row]} - missing),
            missing=sorted(missing),
        )
    told = {row[0] for row, sheet in found.items() if of_dataset[row[0]] or sheet.against or sheet.explained}
    return {row: replace(sheet, told=row[0] in told) for row, sheet in found.items()}


def _asked(seeds: Mapping[int, Sequence[Record]]) -> set[tuple[str, int]]:
    """The checks that the model of each training seed was asked, as (name, seed)."""
    return {(r.cell.threat, seed) for seed, ours in seeds.items() for r in ours if r.cell.kind == "audit"}


def _findings(seeds: Mapping[int, Sequence[Record]], headline: Headline) -> list[Finding]:
    """What was found of one row, by check, then seed; checks that ask the model first."""
    findings: dict[str, list[Finding]] = defaultdict(list)
    for seed, ours in sorted(seeds.items()):
        for record in ours:
            if record.cell.kind == "audit":
                findings[record.cell.threat].append(stored_finding(record))
        evidence = Evidence(records=tuple(ours), reported=headline.reported)
        expected = _expected(evidence)
        for audit in records_audits():
            exempt = str(expected.get(audit.name, ""))
            findings[audit.name].append(read_finding(audit, evidence, seed, exempt))
    last = [audit.name for audit in records_audits()]
    order = sorted(findings, key=lambda name: (name in last, name))
    return [finding for name in order for finding in findings[name]]


def _expected(evidence: Evidence) -> Mapping[str, object]:
    training = evidence.training
    expected = training.card.get("expected_failures") if training else None
    return expected if isinstance(expected, Mapping) else {}
