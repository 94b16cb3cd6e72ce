"""A batch that does not fit into memory is asked in halves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_SIGNS = ("can't allocate memory", "cuda error: out of memory", "alloc_failed")
"""How a RuntimeError says it: torch on a CPU, the CUDA runtime, cuBLAS and cuDNN."""
_LARGEST: ContextVar[int | None] = ContextVar("largest part", default=None)


@contextmanager
def at_most(samples: int) -> Iterator[None]:
    """Let all `Parts` that are made in the block ask of so many samples at once."""
    token = _LARGEST.set(samples)
    try:
        yield
    finally:
        _LARGEST.reset(token)


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on a GPU or on a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)


class Parts:
    """Calls a function on a batch, in parts where the whole does not fit into memory.

    Attributes
    ----------
    size
        Samples in the largest part that is tried, see `at_most`; None for no limit. Where memory runs out it
        is halved, and remembered, so that each size fails once.
    """

    def __init__(self) -> None:
        self.size: int | None = _LARGEST.get()

    def __call__(self, function: Callable[..., tuple[Tensor, ...]], *batch: Tensor) -> tuple[Tensor, ...]:
        """``function(*batch)``, its results joined along the first axis.

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
            stop = min(start + (self.size or count), count)
            full = False
            try:
                done.append(function(*(tensor[start:stop] for tensor in batch)))
                start = stop
            except (MemoryError, RuntimeError) as error:
                if stop - start == 1 or not out_of_memory(error):
                    raise
                full = True
            if full:  # outside the handler: the exception holds on to every tensor of the failed try
                self.halve(stop - start)
        if len(done) == 1:
            return done[0]
        return tuple(torch.cat(column) for column in zip(*done, strict=True))

    def halve(self, count: int) -> None:
        """Remember that `count` samples do not fit: half as many are the most that is tried from now on."""
        self.size = count // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
