"""The confusion table: every sinner and twin under every check, on three seeds.

    cd tests && python -m gallery.table > gallery/confusion.md

takes several minutes. With names of sins as arguments, only these.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from robustode.bench.audits.library import audit_names
from robustode.bench.audits.registry import Verdict
from robustode.tests.gallery import SINS, audit_case

SEEDS = (0, 1, 2)
Counts = Mapping[tuple[str, str], Mapping[str, int]]
"""Flags by (sin, ``sinner`` or ``twin``) and check, over all seeds; ``could not run`` counts crashes."""
CRASHED = "could not run"


def count_flags(sins: Iterable[str] = SINS, seeds: Sequence[int] = SEEDS) -> Counts:
    """Run every check on every sinner and twin; twins that are one and the same model are run once."""
    names = audit_names()
    counts: dict[tuple[str, str], dict[str, int]] = {}
    known: dict[tuple[str, int], list[str]] = {}
    for sin in sins:
        for kind in ("sinner", "twin"):
            flags: dict[str, int] = defaultdict(int)
            for seed in seeds:
                case = getattr(SINS[sin], kind)(seed)
                if not case.same_as or (case.same_as, seed) not in known:
                    found = audit_case(case, seed, names)
                    flagged = [n for n, v in found.items() if isinstance(v, Verdict) and v.outcome == "flag"]
                    flagged += [CRASHED] * any(isinstance(v, str) for v in found.values())
                    known[case.same_as or f"{sin} {kind}", seed] = flagged
                    print(sin, kind, seed, found_text(found), file=sys.stderr, flush=True)
                for name in known[case.same_as or f"{sin} {kind}", seed]:
                    flags[name] += 1
            counts[sin, kind] = dict(flags)
    return counts


def found_text(found: Mapping[str, Verdict | str]) -> str:
    """What was flagged or could not be run, for the log."""
    crashed = [f"{name} ({text[:60]})" for name, text in found.items() if isinstance(text, str)]
    flagged = [n for n, v in found.items() if isinstance(v, Verdict) and v.outcome == "flag"]
    return f"flagged: {flagged} crashed: {crashed}"


def confusion(counts: Counts, seeds: Sequence[int] = SEEDS) -> str:
    """The table as Markdown: columns are the checks that flagged anything, the declared one in bold."""
    seen = {name for flags in counts.values() for name in flags}
    columns = [name for name in (*audit_names(), CRASHED) if name in seen]
    head = ["Model", "", *columns]
    lines = [f"| {' | '.join(head)} |", f"| --- | --- |{' ---: |' * len(columns)}"]
    for (sin, kind), flags in counts.items():
        cells = []
        for name in columns:
            text = f"{flags[name]}/{len(seeds)}" if name in flags else ""
            cells.append(f"**{text or '0'}**" if kind == "sinner" and name == SINS[sin].flagged_by else text)
        lines.append(f"| {' | '.join([sin.replace('_', ' '), kind, *cells])} |")
    silent = [name for name in audit_names() if name not in seen]
    return "\n".join([*lines, "", f"Checks that flag none of these: {', '.join(silent) or 'none'}.", ""])


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = sys.argv[1:] or list(SINS)
    print(confusion(count_flags(chosen)), end="")
