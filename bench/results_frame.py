"""A results folder as one DataFrame, with a line for each sample that was asked."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .._errors import DataUnavailable, InvalidArgument, RecordError, UnknownName
from .._registry import unknown_name
from .records.adversarial_examples import STEPS
from .records.headline import headline_of
from .records.latest import Entry, current, entry
from .records.predictions import NO_ANSWER, unanswered
from .records.record import Cell, Record
from .records.store import Store
from .report.certificates import CERTIFICATE, NORMS, has_radii, radii
from .report.worst_case import WORST_CASE, worst_cases

OUTCOMES = ("correct", "misclassified", "no answer")
"""What ``outcome`` says of a sample under a threat."""
_TEXTS = ("dataset", "model", "recipe", "protocol", "threat", "norm")


def load_results(
    folder: str | Path,
    *,
    models: str | Collection[str] | None = None,
    threats: str | Collection[str] | None = None,
) -> pd.DataFrame:
    """Read the stored records of a results folder as a table with one line per sample.

    The records are those that the report shows. No model is needed and none is asked.

    Parameters
    ----------
    folder
        A results folder, such as ``results/digits``.
    models, threats
        Names of models, and of threats, norms (``l2``) or ``worst-case``, to read these alone; by default
        all. A large folder has millions of lines.

    Returns
    -------
    pandas.DataFrame
        One line for each model, training seed, threat, strength, draw and sample:

        - ``dataset, model, recipe, protocol, threat, norm``: as in ``summary.csv``, as categories. The threat
          ``worst-case`` is the worst over all attacks of a norm; ``lipschitz`` and ``smoothing`` are
          certificates.
        - ``seed``, ``strength``, ``draw``: the training seed, the strength in pixel units, the repetition of
          a random threat.
        - ``sample``: the sample's position in the test set, from 0.
        - ``outcome``: ``correct``, ``misclassified`` or ``no answer``; missing for a certificate.
        - ``misclassified_as``: the class that was predicted instead; missing where it was the right one or
          none, and for worst cases.
        - ``distance``: the norm of the stored perturbation that broke the sample, in pixel units. NaN where
          none is stored: one adversarial example per sample is, at the reported strength of each norm.
        - ``bound``: the sample's certified radius in the norm of the line, in pixel units; 0 where it is
          misclassified, NaN without a certificate. The sample is certified where ``bound > strength``.

        ``attrs["failures"]`` has a line for each cell that failed and so has no samples.

    Raises
    ------
    InvalidArgument, UnknownName
        When the folder holds no records, or none of such a name.

    Warns
    -----
    UserWarning
        When files of the folder cannot be read, or cells failed.

    Examples
    --------
    >>> frame = load_results("results/digits", models="ch-node", threats=["clean", "l2"])
    ... # doctest: +SKIP
    >>> frame.query("threat == 'worst-case'").groupby("strength")["outcome"].value_counts()
    ... # doctest: +SKIP
    """
    folder = Path(folder)
    store = Store(folder)
    store.require_records()
    records, problems = store.load()
    used, _ = current(records, headline_of(folder, records).preferred)
    failures = [f"{r.cell.label()}: {r.error or r.status}" for r in used if r.status != "ok"]
    asked = _chosen("model", models, {r.cell.model for r in used})
    found = list(_lines(used, None if asked is None else set(asked)))
    known = {name for lines in found for name in (lines.texts["threat"], lines.texts["norm"]) if name}
    wanted = _chosen("threat", threats, known)
    chosen = [
        lines for lines in found if wanted is None or {lines.texts["threat"], lines.texts["norm"]} & wanted
    ]
    frame = _frame(chosen)
    _add_distances(frame, chosen, store, used)
    frame.attrs["failures"] = failures
    lost = [f"{folder}: {len(problems)} records cannot be read (first: {problems[0]})"] if problems else []
    lost += [f"{folder}: {len(failures)} cells failed (first: {failures[0]})"] if failures else []
    for line in lost:
        warnings.warn(line, UserWarning, stacklevel=2)
    return frame


@dataclass(frozen=True, kw_only=True)
class _Lines:
    """The lines of one cell, of a certificate or of a worst case: arrays (draws, samples)."""

    texts: dict[str, str | None]
    seed: int
    strength: float
    outcome: NDArray[np.int8]
    classes: NDArray[np.int16]
    bound: NDArray[np.float64]
    cell: Cell | None = None


def _chosen(kind: str, names: str | Collection[str] | None, known: Collection[str]) -> set[str] | None:
    """The names asked for, None for all; raises `UnknownName` for one that the folder does not have."""
    if names is None:
        return None
    asked = [names] if isinstance(names, str) else list(names)
    for name in asked:
        if name not in known:
            raise unknown_name(kind, str(name), sorted(known))
    if not asked:
        raise InvalidArgument(f"{kind}s names no {kind}: leave it out for all")
    return set(asked)


def _lines(used: list[Record], models: Collection[str] | None) -> Iterator[_Lines]:
    good = [r for r in used if r.status == "ok" and (models is None or r.cell.model in models)]
    certificates = {(entry(r.cell), r.cell.training_seed): r for r in good if has_radii(r, CERTIFICATE)}

    def bound(row: Entry, seed: int, norm: str | None, shape: tuple[int, ...]) -> NDArray[np.float64]:
        found = np.full(shape, np.nan)
        if norm in NORMS and (record := certificates.get((row, seed))) is not None:
            known = radii(record, str(norm))[: shape[1]]
            found[:, : len(known)] = known
        return found

    for record in good:
        cell, row = record.cell, entry(record.cell)
        texts = _texts(row, cell.protocol, cell.threat, cell.norm)
        if cell.kind == "accuracy":
            correct = record.outcomes["correct"]
            classes = np.full(correct.shape[::-1], NO_ANSWER, np.int16)
            classes[~correct.T] = record.outcomes["misclassified_as"]
            yield _Lines(
                texts=texts,
                seed=cell.training_seed,
                strength=cell.strength,
                outcome=_outcome(correct, unanswered(record.outcomes)),
                classes=np.ascontiguousarray(classes.T),
                bound=bound(row, cell.training_seed, cell.norm, correct.shape),
                cell=cell,
            )
        elif has_radii(record):
            radius = np.asarray(record.outcomes["radius"], np.float64)[None]
            yield _Lines(
                texts={**texts, "norm": "l2"},
                seed=cell.training_seed,
                strength=cell.strength,
                outcome=np.full(radius.shape, -1, np.int8),
                classes=np.full(radius.shape, NO_ANSWER, np.int16),
                bound=radius,
            )
    # An attack that another model was asked is required of this one: all models are looked at.
    for row, protocol, norm, found in worst_cases(used):
        for strength, worst in found.items() if models is None or row[1] in models else ():
            for each in worst:
                robust = each.robust[None]
                yield _Lines(
                    texts=_texts(row, protocol, WORST_CASE, norm),
                    seed=each.seed,
                    strength=strength,
                    outcome=_outcome(robust, each.no_answer[None]),
                    classes=np.full(robust.shape, NO_ANSWER, np.int16),
                    bound=bound(row, each.seed, norm, robust.shape),
                )


def _texts(row: Entry, protocol: str, threat: str, norm: str | None) -> dict[str, str | None]:
    return dict(zip(_TEXTS, (*row, protocol, threat, norm), strict=True))


def _outcome(correct: NDArray[np.bool_], silent: NDArray[np.bool_]) -> NDArray[np.int8]:
    return np.where(correct, 0, np.where(silent, 2, 1)).astype(np.int8)


def _frame(lines: list[_Lines]) -> pd.DataFrame:
    shapes = [each.outcome.shape for each in lines]
    counts = [draws * samples for draws, samples in shapes]

    def joined(parts: Iterable[NDArray[Any]], dtype: Any) -> NDArray[Any]:
        return np.concatenate([part.ravel() for part in parts] or [np.empty(0)]).astype(dtype, copy=False)

    columns: dict[str, Any] = {}
    for name in _TEXTS:
        values = [each.texts[name] for each in lines]
        categories = sorted({value for value in values if value is not None})
        codes = [-1 if value is None else categories.index(value) for value in values]
        columns[name] = pd.Categorical.from_codes(
            np.repeat(np.array(codes, int), counts), pd.Index(categories)
        )
    classes = joined((each.classes for each in lines), np.int16)
    columns |= {
        "seed": np.repeat(np.array([each.seed for each in lines], np.int32), counts),
        "strength": np.repeat(np.array([each.strength for each in lines], float), counts),
        "draw": joined((np.repeat(np.arange(d), s) for d, s in shapes), np.int16),
        "sample": joined((np.tile(np.arange(s), d) for d, s in shapes), np.int32),
        "outcome": pd.Categorical.from_codes(joined((e.outcome for e in lines), np.int8), pd.Index(OUTCOMES)),
        "misclassified_as": pd.arrays.IntegerArray(classes, classes == NO_ANSWER),
        "distance": np.full(sum(counts), np.nan),
        "bound": joined((each.bound for each in lines), float),
    }
    order = ["dataset", "model", "recipe", "seed", "protocol", "threat", "norm", "strength"]
    return pd.DataFrame({name: columns[name] for name in [*order, *columns]})


def _add_distances(frame: pd.DataFrame, lines: list[_Lines], store: Store, used: list[Record]) -> None:
    """The norms of stored perturbations, for the attack that each belongs to and for the worst case."""
    distance = frame["distance"].to_numpy(copy=True)
    starts = np.cumsum([0, *(each.outcome.size for each in lines)])
    mine = {each.cell.key(): start for each, start in zip(lines, starts[:-1], strict=True) if each.cell}
    places: dict[tuple[str, str], dict[int, int] | None] = {}
    smallest: dict[tuple[Any, ...], NDArray[np.float64]] = {}
    models = {each.texts["model"] for each in lines}
    for record in used:
        cell = record.cell
        if cell.model not in models or "adversarial" not in record.card or cell.norm not in NORMS:
            continue
        try:
            examples = store.get_examples(cell)
        except (OSError, RecordError):
            continue
        where = (cell.dataset, cell.index_sha256)
        if where not in places:
            places[where] = _positions(*where)
        known, samples = places[where], record.outcomes["correct"].shape[1]
        norms = _norms(examples.steps / STEPS, cell.norm)
        worst = smallest.setdefault(_network(cell), np.full(samples, np.nan))
        for index, norm in zip(examples.index.tolist(), norms.tolist(), strict=True):
            at: int = int(index) if known is None else known.get(int(index), int(samples))
            if at < samples:
                draw = int(np.argmin(record.outcomes["correct"][:, at]))  # the first that broke it
                if cell.key() in mine:
                    distance[mine[cell.key()] + draw * samples + at] = norm
                if at < len(worst):
                    worst[at] = np.fmin(worst[at], norm)
    for each, start in zip(lines, starts[:-1], strict=True):
        row = (each.texts["dataset"], each.texts["model"], each.texts["recipe"], each.seed)
        key = (*row, each.texts["protocol"], each.texts["norm"], each.strength)
        if each.texts["threat"] == WORST_CASE and (worst_of := smallest.get(key)) is not None:
            count = min(each.outcome.size, len(worst_of))
            broken = each.outcome[0, :count] != 0
            distance[start : start + count][broken] = worst_of[:count][broken]
    frame["distance"] = distance


def _network(cell: Cell) -> tuple[Any, ...]:
    return (*entry(cell), cell.training_seed, cell.protocol, cell.norm, cell.strength)


def _norms(perturbations: NDArray[np.float64], norm: str) -> NDArray[np.float64]:
    pixels = tuple(range(1, perturbations.ndim))
    if norm == "linf":
        return np.asarray(np.abs(perturbations).max(pixels, initial=0.0))
    return np.asarray(np.sqrt((perturbations**2).sum(pixels)))


def _positions(dataset: str, index_sha256: str) -> dict[int, int] | None:
    """By a sample's number in its source its position in the test set; None where they are the same.

    Empty where the dataset is not at hand: then no stored perturbation can be matched to its sample.
    """
    from .data import DATASETS, load_data

    try:
        if not DATASETS.get(dataset).test:  # a test set of its own keeps its order
            return None
        data = load_data(dataset)
    except (UnknownName, DataUnavailable):
        return {}
    if data.index_sha256 != index_sha256:
        return {}
    return {int(index): place for place, index in enumerate(data.test.indices)}
