"""What an attack claims, checked without trusting it: box, budget, prediction, and what is stored of it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..._errors import BudgetViolation, NonFinite
from ...attacks import BUDGET_TOLERANCE, Threat, distance, violation
from ...attacks.core.losses import answered
from ..data import Split
from ..records.adversarial_examples import AdversarialExamples, add_steps, perturbation_steps
from ..records.predictions import NO_ANSWER, largest_norm, outcomes_of
from ..records.record import Cell
from ..runtime.checked_model import CheckedModel

EXAMPLES = 6
"""Samples of each cell whose images are stored for the figures."""


class CellVerification:
    """Checks what an attack returned, batch by batch, and collects the outcomes of one cell.

    Outcomes are complete after `finish`: without `stored`, values are fetched from a GPU only then, so that
    it is not waited for at every batch.

    Parameters
    ----------
    split
        The samples of the cell.
    stored
        Check a perturbation as it would be stored: rounded to whole steps before it is measured and
        predicted; and a break must also survive alone, at batch size 1, and among the other breaks of its
        batch in another order.

    Attributes
    ----------
    labels
        (samples,).
    prediction
        int16 (draws, samples), `NO_ANSWER` where there is none; to be filled with clean predictions for
        samples that are not attacked.
    """

    def __init__(self, cell: Cell, threat: Threat, split: Split, *, stored: bool) -> None:
        self.cell, self.threat, self.split, self.stored = cell, threat, split, stored
        self.labels = split.labels.cpu().numpy()
        self.prediction = np.empty((cell.draws, cell.samples), np.int16)
        self._norm = np.zeros((cell.draws, cell.samples), np.float32)
        self._shown = split.images[:EXAMPLES].cpu().clone()
        self._steps: dict[int, NDArray[np.int16] | NDArray[np.int32]] = {}
        self._predictions, self._norms, self._first = _DeferredCopies(), _DeferredCopies(), _DeferredCopies()

    def verify_batch(
        self, model: CheckedModel, draw: int, batch: np.ndarray, perturbed: Tensor, images: Tensor
    ) -> None:
        """Check what became of the samples `batch` (n,), whose `images` (n, C, H, W) were `perturbed`.

        Raises
        ------
        BudgetViolation, NonFinite
            The budget or the box is left, or a pixel or an answer of the model is not finite.
        """
        cell, labels = self.cell, self.labels[batch]
        _check_budget(model, perturbed, images, self.threat, cell.strength)
        steps: NDArray[np.int32] | None = None
        if self.stored:
            perturbed, steps = _as_stored(perturbed, images)
        found = predict(model, perturbed)
        if steps is not None:
            model.raise_pending()
            found = found.cpu()
            for ask in (predict_alone, _shuffled):
                if len(broken := np.flatnonzero(found.numpy() != labels)):
                    found[broken] = ask(model, perturbed[torch.from_numpy(broken).to(perturbed.device)]).cpu()
            for i in np.flatnonzero(found.numpy() != labels):
                self._steps.setdefault(int(batch[i]), _compact(steps[i]))
        self._predictions.copy(self.prediction[draw], batch, found)
        if cell.norm is not None and self.threat.norm is not None:
            self._norms.copy(self._norm[draw], batch, distance(perturbed, images, self.threat.norm))
        shown = np.flatnonzero(batch < EXAMPLES)
        if draw == 0 and len(shown):
            rows = torch.from_numpy(shown).to(perturbed.device)
            self._first.copy(self._shown.numpy(), batch[shown], perturbed[rows])
        if self.stored:
            self.finish(model)

    def finish(self, model: CheckedModel) -> None:
        """Look at what was put off; raises what `take` does."""
        model.raise_pending()
        for later in (self._predictions, self._norms, self._first):
            later.finish()

    def copy_broken(self, other: CellVerification, batch: np.ndarray) -> None:
        """Copy what was found for the samples `batch` (n,) at a smaller strength."""
        self.prediction[:, batch] = other.prediction[:, batch]
        self._norm[:, batch] = other._norm[:, batch]
        first = batch[batch < EXAMPLES]
        self._shown[first] = other._shown[first]
        self._steps |= {row: other._steps[row] for row in batch.tolist() if row in other._steps}

    def outcomes(self) -> dict[str, np.ndarray]:
        """`Record.outcomes` of an accuracy."""
        found = outcomes_of(self.prediction, self.labels)
        return found | ({"norm": self._norm} if self.cell.norm is not None else {})

    def measures(self) -> dict[str, float]:
        """`Record.measures` of an accuracy: of a bounded attack ``largest_norm``."""
        return largest_norm(self._norm) if self.cell.norm is not None else {}

    def forget_breaks(self) -> None:
        """Drop the adversarial examples of a cell of which none are stored."""
        self._steps.clear()

    def breaks(self) -> AdversarialExamples:
        """The samples that were broken, and their adversarial examples; empty unless `stored`."""
        broken = sorted(self._steps)
        none = np.zeros((0, *self.split.images.shape[1:]), np.int32)
        return AdversarialExamples(
            index=np.asarray(self.split.indices[broken], np.int64),
            label=self.labels[broken],
            steps=np.stack([self._steps[row].astype(np.int32) for row in broken]) if broken else none,
        )

    def examples(self) -> dict[str, np.ndarray]:
        """`Record.examples`: the first samples as they were perturbed."""
        return _examples(self._shown, self.split, self.prediction[0])


def predict(model: CheckedModel, images: Tensor) -> Tensor:
    """The classes of `images` (n, C, H, W), int64 (n,), `NO_ANSWER` where there is none; not waited for."""
    logits = model.logits(images)
    return logits.argmax(1).where(answered(logits), NO_ANSWER)


def predict_alone(model: CheckedModel, images: Tensor) -> Tensor:
    """What `predict` returns, each of `images` (n, C, H, W) in a batch of its own."""
    return torch.cat([predict(model, image[None]) for image in images])


def _shuffled(model: CheckedModel, images: Tensor) -> Tensor:
    """Classes of `images` (n, C, H, W), asked in another order."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).to(images.device)
    found = torch.empty(len(images), dtype=torch.int64, device=images.device)
    found[order] = predict(model, images[order])
    return found


