"""Predicted classes as outcomes: which are correct, and what the others are instead. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

NO_ANSWER = -1
"""Stands for the class of a sample for which the model gives no finite answer."""


def outcomes_of(prediction: NDArray[np.integer], labels: NDArray[np.integer]) -> dict[str, NDArray[Any]]:
    """`Record.outcomes` of the classes `prediction` (draws, samples) of samples with `labels` (samples,).

    Returns
    -------
    dict
        ``correct`` bool (draws, samples), and ``misclassified_as`` uint8 or int16 (k,): the classes, or
        `NO_ANSWER`, where ``correct`` is False, all draws of the first sample, then of the second, and so on.
    """
    return split_outcomes(prediction, prediction == labels[None])


def split_outcomes(prediction: NDArray[np.integer], correct: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """The same where `correct` (draws, samples) is known."""
    wrong = prediction.T[~correct.T]
    small = wrong.min(initial=0) >= 0 and wrong.max(initial=0) <= np.iinfo(np.uint8).max
    return {"correct": correct, "misclassified_as": wrong.astype(np.uint8 if small else np.int16)}


def largest_norm(norms: NDArray[np.floating]) -> dict[str, float]:
    """`Record.measures` of the distances (draws, samples) of perturbed images; empty where there are none."""
    return {"largest_norm": float(norms.max())} if norms.size else {}


def unanswered(outcomes: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """Where the model gave no answer, bool (draws, samples), from `outcomes_of`."""
    correct, classes = outcomes["correct"], outcomes.get("misclassified_as")
    found = np.zeros(correct.T.shape, bool)
    if classes is not None and classes.dtype.kind == "i":
        found[~correct.T] = classes == NO_ANSWER
    return np.ascontiguousarray(found.T)


def predictions(outcomes: Mapping[str, NDArray[Any]], labels: NDArray[np.integer]) -> NDArray[np.int16]:
    """The classes (draws, samples) that `outcomes_of` was given; needs the same `labels` (samples,)."""
    correct = outcomes["correct"]
    found = np.repeat(labels.astype(np.int16)[:, None], correct.shape[0], axis=1)
    found[~correct.T] = outcomes["misclassified_as"]
    return np.ascontiguousarray(found.T)
