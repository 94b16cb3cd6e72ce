"""A model and the samples that an audit asks it about: its answers, and which samples have none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..._errors import ModelFailure
from ...attacks.core.losses import answered
from ...attacks.core.sample_answers import may_concern_a_sample
from ..evaluation.accuracy import frozen
from ..evaluation.consistency import asked_with_gradients
from ..records.predictions import NO_ANSWER
from ..runtime.checked_model import CheckedModel, answered_rows
from .measures import normalised
from .registry import AuditResult, Check

T = TypeVar("T")
Self = TypeVar("Self", bound="AskedModel")


@dataclass(frozen=True, kw_only=True)
class AskedModel:
    """A model, and samples of which some may have no answer.

    Attributes
    ----------
    model
        In eval mode.
    images, labels
        Test samples (N, C, H, W) and (N,), on the device of the model.
    num_classes
        Of the dataset.
    batch_size
        Images that go through the model at once.
    strict
        Compare logits as `robustode check` does of an untrained model: passes must agree to the last bit, the
        scale of the logits counts, and no difference is excused by ill-conditioned weights.
    numbers
        Of the samples in the test set; 0, 1, ... unless given.
    memo
        Answers that several audits share.
    left_out
        Numbers of the samples without an answer that the audit in progress has left out.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    num_classes: int
    batch_size: int = 128
    strict: bool = False
    numbers: Sequence[int] = ()
    memo: dict[Any, Any] = field(default_factory=dict, compare=False)
    left_out: set[int] = field(default_factory=set, compare=False)

    def __post_init__(self) -> None:
        if not self.numbers:
            object.__setattr__(self, "numbers", range(len(self.images)))

    def take(self: Self, rows: Tensor) -> Self:
        """The same, with the samples `rows` (k,) alone and nothing remembered."""
        numbers = [self.numbers[row] for row in rows.tolist()]
        asked = self._checked(self.model)
        asked.has_answered = self.queried.has_answered
        images, labels = self.images[rows], self.labels[rows]
        return replace(self, images=images, labels=labels, numbers=numbers, memo={"queried": asked})

    def first(self: Self, count: int) -> Self:
        """The same, with the first `count` samples and nothing remembered."""
        return self.take(torch.arange(min(count, len(self.images))))

    def ask(self, check: Check) -> AuditResult:
        """The result of `check` on the samples that have an answer; it says how many have none."""
        some = self.with_answers()
        asked = replace(some, left_out=set(self.numbers) - set(some.numbers))
        found = check(asked)
        if not (count := len(asked.left_out)):
            return found
        line = f"{count} of {len(self.images)} samples {'has' if count == 1 else 'have'} no answer and "
        return replace(found, sentence=f"{found.sentence} {line}{'is' if count == 1 else 'are'} left out.")

    def with_answers(self: Self) -> Self:
        """The same, with the samples alone that the model answers as they are."""
        rows = answered(self.own_logits()).nonzero().flatten()
        if len(rows) == len(self.images):
            return self
        some = self.once("with answers", lambda: self.take(rows))
        some.memo["queried"] = self.queried  # which counts for both
        return some

    def answered(self, images: Tensor, model: nn.Module | None = None) -> Tensor:
        """The rows (k,) of `images` for which the model, or another `model`, gives an answer.

        They are those of the first samples, changed in some way; samples without an answer are noted as left
        out.
        """
        rows = answered_rows(model or self.model, images, self.num_classes, self.batch_size)
        self.left_out.update(set(self.numbers[: len(images)]) - {self.numbers[row] for row in rows.tolist()})
        return rows

    def once(self, what: Any, make: Callable[[], T]) -> T:
        """``make()``, called once for each `what`."""
        if what not in self.memo:
            self.memo[what] = make()
        found: T = self.memo[what]
        return found

    @property
    def queried(self) -> CheckedModel:
        """The model behind a counter, which marks samples without an answer."""
        return self.once("queried", lambda: self._checked(self.model))

    def _checked(self, model: nn.Module) -> CheckedModel:
        return CheckedModel(model, self.num_classes, per_sample=True)

    def _asked(self, model: nn.Module | None) -> CheckedModel:
        """The model, or another one, which must answer every sample unless it is a `CheckedModel` itself."""
        if model is None:
            return self.queried
        return model if isinstance(model, CheckedModel) else CheckedModel(model, self.num_classes)

    def logits(self, images: Tensor, model: nn.Module | None = None) -> Tensor:
        """Logits (N, K), without gradients, in batches of `batch_size`; NaN of a sample without an answer.

        Another `model` must answer every sample, unless it is a `CheckedModel` itself.
        """
        asked = self._asked(model)
        with frozen(asked.model), torch.no_grad():
            return torch.cat([asked(part) for part in images.split(self.batch_size)])

    def logits_at_once(self, images: Tensor, model: nn.Module | None = None) -> Tensor:
        """As `logits`, but no batch is asked again in halves: NaN throughout where one fails."""
        asked = self._asked(model)
        per_sample, asked.per_sample = asked.per_sample, False
        try:
            return self.logits(images, asked)
        except ModelFailure as error:
            if not may_concern_a_sample(error):
                raise
            return images.new_full((len(images), self.num_classes), torch.nan)
        finally:
            asked.per_sample = per_sample

    def own_logits(self) -> Tensor:
        """Logits (N, K) of the samples as they are; asked once."""
        return self.once("own logits", lambda: self.logits(self.images))

    def logits_with_gradients(self) -> Tensor:
        """Logits (N, K) of the samples, detached, as an attack asks: with gradients recorded. Asked once."""

        def ask() -> Tensor:
            with frozen(self.model):
                parts = self.images.split(self.batch_size)
                return torch.cat([asked_with_gradients(self.queried, part) for part in parts])

        return self.once("logits with gradients", ask)

    def distance(self, logits: Tensor, other: Tensor) -> Tensor:
        """How far apart two answers (N, K) to the same images are, (N,): after normalisation, in l2.

        If `strict`, in l-infinity and relative to `logits`, so that a change of scale counts too. Infinite
        where one of the two is no answer, 0 where both are none.
        """
        if self.strict:
            size = logits.double().abs().amax(1).clamp_min(torch.finfo(torch.float64).tiny)
            apart: Tensor = (logits.double() - other.double()).abs().amax(1) / size
        else:
            apart = (normalised(logits) - normalised(other)).norm(dim=1)
        one, two = answered(logits), answered(other)
        return apart.where(one & two, 0.0).where(one == two, torch.inf)

    def predicted(self, images: Tensor, model: nn.Module | None = None) -> Tensor:
        """Classes (N,) of `images` (N, C, H, W), `NO_ANSWER` where there is none."""
        return _classes(self.logits(images, model))

    def correct(self) -> Tensor:
        """Which samples are classified correctly as they are, bool (N,)."""
        return _classes(self.own_logits()) == self.labels


def _classes(logits: Tensor) -> Tensor:
    return logits.argmax(1).where(answered(logits), NO_ANSWER)