class _DeferredCopies:
    """Values for rows of an array: those on a CPU are copied at once, those on a GPU fetched together."""

    def __init__(self) -> None:
        self._waiting: list[tuple[np.ndarray, np.ndarray, Tensor]] = []

    def copy(self, array: np.ndarray, rows: np.ndarray, values: Tensor) -> None:
        if values.device.type == "cpu":
            array[rows] = values.numpy()
        else:
            self._waiting.append((array, rows, values.clone()))

    def finish(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        fetched = torch.cat([values for _, _, values in waiting]).cpu().numpy()
        start = 0
        for array, rows, _ in waiting:
            array[rows] = fetched[start : start + len(rows)]
            start += len(rows)


def _compact(steps: NDArray[np.int32]) -> NDArray[np.int16] | NDArray[np.int32]:
    """One perturbation (c, h, w) as a copy that does not keep its batch, in two bytes a pixel if these do."""
    small = np.abs(steps).max(initial=0) <= np.iinfo(np.int16).max
    return steps.astype(np.int16) if small else steps.copy()


def _as_stored(perturbed: Tensor, images: Tensor) -> tuple[Tensor, np.ndarray]:
    """The images that a stored perturbation gives back, and its steps."""
    clean = images.cpu().numpy()
    steps = perturbation_steps(perturbed.cpu().numpy(), clean)
    return torch.from_numpy(add_steps(clean, steps)).to(images), steps


def _check_budget(
    model: CheckedModel, perturbed: Tensor, images: Tensor, threat: Threat, strength: float
) -> None:
    if perturbed.shape != images.shape:
        model.raise_pending()
        raise BudgetViolation(
            f"{threat.name} returned shape {tuple(perturbed.shape)} for {tuple(images.shape)}"
        )
    excess = violation(perturbed, images, strength, threat.norm, threat.box)
    allowed = BUDGET_TOLERANCE * max(1.0, strength)
    model.require(excess <= allowed, lambda: _refuse(excess, threat, strength))


def _refuse(excess: Tensor, threat: Threat, strength: float) -> None:
    if bool(excess.isinf().any()):
        raise NonFinite(
            f"{threat.name} returned NaN or infinite pixels for {int(excess.isinf().sum())} samples"
        )
    box = f"[{threat.box[0]:g}, {threat.box[1]:g}]"
    raise BudgetViolation(
        f"{threat.name} left its budget of {strength:g} or the box {box} by {float(excess.max()):.3g}"
    )


def _examples(shown: Tensor, split: Split, prediction: np.ndarray) -> dict[str, np.ndarray]:
    count = len(shown)
    pixels = (shown * 255).round().clamp(0, 255).to(torch.uint8)
    return {
        "index": np.asarray(split.indices[:count], np.int64),
        "label": split.labels[:count].cpu().numpy(),
        "prediction": prediction[:count].astype(np.int64),
        "image": pixels.numpy(),
    }
