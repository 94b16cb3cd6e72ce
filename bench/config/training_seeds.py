"""Training seeds as they are asked for: so many, or by name. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from ..._errors import InvalidArgument


def chosen_seeds(seeds: int | Sequence[int] | None) -> tuple[int, ...] | None:
    """Training seeds 0 .. seeds - 1, or those named, ascending; None for None.

    Raises
    ------
    InvalidArgument
        For none, or a negative one.
    """
    if seeds is None:
        return None
    if isinstance(seeds, int):
        if seeds < 1:
            raise InvalidArgument(f"--seeds must be at least 1, not {seeds}")
        return tuple(range(seeds))
    if not seeds or min(seeds) < 0:
        raise InvalidArgument(f"training seeds are whole numbers from 0, not {list(seeds)}")
    return tuple(sorted(set(seeds)))
