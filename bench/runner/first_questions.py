"""What is asked of a network before its first number: has it learnt anything, does it answer alike?

`robustode.evaluate` warns of the answers; a run stores them in the record of the training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import nn

from ..._errors import InconsistentModelWarning, ModelFailure, RobustodeError, UntrainedModelWarning
from ..audits.sheet import MARKS
from ..data import Data
from ..evaluation.accuracy import frozen, predict_clean
from ..evaluation.consistency import inconsistencies
from ..records.held_out import HELD_OUT, chance, held_out_counts, why_not_trained
from ..records.record import Record
from ..runtime.checked_model import CheckedModel
from ..runtime.foreign_code import asking
from ..runtime.time_limit import time_limit
from .run_context import ADVICE, RunContext

HELD_OUT_SAMPLES = 500
QUESTIONS = 4
"""About how often each of them is asked in all, for an estimate."""


def count_held_out(model: nn.Module, data: Data, *, batch_size: int, device: torch.device) -> dict[str, int]:
    """`held_out_counts` of at most `HELD_OUT_SAMPLES` samples; empty where the model answers none."""
    split = data.validation.first(min(HELD_OUT_SAMPLES, len(data.validation)))
    try:
        with asking(model, 0), frozen(model), torch.no_grad():
            asked = CheckedModel(model, data.num_classes, per_sample=True)
            prediction = predict_clean(asked, split, batch_size, device, None) if len(split) else np.zeros(0)
    except ModelFailure:
        return {}
    return held_out_counts(prediction, split.labels.cpu().numpy())


def first_warnings(
    model: nn.Module, data: Data, *, batch_size: int, device: torch.device, expected: Collection[str] = ()
) -> list[tuple[type[Warning], str]]:
    """What is amiss with `model`, as warnings: their category and one sentence each.

    Parameters
    ----------
    expected
        Audits that the model is known to fail, of which nothing is said.
    """
    images, classes = data.validation.images, data.num_classes
    found = inconsistencies(model, images, num_classes=classes, batch_size=batch_size, device=device)
    warnings: list[tuple[type[Warning], str]] = [
        (
            InconsistentModelWarning,
            f"{sentence} It is no function of the image, as attacks and proofs assume (audit {audit})",
        )
        for audit, sentence in found.items()
        if audit not in expected
    ]
    counts = count_held_out(model, data, batch_size=batch_size, device=device)
    if counts and (reason := chance(**counts)):
        warnings.append((UntrainedModelWarning, f"not trained: {reason}"))
    return warnings


def with_answers(
    training: Record, model: nn.Module, data: Data, *, batch_size: int, device: torch.device
) -> Record:
    """The record of a training with the answers in its card.

    Parameters
    ----------
    model
        The trained, or pretrained, network.
    batch_size
        Of the run: the largest batch in which images are compared.
    """
    images = data.validation.images
    card: dict[str, Any] = {
        **training.card,
        HELD_OUT: count_held_out(model, data, batch_size=batch_size, device=device),
        MARKS: inconsistencies(
            model, images, num_classes=data.num_classes, batch_size=batch_size, device=device
        ),
    }
    return dataclasses.replace(training, card=card)


def ask_first_questions(run: RunContext, training: Record, model: nn.Module) -> None:
    """Store the answers with the record of a training, and tell what is amiss."""
    run.on_start([])  # a process that dies here costs no cell
    size = run.plan.batch_size(run.spec.name)
    try:
        estimate = run.pace * QUESTIONS * HELD_OUT_SAMPLES * (run.cost.forward + run.cost.backward)
        limit = run.plan.allowed(run.plan.limits.cell, estimate)
        with time_limit(limit, f"first questions to {run.name}", ADVICE):
            asked = with_answers(training, model, run.data, batch_size=size, device=run.device)
    except RobustodeError:
        return
    run.store.put(asked)
    if reason := why_not_trained(asked):
        run.reporter.line(f"{run.name} · not trained: {reason}")
    for audit, sentence in asked.card[MARKS].items():
        expected = "expected: " if audit in run.spec.expected_failures else ""
        run.reporter.line(f"{run.name} · {expected}{audit}: {sentence}")
