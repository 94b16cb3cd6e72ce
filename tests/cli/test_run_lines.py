"""The line of a finished model and seed: the figures of the leaderboard, failures counted."""

from __future__ import annotations

import dataclasses

import numpy as np
import stubs
from robustode.bench.cli.run_lines import result_line
from robustode.bench.records.record import Record


def record(threat: str, strength: float, correct: list[int], **changes) -> Record:
    cell = dataclasses.replace(stubs.cell_for(threat, strength, len(correct)), training_seed=2)
    return Record(cell=cell, outcomes={"correct": np.array([correct], bool)}, **changes)


def test_it_tells_name_seed_clean_worst_cases_and_time():
    records = [
        record("clean", 0.0, [1, 1, 1, 0]),
        record("gaussian", 0.1, [1, 0, 0, 0]),
        record("fgsm-linf", 0.1, [1, 1, 0, 1]),
        record("pgd-linf", 0.1, [0, 1, 1, 1]),
        record("pgd-linf", 0.2, [0, 0, 0, 0]),
        record("pgd-l2", 0.5, [1, 1, 1, 1]),
    ]
    reported = {"gaussian": 0.1, "linf": 0.1, "l2": 0.5}
    line = result_line("node", 2, records, 75.0, reported)
    assert line == (
        "node seed 2: clean 75.0%, worst case linf 0.1 25.0%, worst case l2 0.5 75.0% in 1 min 15 s"
    )
    failed = [*records[:5], Record(cell=records[5].cell, status="error", error="no")]
    line = result_line("node", 2, failed, 75.0, reported)
    assert "l2" not in line
    assert "1 failed" in line
    assert "no result" in result_line("node", 2, [], 1.0, reported)
