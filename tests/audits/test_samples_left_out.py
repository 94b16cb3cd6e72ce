"""Audits of a model that gives no answer for some samples: these are left out, and it is said how many."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from gallery.base import Case, Wrapped, context_of, fitted, sound_model
from robustode._errors import ModelFailure, NonFinite
from robustode.bench.audits.context import Context
from robustode.bench.audits.library import audit_names, names_of
from robustode.bench.audits.registry import AUDITS, AuditResult, measured
from robustode.bench.audits.stored_records import StoredRecords
from robustode.models import LipschitzParts
from torch import Tensor, nn

audit_names()  # registers them

SAMPLES, MARKED = 12, (0, 7)
SMALL = {"long_steps": 8, "queries": 10, "apgd_steps": 4, "targets": 2, "spsa_steps": 1}
COUNTED = ("finite", "nfe-and-stiffness")
OF_SOLVERS = ("solver-sensitivity", "solver-transfer", "tolerance-sweep", "contraction", "gradient-fidelity")
LINE = "2 of 12 samples have no answer and are left out."


class GivesUp(Wrapped):
    """Has no answer where the first pixel is above .9, which no attack of the audits reaches from 0."""

    def __init__(self, model: nn.Module, how: str) -> None:
        super().__init__(model)
        self.how = how

    def forward(self, images: Tensor) -> Tensor:
        bad = images[:, 0, 0, 0] > 0.9
        if self.how == "raise" and bool(bad.any()):
            raise AssertionError("underflow in dt 0.0")
        logits = super().forward(images)
        return torch.where(bad[:, None], torch.nan, logits) if self.how == "nan" else logits

    def lipschitz_parts(self) -> LipschitzParts:
        return self.model.lipschitz_parts()


def context(model: nn.Module, *, marked: tuple[int, ...] = MARKED, **changes: object) -> Context:
    found = context_of(Case(model, claims=frozenset({"contractive"})), 0, SAMPLES, **SMALL, **changes)
    images = found.images.clone()
    images[list(marked), 0, 0, 0] = 1.0
    return dataclasses.replace(found, images=images)


def without_marked(whole: Context) -> Context:
    return whole.take(torch.tensor([i for i in range(SAMPLES) if i not in MARKED]))


def same(one: AuditResult, other: AuditResult) -> bool:
    return (one.verdict, one.value) == (other.verdict, other.value) or one.value != one.value


@functools.cache
def of_the_others(name: str) -> AuditResult:
    """What an audit says of the samples that have an answer."""
    return AUDITS.get(name)(without_marked(context(GivesUp(sound_model(0), "never"))))


@pytest.mark.parametrize("how", ["raise", "nan"])
@pytest.mark.parametrize("name", [name for name in names_of("model") if name not in COUNTED])
def test_an_audit_leaves_samples_without_an_answer_out_and_says_how_many(name, how):
    expected = of_the_others(name)
    found = AUDITS.get(name)(context(GivesUp(sound_model(0), how)))
    assert same(found, expected), (found.sentence, expected.sentence)
    assert found.sentence == f"{expected.sentence} {LINE}"


@pytest.mark.parametrize("name", OF_SOLVERS)
def test_an_audit_of_an_adaptive_solver_goes_on_too(name):
    found = AUDITS.get(name)(context(GivesUp(fitted("node-dopri5", 0), "raise")))
    assert found.verdict in ("pass", "flag"), found.sentence
    assert found.sentence.endswith(LINE)


@pytest.mark.parametrize("how", ["raise", "nan"])
def test_audits_whose_question_it_is_count_them(how):
    model = GivesUp(sound_model(0), how)
    finite, solver = (AUDITS.get(name)(context(model)) for name in COUNTED)
    assert (finite.verdict, solver.verdict) == ("flag", "flag")
    assert "2 of 12 test images" in finite.sentence
    assert "of 12 negatives" in finite.sentence
    assert solver.sentence.startswith("The solver fails on 2 of 12 test images: ")
    assert "left out" not in finite.sentence + solver.sentence


@pytest.mark.parametrize("name", [name for name in names_of("model") if name not in COUNTED])
def test_a_model_that_answers_nothing_is_a_failure_of_its_audits(name):
    everything = tuple(range(SAMPLES))
    for how, error in (("raise", ModelFailure), ("nan", NonFinite)):
        with pytest.raises(error, match="underflow" if how == "raise" else "12 of 12"):
            AUDITS.get(name)(context(GivesUp(sound_model(0), how), marked=everything))


def test_samples_keep_their_numbers(monkeypatch):
    """Stored breaks are those of the same samples, and so are the seeds of attacks."""
    whole = context(GivesUp(sound_model(0), "nan"))
    broken = np.isin(np.arange(SAMPLES), (2, 7, 9))
    monkeypatch.setattr(StoredRecords, "broken", lambda self, norm, eps: broken[:10])
    some = whole.with_answers()
    assert list(some.numbers) == [1, 2, 3, 4, 5, 6, 8, 9, 10, 11]
    untouched = dataclasses.replace(some, stored=StoredRecords(), memo={})
    untouched.memo.update({"long pgd": torch.ones(10, dtype=torch.bool)})
    untouched.memo.update({"apgd": (None, torch.ones(10, dtype=torch.bool))})
    assert untouched.white_box().tolist() == [number not in (2, 9) for number in some.numbers]


class Batched(Wrapped):
    """Has no answer for a marked image beside more than four others."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        bad = (images[:, 0, 0, 0] > 0.9) & (len(images) > 5)
        return torch.where(bad[:, None], torch.nan, logits)


class Flickering(Wrapped):
    """Has no answer for a marked image in every third pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.passes = 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        bad = (images[:, 0, 0, 0] > 0.9) & (self.passes % 3 == 0)
        return torch.where(bad[:, None], torch.nan, super().forward(images))


@pytest.mark.parametrize(
    ("name", "wrapper", "words"),
    [
        ("batch-independence", Batched, "have an answer alone and none in a batch"),
        ("determinism", Flickering, "an image has an answer in one and none in another"),
    ],
)
def test_an_answer_that_comes_and_goes_is_flagged(name, wrapper, words):
    found = AUDITS.get(name)(context(wrapper(sound_model(0))))
    assert (found.verdict, found.value) == ("flag", torch.inf)
    assert words in found.sentence
    assert AUDITS.get(name)(context(sound_model(0))).verdict == "pass"


def test_an_audit_from_elsewhere_is_given_samples_that_have_an_answer():
    def check(asked: Context) -> AuditResult:
        return measured(float(len(asked.images)), 100.0, "Counted.")

    audit = dataclasses.replace(AUDITS.get("logits"), check=check)
    found = audit(context(GivesUp(sound_model(0), "raise")))
    assert (found.value, found.sentence) == (10.0, f"Counted. {LINE}")
    one = audit(context(GivesUp(sound_model(0), "raise"), marked=(3,)))
    assert one.sentence == "Counted. 1 of 12 samples has no answer and is left out."
    every = dataclasses.replace(audit, every_sample=True)
    assert every(context(GivesUp(sound_model(0), "raise"))).value == 12.0
