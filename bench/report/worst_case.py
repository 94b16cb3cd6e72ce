"""Robust accuracy from above: which samples no attack of a norm breaks, sample by sample. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..records.latest import Entry, entry
from ..records.record import TRANSFER, UNASKED, Record

WORST_CASE = "worst-case"
"""What the summary calls this in place of a threat."""


def worst_case(outcomes: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Say which samples are robust: correct under every attack and in every draw.

    Parameters
    ----------
    outcomes
        At least one array `correct` of shape (draws, samples); include the clean one, since a
        misclassified clean sample counts as broken.

    Returns
    -------
    robust
        Shape (min samples,): the arrays are aligned on their first test samples.
    """
    samples = min(outcome.shape[1] for outcome in outcomes)
    robust = np.ones(samples, bool)
    for outcome in outcomes:
        robust &= outcome[:, :samples].all(axis=0)
    return robust


def worst_cases(
    records: list[Record],
) -> Iterator[tuple[Entry, str, str, dict[float, list[NDArray[np.bool_]]]]]:
    """Worst cases over all attacks of one norm; none for a seed that lacks one of them.

    An example inside a smaller ball lies inside every larger one, so samples broken at a smaller strength
    count as broken at the larger strengths too. At each strength, every attack must have been run that any
    model of the dataset was evaluated with; attacks through other solvers only where there is a solver.
    Submitted examples and replayed examples of other models count as well.

    Yields
    ------
    row, protocol, norm, robust
        By strength, for each training seed in order, which samples are robust, each of shape (samples,): the
        same samples for all strengths and seeds of a row.
    """
    solved = {entry(record.cell) for record in records if record.cell.solver is not None}
    clean: dict[tuple[Entry, int], NDArray[np.bool_]] = {}
    required: dict[tuple[Any, ...], set[tuple[str, bool]]] = defaultdict(set)
    attacks: dict[tuple[Any, ...], dict[int, dict[float, dict[str, NDArray[np.bool_]]]]] = {}
    for record in records:
        cell = record.cell
        if cell.kind != "accuracy":
            continue
        if cell.norm is not None and cell.family not in UNASKED:
            budget = (cell.dataset, cell.protocol, cell.norm, cell.strength)
            required[budget].add((cell.threat, cell.family == TRANSFER))
        if record.status != "ok":
            continue
        if cell.family == "clean":
            clean[entry(cell), cell.training_seed] = record.outcomes["correct"]
        elif cell.norm is not None:
            seeds = attacks.setdefault((entry(cell), cell.protocol, cell.norm), {})
            grid = seeds.setdefault(cell.training_seed, {})
            grid.setdefault(cell.strength, {})[cell.threat] = record.outcomes["correct"]
    for (row, protocol, norm), seeds in attacks.items():
        seeds = {seed: grid for seed, grid in seeds.items() if (row, seed) in clean}
        arrays = [a for grid in seeds.values() for by_threat in grid.values() for a in by_threat.values()]
        samples = min([a.shape[1] for a in arrays] + [clean[row, seed].shape[1] for seed in seeds], default=0)
        if not samples:
            continue
        found: dict[float, list[NDArray[np.bool_]]] = defaultdict(list)
        for seed, grid in sorted(seeds.items()):
            robust = clean[row, seed][:, :samples]
            for strength, by_threat in sorted(grid.items()):
                robust = worst_case([robust, *by_threat.values()])[None, :]
                every = required.get((row[0], protocol, norm, strength), ())
                asked = {threat for threat, solver in every if not solver or row in solved}
                if asked and by_threat.keys() >= asked:
                    found[strength].append(robust[0])
        yield row, protocol, norm, found
