"""Whether a training ended with a network that has learnt anything, from its record alone. No torch."""

from __future__ import annotations

import numpy as np
from scipy.special import bdtrc

from .predictions import NO_ANSWER
from .record import Record

ALPHA = 0.01
"""One-sided level at which held-out accuracy must exceed the share of the largest class."""
HELD_OUT = "held_out"
"""Its entry in the card of a training: what `held_out_counts` returns."""


def held_out_counts(prediction: np.ndarray, labels: np.ndarray) -> dict[str, int]:
    """Count, over held-out samples, what `chance` needs.

    Parameters
    ----------
    prediction, labels
        Classes, integers of shape (n,). A prediction may be `NO_ANSWER`, which is wrong and no class.

    Returns
    -------
    counts
        ``samples``; ``correct``; ``largest``, the samples of the largest class; ``predicted``, the number of
        different classes among the predictions.
    """
    return {
        "samples": len(labels),
        "correct": int(np.sum(prediction == labels)),
        "largest": int(np.unique(labels, return_counts=True)[1].max(initial=0)),
        "predicted": len(np.unique(prediction[prediction != NO_ANSWER])),
    }


def chance(samples: int, correct: int, largest: int, predicted: int) -> str:
    """Why a classifier with these counts has learnt nothing, in one sentence; empty where it has, or may.

    It predicts one class only, or P(X >= correct) >= `ALPHA` for X binomial with n = `samples` and the share
    of the largest class: answering with that class alone would do as well. Where even all correct would not
    be told apart from that, nothing is said.
    """
    if not samples or largest == samples:
        return ""
    share = largest / samples
    if predicted == 1:
        return f"It predicts one class only, on {samples:,} held-out samples."
    if share**samples >= ALPHA or float(bdtrc(correct - 1, samples, share)) < ALPHA:
        return ""
    return (
        f"Its accuracy of {correct / samples:.1%} on {samples:,} held-out samples is no better than "
        f"always answering with the largest class ({share:.1%})."
    )


def why_not_trained(training: Record) -> str:
    """Why the network of a training counts as not trained, in one sentence; empty where it counts as trained.

    No epoch was selected, or one at which a loss is not finite, or what `chance` says. Records of versions
    before this have no counts: of these only the losses speak.
    """
    epoch = training.measures.get("best_epoch")
    if epoch is not None and epoch < 1:
        return "No epoch of its training was selected."
    for name, words in (("train_loss", "training"), ("validation_loss", "validation")):
        curve = training.outcomes.get(name)
        if epoch is not None and curve is not None and not np.isfinite(curve[int(epoch) - 1 :][:1]).all():
            return f"The {words} loss of its selected epoch is not finite."
    counts = training.card.get(HELD_OUT)
    return chance(**counts) if counts else ""
