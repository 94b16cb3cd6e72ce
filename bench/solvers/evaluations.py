"""How many field evaluations a forward pass took, where images may be solved for together or apart."""

from __future__ import annotations

from collections.abc import Sequence

from .solver_call import State


def rows_of(state: State) -> int:
    """The length of the first axis of an initial state, of its first tensor; 1 where it has none."""
    first = state if not isinstance(state, tuple | list) else state[0]
    return first.shape[0] if first.ndim else 1


def evaluations_times_images(solves: Sequence[tuple[int, int]], images: int) -> int | None:
    """Field evaluations of one forward pass of `images`, times `images`; None without a solve.

    A solve counts for all images. Where a pass solves for parts of its batch, or for each image apart, one
    after the other, each solve counts for its part alone: a network has the same count however it loops.

    Parameters
    ----------
    solves
        Of each solve the rows of its state, see `rows_of`, and its evaluations.
    """
    if not solves:
        return None
    apart = [(rows, count) for rows, count in solves if rows != images]
    whole = sum(count for rows, count in solves if rows == images)
    if images > 1 and apart:
        rows = [rows for rows, _ in apart]
        if len(apart) % images == 0:  # one by one, with or without an axis for the batch
            return whole * images + sum(count for _, count in apart)
        if max(rows) < images and sum(rows) % images == 0:
            return whole * images + sum(rows * count for rows, count in apart)
    return sum(count for _, count in solves) * images
