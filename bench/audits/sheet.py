"""From records to audit sheets: what was found of each row, and what it does to its rank. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..headline import Headline
from ..records import Record
from ..selection import Entry, entry
from .evidence import Evidence
from .library import records_audits
from .outcome import Finding, read_finding, stored_finding


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Everything that was found of one row of the leaderboard, over its training seeds.

    Attributes
    ----------
    findings
        By check, then seed; checks that ask the model first.
    """

    findings: Sequence[Finding]

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

    def badge(self) -> str:
        """``16 passed, 2 flagged, 1 explained``."""
        parts = [f"{len(self.passed)} passed"]
        parts += [f"{len(self.against)} flagged"] if self.against else []
        parts += [f"{len(self.explained)} explained"] if self.explained else []
        return ", ".join(parts)


def _shown(finding: Finding) -> str:
    return "exempt" if finding.verdict == "flag" and finding.exempt else finding.verdict


def sheets(records: Iterable[Record], headline: Headline) -> dict[Entry, Sheet]:
    """The sheet of each row that has audit records; none where a folder was never audited.

    Parameters
    ----------
    records
        The records that count.
    """
    units: dict[Entry, dict[int, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        units[entry(record.cell)][record.cell.training_seed].append(record)
    found: dict[Entry, Sheet] = {}
    for row, seeds in units.items():
        findings: dict[str, list[Finding]] = defaultdict(list)
        for seed, ours in sorted(seeds.items()):
            stored = [record for record in ours if record.cell.kind == "audit"]
            if not stored:
                continue
            for record in stored:
                findings[record.cell.threat].append(stored_finding(record))
            evidence = Evidence(records=tuple(ours), reported=headline.reported)
            expected = _expected(evidence)
            for audit in records_audits():
                exempt = str(expected.get(audit.name, ""))
                findings[audit.name].append(read_finding(audit, evidence, seed, exempt))
        if findings:
            last = [audit.name for audit in records_audits()]
            order = sorted(findings, key=lambda name: (name in last, name))
            found[row] = Sheet(findings=[finding for name in order for finding in findings[name]])
    return found


def _expected(evidence: Evidence) -> Mapping[str, object]:
    training = evidence.training
    expected = training.card.get("expected_failures") if training else None
    return expected if isinstance(expected, Mapping) else {}
