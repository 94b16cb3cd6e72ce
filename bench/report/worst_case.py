"""Robust accuracy from above: which samples no attack of a norm breaks, sample by sample. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..records.latest import Entry, entry
from ..records.predictions import unanswered
from ..records.record import TRANSFER, UNASKED, Record

WORST_CASE = "worst-case"
"""What the summary calls this in place of a threat."""
_Outcomes = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class WorstCase:
    """What is left of the samples of one network at a strength.

    Attributes
    ----------
    robust
        Which no attack breaks, bool (samples,).
    no_answer
        Which are broken because the model gave no answer, and by no wrong class of any attack, bool
        (samples,).
    seed
        The training seed of the network.
    """

    robust: NDArray[np.bool_]
    no_answer: NDArray[np.bool_]
    seed: int


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


def worst_cases(records: list[Record]) -> Iterator[tuple[Entry, str, str, dict[float, list[WorstCase]]]]:
    """Worst cases over all attacks of one norm; none for a seed that lacks one of them.

    An example inside a smaller ball lies inside every larger one, so samples broken at a smaller strength
    count as broken at the larger strengths too. At each strength, every attack must have been run that any
    model of the dataset was evaluated with; attacks through other solvers only where there is a solver.
    Submitted examples and replayed examples of other models count as well.

    Yields
    ------
    row, protocol, norm, found
        By strength, for each training seed in order, the `WorstCase`: of the same samples for all strengths
        and seeds of a row.
    """
    solved = {entry(record.cell) for record in records if record.cell.solver is not None}
    clean: dict[tuple[Entry, int], _Outcomes] = {}
    required: dict[tuple[Any, ...], set[tuple[str, bool]]] = defaultdict(set)
    attacks: dict[tuple[Any, ...], dict[int, dict[float, dict[str, _Outcomes]]]] = {}
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
            clean[entry(cell), cell.training_seed] = record.outcomes
        elif cell.norm is not None:
            seeds = attacks.setdefault((entry(cell), cell.protocol, cell.norm), {})
            grid = seeds.setdefault(cell.training_seed, {})
            grid.setdefault(cell.strength, {})[cell.threat] = record.outcomes
    for (row, protocol, norm), seeds in attacks.items():
        seeds = {seed: grid for seed, grid in seeds.items() if (row, seed) in clean}
        every_one = [o for grid in seeds.values() for by_threat in grid.values() for o in by_threat.values()]
        every_one += [clean[row, seed] for seed in seeds]
        samples = min((outcomes["correct"].shape[1] for outcomes in every_one), default=0)
        if not samples:
            continue
        found: dict[float, list[WorstCase]] = defaultdict(list)
        for seed, grid in sorted(seeds.items()):
            before = clean[row, seed]
            robust, not_wrong = before["correct"][:, :samples], _not_wrong(before)[:, :samples]
            for strength, by_threat in sorted(grid.items()):
                robust = worst_case([robust, *(o["correct"] for o in by_threat.values())])[None]
                not_wrong = worst_case([not_wrong, *map(_not_wrong, by_threat.values())])[None]
                every = required.get((row[0], protocol, norm, strength), ())
                asked = {threat for threat, solver in every if not solver or row in solved}
                if asked and by_threat.keys() >= asked:
                    found[strength].append(WorstCase(robust[0], not_wrong[0] & ~robust[0], seed))
        yield row, protocol, norm, found


def _not_wrong(outcomes: _Outcomes) -> NDArray[np.bool_]:
    """Where no wrong class was predicted, bool (draws, samples): the right one or none."""
    silent = unanswered(outcomes)
    return outcomes["correct"] | silent if silent.any() else outcomes["correct"]
