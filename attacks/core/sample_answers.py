"""A model that gives no answer for some samples: these are found, and the others of their batch go on.

A solver gives up on one image (torchdiffeq: ``underflow in dt``), or its logits are NaN. An adaptive solver
couples the samples of a batch, so one of them may take the others' answers along. The batch is therefore
asked again in halves, down to single samples, and the same goes for its gradient.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from ..._errors import ContractBroken, ModelFailure, NonFinite, RobustodeError, one_line
from .losses import answered
from .memory import out_of_memory
from .queried_model import QueriedModel
from .types import Model

PROGRAMMING_ERRORS = (
    TypeError,
    AttributeError,
    NameError,
    ImportError,
    OSError,
    NotImplementedError,
    MemoryError,
    SystemExit,
)
"""What a model raises because of its code or its machine, whatever the sample."""


def may_concern_a_sample(error: BaseException) -> bool:
    """Whether other samples may do without `error`: not an error in the code, of memory or of time."""
    if isinstance(error, NonFinite):
        return True
    if isinstance(error, RobustodeError):
        cause = error.__cause__
        own = isinstance(error, ModelFailure) and not isinstance(error, ContractBroken)
        return own and (cause is None or may_concern_a_sample(cause))
    if isinstance(error, TimeoutError):  # an `OSError`, by which a solver with a time limit gives up
        return True
    return isinstance(error, Exception) and not (
        isinstance(error, PROGRAMMING_ERRORS) or out_of_memory(error)
    )


class SampleAnswers(QueriedModel):
    """A `QueriedModel` that marks samples without an answer, where `QueriedModel` raises for their batch.

    Their logits are NaN, and their gradient is zero. A sample whose answer is finite and whose gradient is
    not has a gradient of zero too.

    Parameters
    ----------
    per_sample
        Whether to do so. Without, or when `deferred`, everything is as in `QueriedModel`.

    Attributes
    ----------
    has_answered
        Whether the model has answered for some sample. Until then, no answer for a whole batch is the
        failure of the model and not that of its samples.
    failure
        The first failure that was met; None without one.
    nonfinite_gradients
        How often a gradient was asked for and was NaN, infinite, or could not be had.

    Raises
    ------
    ModelFailure, NonFinite
        The model has given no answer, or no finite gradient, for any sample so far.
    """

    def __init__(
        self,
        model: Model,
        num_classes: int | None = None,
        *,
        deferred: bool = False,
        largest_batch: int | None = None,
        per_sample: bool = False,
    ) -> None:
        super().__init__(model, num_classes, deferred=deferred, largest_batch=largest_batch)
        self.per_sample = per_sample and num_classes is not None and not deferred
        self.has_answered = False
        self.nonfinite_gradients = 0
        self._has_gradient = False
        self._gave_up: set[bytes] = set()
        self.failure: ModelFailure | None = None

    # --- answers ----------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of `images` (N, C, H, W), NaN for a sample without an answer."""
        if not self.per_sample:
            return super().forward(images)
        logits = self._answers(images)
        has_answer = answered(logits.detach())
        if bool(has_answer.any()):
            self.has_answered = True
        elif len(images) and not self.has_answered and self.failure is not None:
            raise self.failure
        if images.requires_grad:
            own, cotangents = images.detach(), list[Tensor]()
            if logits.requires_grad:
                logits.register_hook(cotangents.append)
            images.register_hook(
                lambda gradient: self._settled(own, cotangents[-1], gradient.contiguous(), has_answer)
            )
        return logits

    def _answers(self, images: Tensor) -> Tensor:
        open_ = self._not_given_up(images)
        if open_ is None:
            return self._in_halves(images)
        nothing = self._no_answer(images)
        if not len(open_):
            return nothing
        logits = self._in_halves(images[open_])
        return nothing.to(logits.dtype).index_copy(0, open_, logits)

    def _in_halves(self, images: Tensor) -> Tensor:
        try:
            return self.answer(images)
        except ModelFailure as error:
            if not may_concern_a_sample(error):
                raise
            if self.failure is None:
                self.failure = type(error)(one_line(error))  # `error` holds on to the tensors of the try
        if len(images) == 1:
            self._gave_up.update(_digests(images))
            return self._no_answer(images)
        half = len(images) // 2
        return torch.cat([self._in_halves(part) for part in (images[:half], images[half:])])

    def _not_given_up(self, images: Tensor) -> Tensor | None:
        """The rows (n,) of `images` that the model has not failed at before; None for all of them."""
        if not self._gave_up:
            return None
        failed = torch.tensor([digest in self._gave_up for digest in _digests(images)], dtype=torch.bool)
        return (~failed).nonzero().flatten().to(images.device) if bool(failed.any()) else None

    def _no_answer(self, images: Tensor) -> Tensor:
        """Logits (n, K) of NaN that depend on `images` (n, C, H, W), so that they have a gradient."""
        assert self.num_classes is not None
        return (images.flatten(1)[:, :1] * 0 + torch.nan).expand(-1, self.num_classes)

    # --- gradients --------------------------------------------------------------------------------

    def _settled(self, images: Tensor, cotangent: Tensor, gradient: Tensor, has_answer: Tensor) -> Tensor:
        """`gradient` (n, C, H, W), asked again where it is not finite, zero where there is none."""
        if not bool(has_answer.all()):
            gradient = torch.where(_per_image(has_answer), gradient, 0)
        bad = (~_finite(gradient)).nonzero().flatten()
        if len(bad):
            again = self._pull_back(images[bad], cotangent[bad], asked=len(bad) == len(images))
            gradient = gradient.index_copy(0, bad, again.to(gradient))
        return self._zeroed(gradient, has_answer)

    def _zeroed(self, gradient: Tensor, has_answer: Tensor) -> Tensor:
        """`gradient`, zero where it is not finite, unless none has been finite for any sample so far."""
        finite = _finite(gradient)
        if bool((has_answer & finite).any()):
            self._has_gradient = True
        if bool(finite.all()):
            return gradient
        if not self._has_gradient:
            self.require_finite(gradient, "the input gradient is")
        self.nonfinite_gradients += int((~finite).sum())
        return torch.where(_per_image(finite), gradient, 0)

    def _pull_back(self, images: Tensor, cotangent: Tensor, *, asked: bool = False) -> Tensor:
        """The gradient of ``(logits * cotangent).sum()``, (n, C, H, W): NaN where there is none.

        `asked` says that these samples together have none.
        """
        gradient = torch.full_like(images, torch.nan)
        if not asked:
            try:
                with torch.enable_grad():
                    x = images.detach().requires_grad_(True)
                    (gradient,) = torch.autograd.grad(self.answer(x), x, cotangent)
            except Exception as error:
                if not may_concern_a_sample(error):
                    raise
        bad = (~_finite(gradient)).nonzero().flatten()
        if len(bad) and (asked or len(images) > 1):
            whole = len(bad) == len(images)
            parts = bad.split(max(1, len(bad) // 2)) if whole else (bad,)
            for part in parts:
                gradient[part] = self._pull_back(images[part], cotangent[part]).to(gradient)
        return gradient

    def differentiate(
        self, loss: Callable[[Tensor], Tensor], logits: Tensor, value: Tensor, x: Tensor
    ) -> Tensor:
        """As `QueriedModel.differentiate`; a backward pass that raises is asked again in halves."""
        try:
            return super().differentiate(loss, logits, value, x)
        except Exception as error:
            if not self.per_sample or not may_concern_a_sample(error) or isinstance(error, NonFinite):
                raise
            failure = error
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_(True)
            (cotangent,) = torch.autograd.grad(loss(leaf).sum(), leaf)
        try:
            nothing = torch.full_like(x.detach(), torch.nan)
            return self._settled(x.detach(), cotangent, nothing, answered(logits.detach()))
        except NonFinite:
            raise failure from None

    def pull_back(self, x: Tensor, cotangent: Tensor) -> Tensor:
        """As `QueriedModel.pull_back`; a backward pass that raises is asked again in halves."""
        if not self.per_sample:
            return super().pull_back(x, cotangent)
        with torch.no_grad():
            has_answer = answered(self(x))
        gradient = torch.zeros_like(x)
        rows = has_answer.nonzero().flatten()
        if len(rows):
            gradient[rows] = self._pull_back(x[rows], cotangent[rows])
        return self._zeroed(gradient, has_answer)

    def retry(self, error: BaseException) -> bool:
        """Whether an attack that raised `error` may begin again, each gradient then being asked apart."""
        if not self.per_sample or self.recompute or not may_concern_a_sample(error):
            return False
        self.recompute = True
        return True


def _finite(gradient: Tensor) -> Tensor:
    return gradient.isfinite().flatten(1).all(1)


def _per_image(mask: Tensor) -> Tensor:
    return mask.view(-1, 1, 1, 1)


def _digests(images: Tensor) -> list[bytes]:
    """What tells one image from another, for each of `images` (n, C, H, W)."""
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in images.detach().cpu().numpy()]
