"""Each check of stored records where it passes, flags and has nothing to say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import stubs
import synthetic
from robustode.bench.audits.library import audit_names
from robustode.bench.audits.registry import AUDITS, AuditResult
from robustode.bench.audits.stored_records import StoredRecords
from robustode.bench.records.record import Record

audit_names()  # registers every check


def stored(threat: str, strength: float, broken: int, samples: int = 50, draws: int = 1) -> Record:
    correct = np.ones((draws, samples), bool)
    correct[:, :broken] = False
    cell = stubs.cell_for(threat, strength, samples, draws=draws)
    return synthetic.record_of(cell, correct)


def read(name: str, *records: Record) -> AuditResult:
    return AUDITS.get(name)(StoredRecords(records=records))


def test_monotone():
    falls = [stored("pgd-linf", s, n) for s, n in ((0.1, 5), (0.2, 9), (0.05, 1))]
    assert read("monotone-in-eps", *falls).verdict == "pass"
    found = read("monotone-in-eps", *falls, stored("pgd-linf", 0.3, 8))
    assert found.verdict == "flag"
    assert found.value == pytest.approx(2.0)
    assert read("monotone-in-eps", falls[0]).verdict == "not applicable"
    one_step = [stored("fgsm-linf", 0.1, 5), stored("fgsm-linf", 0.2, 2)]
    assert read("monotone-in-eps", *one_step).verdict == "not applicable"


def test_noise_below_attack():
    noise = stored("uniform", 0.1, 4, draws=2)
    assert read("noise-below-attack", noise, stored("pgd-linf", 0.1, 4)).verdict == "pass"
    found = read("noise-below-attack", noise, stored("pgd-linf", 0.1, 3))
    assert (found.verdict, found.value) == ("flag", 1.0)
    both = [stored("pgd-linf", 0.1, 3), stored("pgd-linf", 0.05, 4)]
    assert read("noise-below-attack", noise, *both).verdict == "pass", "a smaller ball lies inside"
    assert read("noise-below-attack", noise, stored("pgd-linf", 0.2, 9)).verdict == "not applicable"


def certificate(radius: float, samples: int = 50) -> Record:
    cell = stubs.cell_for("clean", 0.0, samples)
    cell = dataclasses.replace(cell, kind="certificate", threat="lipschitz", family="certificate")
    return Record(
        cell=cell, outcomes={"radius": np.full(samples, radius, np.float32)}, measures={"pixels": 64.0}
    )


def test_certified_below_attacked():
    assert read("certified-below-attacked", stored("pgd-l2", 0.5, 3)).verdict == "not applicable"
    assert read("certified-below-attacked", certificate(0.4)).verdict == "not applicable"
    assert read("certified-below-attacked", certificate(0.4), stored("pgd-l2", 0.5, 3)).verdict == "pass"
    found = read("certified-below-attacked", certificate(0.6), stored("pgd-l2", 0.5, 3))
    assert (found.verdict, found.value) == ("flag", 3.0)
    linf = stored("pgd-linf", 0.1, 2)
    assert read("certified-below-attacked", certificate(0.79), linf).verdict == "pass", "0.1 sqrt(64) = 0.8"
    assert read("certified-below-attacked", certificate(0.81), linf).value == 2.0


@pytest.mark.parametrize("family", ["submission", "replay"])
def test_what_others_sent_is_held_against_a_certificate(family):
    sent = stored("pgd-l2", 0.5, 3)
    cell = dataclasses.replace(sent.cell, family=family, threat="transfer-l2")
    sent = dataclasses.replace(sent, cell=cell)
    found = read("certified-below-attacked", certificate(0.6), sent)
    assert (found.verdict, found.value) == ("flag", 3.0)
    assert "3 of 3 attacks" in found.sentence, "the samples that were not broken may not have been tried"
    assert read("certified-below-attacked", certificate(0.4), sent).verdict == "pass"
