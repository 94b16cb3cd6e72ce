"""Checks that are put off on a GPU, and made at once where a sample has no answer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from ..._errors import ModelFailure

Evaluate = TypeVar("Evaluate", bound=Callable[..., Any])


def with_deferred_checks(evaluate: Evaluate) -> Evaluate:
    """`evaluate`, given ``deferred=True`` on a GPU first, which need not be waited for at every query.

    Which samples have no answer is known at once only: where the model fails, all is done again so.
    """

    @functools.wraps(evaluate)
    def evaluate_on(*args: Any, device: Any, **keywords: Any) -> Any:
        if device.type != "cpu":
            with suppress(ModelFailure):
                return evaluate(*args, device=device, deferred=True, **keywords)
        return evaluate(*args, device=device, **keywords)

    return evaluate_on  # type: ignore[return-value]
