"""The confusion table: every defective model and control under every audit, on three seeds.

    cd tests && python -m gallery.table > gallery/confusion.md

takes several minutes. With names of defects as arguments, only these.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from robustode.bench.audits.library import audit_names
from robustode.bench.audits.registry import AuditResult

from . import DEFECTS, audit_case

SEEDS = (0, 1, 2)
Counts = Mapping[tuple[str, str], Mapping[str, int]]
"""Flags by (defect, ``defective`` or ``control``) and audit and seed; ``could not run`` counts crashes."""
CRASHED = "could not run"


def count_flags(defects: Iterable[str] = DEFECTS, seeds: Sequence[int] = SEEDS) -> Counts:
    """Run every audit on every defective model and control; equal controls are run once."""
    names = audit_names()
    counts: dict[tuple[str, str], dict[str, int]] = {}
    known: dict[tuple[str, int], list[str]] = {}
    for defect in defects:
        for kind in ("defective", "control"):
            flags: dict[str, int] = defaultdict(int)
            for seed in seeds:
                case = getattr(DEFECTS[defect], kind)(seed)
                if not case.same_as or (case.same_as, seed) not in known:
                    found = audit_case(case, seed, names)
                    flagged = [
                        n for n, v in found.items() if isinstance(v, AuditResult) and v.verdict == "flag"
                    ]
                    flagged += [CRASHED] * any(isinstance(v, str) for v in found.values())
                    known[case.same_as or f"{defect} {kind}", seed] = flagged
                    print(defect, kind, seed, found_text(found), file=sys.stderr, flush=True)
                for name in known[case.same_as or f"{defect} {kind}", seed]:
                    flags[name] += 1
            counts[defect, kind] = dict(flags)
    return counts


def flagged_names(found: Mapping[str, AuditResult | str]) -> list[str]:
    """The audits that flag a model."""
    return [n for n, v in found.items() if isinstance(v, AuditResult) and v.verdict == "flag"]


def found_text(found: Mapping[str, AuditResult | str]) -> str:
    """What was flagged or could not be run, for the log."""
    crashed = [f"{name} ({text[:60]})" for name, text in found.items() if isinstance(text, str)]
    return f"flagged: {flagged_names(found)} crashed: {crashed}"


def confusion(counts: Counts, seeds: Sequence[int] = SEEDS) -> str:
    """The table as Markdown: columns are the checks that flagged anything, the declared one in bold."""
    seen = {name for flags in counts.values() for name in flags}
    columns = [name for name in (*audit_names(), CRASHED) if name in seen]
    head = ["Model", "", *columns]
    lines = [f"| {' | '.join(head)} |", f"| --- | --- |{' ---: |' * len(columns)}"]
    for (defect, kind), flags in counts.items():
        cells = []
        for name in columns:
            text = f"{flags[name]}/{len(seeds)}" if name in flags else ""
            cells.append(
                f"**{text or '0'}**" if kind == "defective" and name == DEFECTS[defect].flagged_by else text
            )
        lines.append(f"| {' | '.join([defect.replace('_', ' '), kind, *cells])} |")
    silent = [name for name in audit_names() if name not in seen]
    return "\n".join([*lines, "", f"Checks that flag none of these: {', '.join(silent) or 'none'}.", ""])


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = sys.argv[1:] or list(DEFECTS)
    print(confusion(count_flags(chosen)), end="")
