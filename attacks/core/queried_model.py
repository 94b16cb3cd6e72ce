"""The model as attacks and the harness ask it: counted, checked, in batches that fit, in two precisions.

A model has one such wrapper: an attack that is handed a `QueriedModel` uses it as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from ..._errors import TimeLimitExceeded
from .double_precision import in_double
from .memory import out_of_memory
from .model_call import ask_model, raise_nonfinite
from .recomputed_gradient import RecomputedGradient
from .torch_settings import KeptSettings
from .types import Loss, Model

MAX_PENDING = 256
"""Deferred checks after which a GPU is waited for, so that what they hold stays small."""


class QueriedModel(nn.Module):
    """A model whose queries are counted, whose answers are checked, and whose batches fit into memory.

    Parameters
    ----------
    model
        A module, or any function from images (N, C, H, W) to logits (N, K).
    num_classes
        K. With it every answer is held to the contract of `ask_model`. None for any function: then only NaN
        and infinity are refused, and its exceptions pass unchanged.
    deferred
        Check values only in `raise_pending`, or after `MAX_PENDING` checks, so that a GPU need not be
        waited for at every query. Otherwise they are checked in the query itself.
    largest_batch
        Samples in the largest batch that is asked at once by the methods that split; None for no limit.

    Attributes
    ----------
    forwards, backwards
        Samples passed forwards and backwards so far.
    evaluations
        Field evaluations times samples so far; None while no solver was seen.
    largest_batch
        As above. Where memory runs out it is halved, and stays so: each size fails once.

    Raises
    ------
    ModelFailure, ContractBroken
        In a query: as `ask_model`.
    NonFinite
        Logits or an input gradient are NaN or infinite: neither is ever an answer.
    """

    def __init__(
        self,
        model: Model,
        num_classes: int | None = None,
        *,
        deferred: bool = False,
        largest_batch: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.num_classes = num_classes
        self.deferred = deferred
        self.largest_batch = largest_batch
        self.forwards = 0
        self.backwards = 0
        self.evaluations: int | None = None
        self._counted = 0
        self.recompute = False
        self._pending: list[tuple[Tensor, Callable[[], None]]] = []

    @classmethod
    def of(cls, model: Model, *, deferred: bool = False) -> QueriedModel:
        """`model` itself where it is one already, else a new one around it with no contract to hold."""
        return model if isinstance(model, QueriedModel) else cls(model, deferred=deferred)

    # --- counts -----------------------------------------------------------------------------------

    @property
    def nfe(self) -> float | None:
        """Mean field evaluations per forward pass, over the samples for which they were counted."""
        return None if self.evaluations is None or not self._counted else self.evaluations / self._counted

    def meter(self) -> tuple[int, int, int]:
        """Samples passed forwards and backwards so far, and field evaluations times samples."""
        return self.forwards, self.backwards, self.evaluations or 0

    def field_evaluations(self) -> int | None:
        """Field evaluations of the last forward pass times its samples; None, unless a subclass can tell."""
        return None

    def train(self, mode: bool = True) -> QueriedModel:
        """Set this wrapper's own flag: in which mode the model is asked is not for an attack to say."""
        self.training = mode
        return self

    # --- queries ----------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of `images` (N, C, H, W) in one batch, differentiable where the images are."""
        if images.requires_grad:
            images.register_hook(self.checked_gradient)
        return self.answer(images)

    def checked_gradient(self, gradient: Tensor) -> Tensor:
        """The input gradient (N, C, H, W), finite and in the layout of images, whatever the model's is."""
        self.require_finite(gradient, "the input gradient is")
        return gradient.contiguous()

    def answer(self, images: Tensor) -> Tensor:
        """What `forward` returns; the gradient is not checked.

        Without a graph where the images require no gradient, whatever the parameters require.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and images.requires_grad):
            logits = self.ask(images)
        self.require_finite(logits.detach(), "logits are")
        self.forwards += len(images)
        evaluations = self.field_evaluations()
        if evaluations is not None:
            self.evaluations = (self.evaluations or 0) + evaluations
            self._counted += len(images)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)
        return logits

    def ask(self, images: Tensor) -> Tensor:
        """Logits (N, K) of `images` (N, C, H, W) in one batch, held to the contract of `ask_model`."""
        if self.num_classes is None:
            with KeptSettings(self.model):
                logits: Tensor = self.model(images)
            return logits
        return ask_model(cast(nn.Module, self.model), images, self.num_classes)

    def _count_backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)

    def logits(self, images: Tensor) -> Tensor:
        """Logits (N, K) of `images` (N, C, H, W), without a graph, in batches that fit."""
        with torch.no_grad():
            (logits,) = self.in_batches(lambda x: (self(x),), images)
        return logits

    def gradient(self, rows: Tensor, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (n, K) at `x` (n, C, H, W), values (n,) of `loss`, and its gradient of the shape of `x`.

        One forward and one backward pass, in batches that fit.
        """

        def differentiate(x: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                x = x.detach().requires_grad_(True)
                logits = self(x)
                value = loss(logits, rows)
                gradient = self.differentiate(lambda logits: loss(logits, rows), logits, value, x)
            return logits.detach(), value.detach(), gradient

        logits, value, gradient = self.in_batches(differentiate, x, rows)
        return logits, value, gradient

    def differentiate(
        self, loss: Callable[[Tensor], Tensor], logits: Tensor, value: Tensor, x: Tensor
    ) -> Tensor:
        """The gradient of ``value = loss(logits)`` by the images `x` (n, C, H, W)."""
        (gradient,) = torch.autograd.grad(value.sum(), x)
        return gradient

    def pull_back(self, x: Tensor, cotangent: Tensor) -> Tensor:
        """The gradient by `x` (n, C, H, W) of its logits times `cotangent` (n, K), summed."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self(x), x, cotangent)
        return gradient

    def retry(self, error: BaseException) -> bool:
        """Whether an attack that raised `error` may begin again: never, the model would answer alike."""
        return False

    def gradient_in_double(self, rows: Tensor, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor] | None:
        """Values (n,) of `loss` and its gradient, both float64, as of `gradient` for a model in float64.

        None where the model fails in double precision.
        """
        self.raise_pending()
        try:
            with in_double(self.model):
                _, value, gradient = self.gradient(rows, x.double(), loss)
            self.raise_pending()
        except TimeLimitExceeded:
            raise
        except Exception:  # whatever it is, the same query in the model's own precision shows it again
            return None
        return value.double(), gradient

    def differentiable(self, images: Tensor) -> Tensor:
        """Logits (N, K) to be differentiated by the caller, in batches of at most `largest_batch`.

        Where there are several, each is asked again for its gradient, so that one graph is held at a time;
        and so is a single one after `recompute`.
        """
        if not images.requires_grad:
            return self.logits(images)
        if self.recompute:
            return cast(Tensor, RecomputedGradient.apply(images, self))  # type: ignore[no-untyped-call]
        if self.largest_batch is None or len(images) <= self.largest_batch:
            return cast(Tensor, self(images))
        return cast(Tensor, RecomputedGradient.apply(images, self))  # type: ignore[no-untyped-call]

    # --- batches that fit -------------------------------------------------------------------------

    def in_batches(self, function: Callable[..., tuple[Tensor, ...]], *batch: Tensor) -> tuple[Tensor, ...]:
        """``function(*batch)``, its results joined along the first axis, in batches that fit into memory.

        Parameters
        ----------
        function
            Maps tensors of n rows each to tensors of n rows each, row by row.
        batch
            Tensors of as many rows as one another, at least one.

        Raises
        ------
        MemoryError, torch.OutOfMemoryError, RuntimeError
            When one sample alone is too large.
        """
        count, start = len(batch[0]), 0
        done: list[tuple[Tensor, ...]] = []
        while start < count:
            stop = min(start + (self.largest_batch or count), count)
            full = False
            try:
                done.append(function(*(tensor[start:stop] for tensor in batch)))
                start = stop
            except (MemoryError, RuntimeError) as error:
                if stop - start == 1 or not out_of_memory(error):
                    raise
                full = True
            if full:  # outside the handler: the exception holds on to every tensor of the failed try
                self.halve_batch(stop - start)
        if len(done) == 1:
            return done[0]
        return tuple(torch.cat(column) for column in zip(*done, strict=True))

    def halve_batch(self, count: int) -> None:
        """Remember that `count` samples do not fit: half as many are the most that is tried from now on."""
        self.largest_batch = count // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # --- checks -----------------------------------------------------------------------------------

    def require_finite(self, values: Tensor, what: str) -> None:
        """Require `values` (N, ...) to be finite, see `require`; `what` is such as "logits are"."""
        finite = values.isfinite()
        if self.deferred:
            finite = _by_sample(finite)  # small, since it is stored
        self.require(finite, lambda: raise_nonfinite(_by_sample(finite), what))

    def require(self, condition: Tensor, refuse: Callable[[], None]) -> None:
        """Call `refuse`, which raises, unless all of `condition`, bool, is true: now, or when deferred."""
        if not self.deferred:
            if not bool(condition.all()):
                refuse()
            return
        self._pending.append((condition, refuse))
        if len(self._pending) >= MAX_PENDING:
            self.raise_pending()

    def raise_pending(self) -> None:
        """Raise for the first deferred check since the last call that failed, if there is one."""
        pending, self._pending = self._pending, []
        if pending and not bool(torch.cat([condition for condition, _ in pending]).all()):
            for condition, refuse in pending:
                if not bool(condition.all()):
                    refuse()


def _by_sample(finite: Tensor) -> Tensor:
    """Bool (N, ...) to (N,)."""
    return finite.flatten(1).all(1) if finite.ndim > 1 else finite
