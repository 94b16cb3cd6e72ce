"""What stands between the harness and a model: every query is counted and every answer checked."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..._errors import ContractBroken, ModelFailure, NonFinite, RobustodeError
from ...attacks.core.memory import Parts, out_of_memory
from ...models import count_nfe

PATIENCE = 256
"""Checks after which a GPU is waited for, so that what is still to be looked at stays small."""


class QueriedModel(nn.Module):
    """A model behind a counter that trusts no answer.

    Attributes
    ----------
    forwards, backwards
        Samples passed forwards and backwards so far.
    evaluations
        Field evaluations times samples so far; None for a model that does not count.
    parts
        How many samples at a time it is asked about where only predictions are wanted.

    Notes
    -----
    A query raises `ModelFailure` when the model raises, `ContractBroken` when its output is not
    (N, K) floating point, and `NonFinite` for logits or input gradients that are NaN or infinite:
    neither is ever an answer. A `patient` one looks at values only when asked to `settle`, or after
    `PATIENCE` checks, so that a GPU need not be waited for at every query.
    """

    def __init__(self, model: nn.Module, num_classes: int, *, patient: bool = False) -> None:
        super().__init__()
        self.model = model
        self.num_classes = num_classes
        self.patient = patient
        self.parts = Parts()
        self._doubts: list[tuple[Tensor, Callable[[], None]]] = []
        self.forwards = 0
        self.backwards = 0
        self.evaluations: int | None = None

    @property
    def nfe(self) -> float | None:
        """Mean field evaluations per forward pass."""
        return None if self.evaluations is None or not self.forwards else self.evaluations / self.forwards

    def meter(self) -> tuple[int, int, int]:
        """Samples passed forwards and backwards so far, and field evaluations times samples."""
        return self.forwards, self.backwards, self.evaluations or 0

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of `images` (N, C, H, W)."""
        count = len(images)
        if images.requires_grad:
            images.register_hook(self._check_gradient)
        logits = ask_model(self.model, images, self.num_classes)
        self._demand(logits.detach(), "logits are")
        self.forwards += count
        evaluations = count_nfe(self.model)
        if evaluations is not None:
            self.evaluations = (self.evaluations or 0) + evaluations * count
        if logits.requires_grad:
            logits.register_hook(self._count_backward)
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)

    def _check_gradient(self, gradient: Tensor) -> None:
        self._demand(gradient, "the input gradient is")

    def _demand(self, values: Tensor, what: str) -> None:
        """Doubt `values` (N, ...) until they are known to be finite."""
        finite = values.isfinite()
        if self.patient:
            finite = _by_sample(finite)  # small, for it is kept
        self.doubt(finite, lambda: _refuse(_by_sample(finite), what))

    def doubt(self, fine: Tensor, refuse: Callable[[], None]) -> None:
        """Call `refuse`, which raises, unless all of `fine`, bool, is true: now, or when settled."""
        if not self.patient:
            if not bool(fine.all()):
                refuse()
            return
        self._doubts.append((fine, refuse))
        if len(self._doubts) >= PATIENCE:
            self.settle()

    def settle(self) -> None:
        """Raise for the first check since the last call that was not fine, if there is one."""
        doubts, self._doubts = self._doubts, []
        if doubts and not bool(torch.cat([fine for fine, _ in doubts]).all()):
            for fine, refuse in doubts:
                if not bool(fine.all()):
                    refuse()


def call_model(model: nn.Module, images: Tensor, num_classes: int) -> Tensor:
    """Return what `ask_model` does, or raise `NonFinite` when these logits hold NaN or infinity."""
    logits = ask_model(model, images, num_classes)
    _refuse(logits.isfinite().all(1), "logits are")
    return logits


def _by_sample(finite: Tensor) -> Tensor:
    """Bool (N, ...) to (N,)."""
    return finite.view(len(finite), -1).all(1) if finite.ndim > 1 else finite


def _refuse(finite: Tensor, what: str) -> None:
    """Raise `NonFinite` unless all of `finite`, bool (N,), is true."""
    if not bool(finite.all()):
        raise NonFinite(f"{what} NaN or infinite for {int((~finite).sum())} of {len(finite)} samples")


def ask_model(model: nn.Module, images: Tensor, num_classes: int) -> Tensor:
    """Return the model's logits for a batch, or raise saying which part of the contract it broke.

    A model whose parameters are of another floating type is handed images of that type. The values are not
    looked at, so a GPU is not waited for.

    Raises
    ------
    ModelFailure
        The model raised.
    ContractBroken
        It returned something that is not a floating (N, K) tensor, or changed its input in place.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), images.dtype)
    images = images.to(dtype)
    version = None if images.is_inference() else images._version
    try:
        logits = model(images)
    except (RobustodeError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, RuntimeError) and out_of_memory(error):
            raise
        raise ModelFailure(
            f"the model raised {type(error).__name__}: {one_line(error)}{where(error)}"
        ) from error
    if version is not None and images._version != version:
        raise ContractBroken("the model changes its input in place: work on a copy of the images")
    if not isinstance(logits, Tensor):
        raise ContractBroken(f"the model returned {type(logits).__name__}, not a tensor of logits")
    if logits.shape != (len(images), num_classes):
        raise ContractBroken(
            f"the model returned shape {tuple(logits.shape)} for {len(images)} images, "
            f"not ({len(images)}, {num_classes})"
        )
    if not logits.is_floating_point():
        raise ContractBroken(f"the model returned {logits.dtype}, not floating-point logits")
    return logits


def where(error: BaseException) -> str:
    """The innermost line of the model's own code, as `` (mine.py:12)``; empty when there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = ("site-packages", str(Path(__file__).parents[1]))
    own = [frame for frame in frames if not any(part in frame.filename for part in outside)]
    return f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""


def one_line(error: BaseException, limit: int = 200) -> str:
    """The first non-empty line of an error's message, shortened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
