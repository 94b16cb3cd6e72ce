"""A sound model whose stored attack takes two steps of a hundredth of eps."""

from __future__ import annotations

import stubs
import torch
from robustode.attacks import THREATS
from robustode.bench.audits.stored_records import StoredRecords
from robustode.bench.evaluation.accuracy import evaluate_cell
from robustode.bench.records.record import Record

from .base import EPS, SAMPLES, Case, Defect, digits, sound_model


def _stored(seed: int, **parameters: float) -> StoredRecords:
    """What a run would store: clean predictions, and PGD as `parameters` configure it, at two strengths."""
    test = digits().test.first(SAMPLES)
    records: list[Record] = []
    for name, strength in (("clean", 0.0), ("pgd-linf", EPS), ("pgd-linf", 2 * EPS)):
        threat = THREATS.get(name).configure(**(parameters if name != "clean" else {}))
        cell = stubs.cell_for(threat, strength, SAMPLES, training_seed=seed)
        records.append(
            evaluate_cell(
                cell,
                sound_model(seed),
                test,
                threat,
                num_classes=10,
                device=torch.device("cpu"),
                environment={},
            )
        )
    return StoredRecords(records=tuple(records), reported={"linf": EPS})


def defective(seed: int) -> Case:
    return Case(sound_model(seed), stored=_stored(seed, steps=2, restarts=1, relative_step=0.01))


def control(seed: int) -> Case:
    """The same model under the attack's own defaults."""
    return Case(sound_model(seed), stored=_stored(seed, steps=40))


DEFECT = Defect("binarisation", defective, control)
