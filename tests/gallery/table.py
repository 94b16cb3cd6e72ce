"""The confusion table: every defective model, control and honest network under every audit, on three seeds.

    cd tests && python -m gallery.table > gallery/confusion.md

takes half an hour. With names of defects and honest networks as arguments, only these.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from robustode.bench.audits.library import audit_names
from robustode.bench.audits.registry import AuditResult

from . import DEFECTS, HONEST, Case, audit_case

SEEDS = (0, 1, 2)
Counts = Mapping[tuple[str, str], Mapping[str, int]]
"""Flags by (name, ``defective``, ``control`` or ``honest``) and audit; ``could not run`` counts crashes."""
CRASHED = "could not run"


def models(names: Iterable[str]) -> dict[tuple[str, str], Callable[[int], Case]]:
    """What makes a model of a seed, by name and kind: two of each defect, one of each honest network."""
    found: dict[tuple[str, str], Callable[[int], Case]] = {}
    for name in names:
        if name in DEFECTS:
            found[name, "defective"], found[name, "control"] = DEFECTS[name].defective, DEFECTS[name].control
        else:
            found[name, "honest"] = HONEST[name].case
    return found


def count_flags(names: Iterable[str] = (*DEFECTS, *HONEST), seeds: Sequence[int] = SEEDS) -> Counts:
    """Run every audit on the defects and honest networks `names`; equal controls are run once."""
    counts: dict[tuple[str, str], dict[str, int]] = {}
    known: dict[tuple[str, int], list[str]] = {}
    for (name, kind), make in models(names).items():
        flags: dict[str, int] = defaultdict(int)
        for seed in seeds:
            case = make(seed)
            if not case.same_as or (case.same_as, seed) not in known:
                found = audit_case(case, seed, audit_names())
                flagged = flagged_names(found)
                flagged += [CRASHED] * any(isinstance(v, str) for v in found.values())
                known[case.same_as or f"{name} {kind}", seed] = flagged
                print(name, kind, seed, found_text(found), file=sys.stderr, flush=True)
            for audit in known[case.same_as or f"{name} {kind}", seed]:
                flags[audit] += 1
        counts[name, kind] = dict(flags)
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
    for (model, kind), flags in counts.items():
        cells = []
        for name in columns:
            text = f"{flags[name]}/{len(seeds)}" if name in flags else ""
            cells.append(
                f"**{text or '0'}**" if kind == "defective" and name == DEFECTS[model].flagged_by else text
            )
        lines.append(f"| {' | '.join([model.replace('_', ' '), kind, *cells])} |")
    silent = [name for name in audit_names() if name not in seen]
    return "\n".join([*lines, "", f"Checks that flag none of these: {', '.join(silent) or 'none'}.", ""])


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = sys.argv[1:] or [*DEFECTS, *HONEST]
    print(confusion(count_flags(chosen)), end="")
