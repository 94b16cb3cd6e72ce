"""Randomised smoothing: an l2 certificate for any model, of the classifier that votes under Gaussian noise.

It is a certificate of another classifier than the one the rest of the benchmark measures, holds with
probability 1 - alpha per sample, and needs inference that depends neither on the batch nor on chance.

References
----------
Cohen, Rosenfeld, Kolter, "Certified adversarial robustness via randomized smoothing", ICML 2019,
arXiv 1902.02918, Theorem 1 and the procedure CERTIFY.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from ...attacks.core.losses import answered
from ...attacks.core.seeds import Purpose, stream_generator
from ..data import Split
from ..evaluation.accuracy import frozen
from ..evaluation.consistency import BATCH_INDEPENDENCE, DETERMINISM, inconsistencies
from ..records.record import Cell, Record
from ..runtime.checked_model import CheckedModel, answered_rows
from ..solvers.observe import observe

BATCH = 16
"""Images on which independence is measured."""


def smoothed_radius(counts: int, n: int, sigma: float, alpha: float) -> float:
    """sigma Phi^-1(p), p the one-sided Clopper-Pearson lower bound at level alpha; 0 where p is at most 1/2.

    Parameters
    ----------
    counts
        How many of `n` noisy copies got the class that is certified.
    """
    p = float(stats.beta.ppf(alpha, counts, n - counts + 1)) if counts else 0.0
    return sigma * float(stats.norm.ppf(p)) if p > 0.5 else 0.0


def smooth_cell(
    cell: Cell,
    model: nn.Module,
    split: Split,
    *,
    num_classes: int,
    device: torch.device,
    environment: Mapping[str, Any],
    on_samples: Callable[[int], None] = lambda samples: None,
) -> Record:
    """Certify the first ``cell.samples`` of `split`; ``cell.strength`` is sigma in pixel units.

    The class is chosen on ``n0`` noisy copies and certified on ``n`` others. The radius is 0 where the vote
    is wrong or undecided.
    """
    started = time.perf_counter()
    reason = unsuitable(model, split.images[:BATCH].to(device), num_classes)
    if reason:
        seconds = time.perf_counter() - started
        return Record(cell=cell, card={"no_certificate": reason}, seconds=seconds, environment=environment)
    split = split.first(cell.samples)
    n0, n, alpha = (cell.parameters[name] for name in ("n0", "n", "alpha"))
    radius, labels = np.zeros(cell.samples, np.float32), split.labels.tolist()
    with frozen(model), torch.no_grad():
        queried = CheckedModel(model, num_classes, per_sample=True)
        queried.has_answered = True  # as `unsuitable` made sure
        for i in range(cell.samples):
            selection, estimation = (
                stream_generator(Purpose.SMOOTHING, cell.attack_seed, what, int(split.indices[i]))
                for what in ("selection", "estimation")
            )
            image = split.images[i].to(device)
            votes = _count(queried, image, n0, cell, selection)
            chosen = int(votes.argmax())
            counts = int(_count(queried, image, n, cell, estimation)[chosen])
            if chosen == labels[i]:
                # Rounded towards 0: a certificate never grows by being written down.
                certified = smoothed_radius(counts, n, cell.strength, alpha)
                radius[i] = max(np.nextafter(np.float32(certified), np.float32(0)), 0)
            on_samples(1)
    return Record(
        cell=cell,
        outcomes={"radius": radius},
        measures={"pixels": float(math.prod(split.images.shape[1:]))},
        forwards=queried.forwards,
        nfe=queried.nfe,
        seconds=time.perf_counter() - started,
        environment=environment,
    )


def unsuitable(model: nn.Module, images: Tensor, num_classes: int) -> str | None:
    """Why votes of `model` cannot be counted, measured on a batch of `images`; None when they can.

    Images without an answer say nothing of it.
    """
    images = images[answered_rows(model, images, num_classes)]
    if any(call.couples_samples for call in observe(model, images)):
        return "an adaptive solver couples the samples of a batch: votes are not independent"
    found = inconsistencies(
        model, images, num_classes=num_classes, batch_size=len(images), device=images.device
    )
    if DETERMINISM in found:
        return "its logits change from pass to pass: votes are not those of one classifier"
    if BATCH_INDEPENDENCE in found:
        return "its logits depend on the other samples of the batch: votes are not independent"
    return None


def _count(model: CheckedModel, image: Tensor, n: int, cell: Cell, generator: torch.Generator) -> Tensor:
    """Votes per class (K,) over `n` noisy copies; noise is not clipped, as the theorem asks."""
    votes = torch.zeros(model.num_classes, dtype=torch.int64, device=image.device)
    for start in range(0, n, cell.batch_size):
        size = (min(cell.batch_size, n - start), *image.shape)
        noise = torch.randn(size, generator=generator).to(image, non_blocking=True)
        logits = model(image + cell.strength * noise)
        chosen = logits.argmax(1)[answered(logits)]  # a copy without an answer has no vote
        votes.index_add_(0, chosen, torch.ones_like(chosen))
    return votes.cpu()
