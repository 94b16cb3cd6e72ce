"""The tidy table of everything that was measured, with intervals, from records alone. No torch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ..records.held_out import HELD_OUT, why_not_trained
from ..records.latest import Entry, current, entry
from ..records.predictions import unanswered
from ..records.record import SUBMISSION, Cell, Record
from .certificates import NORMS, SMOOTHING, attacked_samples, certified, has_radii
from .worst_case import WORST_CASE, worst_cases

COLUMNS = (
    "dataset",
    "protocol",
    "model",
    "recipe",
    "threat",
    "norm",
    "strength",
    "statistic",
    "value",
    "low",
    "high",
    "samples",
    "seeds",
)
Z95 = 1.959963984540054  # the 97.5% quantile of the standard normal distribution


def wilson(successes: ArrayLike, n: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wilson's 95% score interval of a proportion, in closed form.

    Parameters
    ----------
    successes, n
        Successes (fractions allowed: a mean over draws or seeds) out of `n`; they broadcast.

    Returns
    -------
    low, high
        Bounds in [0, 1], of the broadcast shape; NaN where `n` is not positive.
    """
    k, n = np.broadcast_arrays(np.asarray(successes, float), np.asarray(n, float))
    n = np.where(n > 0, n, np.nan)
    p = k / n
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * np.sqrt(np.clip(p * (1 - p), 0, None) / n + Z95**2 / (4 * n**2))
    low = np.where(p <= 0, p, np.clip(centre - half, 0, p))
    high = np.where(p >= 1, p, np.clip(centre + half, p, 1))
    return low, high


def summarise(records: Iterable[Record]) -> pd.DataFrame:
    """Make the tidy table: one row per value, columns `COLUMNS`.

    Accuracies are fractions with Wilson's interval at n = samples (draws of one sample, and seeds on
    one sample, are not independent). Throughput is in samples per second, latency in seconds a
    batch, memory in bytes; there `strength` is the batch size and `protocol` the device. Of a flow
    (threats ``flow`` and ``flow-gradient``) ``floor`` is the time floor of a batch in seconds, and
    ``achieved_fraction`` that over the median latency. ``no_answer`` is the share of samples for which the
    model gave no finite answer, part of those that are not classified correctly; of a worst case those that
    no attack made a wrong class of. Where all were answered it has no row. Failed records give no row, and
    `seeds` says how many training seeds are behind a value. ``not_trained`` is the share of a row's training
    seeds whose network has learnt nothing (`records.held_out`), where any has not.
    """
    used, _ = current(records)
    good = [record for record in used if record.status == "ok"]
    rows = [*_accuracy_rows(good), *_worst_case_rows(used), *_certified_rows(good), *_cost_rows(good)]
    rows += _untrained_rows(good)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    # All intervals at once: one at a time they took a third of the time of a summary.
    shares = table["statistic"].isin(["accuracy", "certified_accuracy", "certified_accuracy_full"])
    values, samples = (table.loc[shares, name].to_numpy(float) for name in ("value", "samples"))
    low, high = wilson(values * samples, samples)
    table.loc[shares, "low"], table.loc[shares, "high"] = low, high
    order = ["dataset", "model", "recipe", "statistic", "protocol", "threat", "norm", "strength"]
    table = table.sort_values(order, kind="stable", na_position="first", ignore_index=True)
    return table.astype({"strength": float, "value": float, "low": float, "high": float})


def traced(accuracy: pd.DataFrame) -> pd.DataFrame:
    """Rows that make a curve: without the attacks that were run at one strength only. Worst cases stay, and
    noise.

    Parameters
    ----------
    accuracy
        Rows of `summarise`.
    """
    threats = accuracy.groupby(["dataset", "protocol", "threat", "norm"])  # clean and noise have no norm
    single = (threats["strength"].transform("nunique") == 1) & (accuracy["threat"] != WORST_CASE)
    return accuracy[~single]


def _grouped(pairs: Iterable[tuple[Hashable, Any]]) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return groups


def _fractions(where: tuple[Any, ...], values: Sequence[float], samples: int) -> Iterator[tuple[Any, ...]]:
    """Rows of one accuracy, its interval left out, and its spread; `where` is (dataset, ..., strength)."""
    mean, seeds = float(np.mean(values)), len(values)
    yield (*where, "accuracy", mean, np.nan, np.nan, samples, seeds)
    if seeds > 1:
        yield (*where, "accuracy_spread", float(np.std(values, ddof=1)), np.nan, np.nan, samples, seeds)


def _no_answer(
    where: tuple[Any, ...], found: Sequence[NDArray[np.bool_]], samples: int
) -> Iterator[tuple[Any, ...]]:
    """The row of the share without an answer, a mean over seeds; none where all answered."""
    if any(each.any() for each in found):
        mean = float(np.mean([each.mean() for each in found]))
        yield (*where, "no_answer", mean, np.nan, np.nan, samples, len(found))


def _accuracy_rows(records: list[Record]) -> Iterator[tuple[Any, ...]]:
    cells = [(r.cell, r) for r in records if r.cell.kind == "accuracy" and r.cell.family != SUBMISSION]
    places = (
        ((c.dataset, c.protocol, c.model, entry(c)[2], c.threat, c.norm, c.strength), r) for c, r in cells
    )
    for where, group in _grouped(places).items():
        samples = min(record.outcomes["correct"].shape[1] for record in group)
        yield from _fractions(where, [record.accuracy for record in group], samples)
        yield from _no_answer(where, [unanswered(record.outcomes) for record in group], samples)


def _worst_case_rows(records: list[Record]) -> Iterator[tuple[Any, ...]]:
    for (dataset, model, recipe), protocol, norm, found in worst_cases(records):
        for strength, worst in found.items():
            where = (dataset, protocol, model, recipe, WORST_CASE, norm, strength)
            samples = worst[0].robust.size
            yield from _fractions(where, [float(each.robust.mean()) for each in worst], samples)
            yield from _no_answer(where, [each.no_answer for each in worst], samples)


def _certified_rows(records: list[Record]) -> Iterator[tuple[Any, ...]]:
    """Certified accuracies at every strength that some attack of the dataset was run at.

    The lower bound is taken over the very test samples that the worst case of its norm is taken over;
    where more are certified, ``certified_accuracy_full`` is the share of all of them. A sample counts when
    its l2 radius exceeds eps; in L-infinity, when it exceeds eps sqrt(pixels). The threat says which
    certificate: ``lipschitz`` of the model itself, ``smoothing`` of its vote under noise.
    """
    records = list(records)
    attacked = attacked_samples(records)
    strengths: dict[str, set[tuple[str, str, float]]] = defaultdict(set)
    found: dict[tuple[Entry, str, float, int], Record] = {}
    for record in records:
        cell = record.cell
        if cell.kind == "accuracy" and cell.norm is not None:
            strengths[cell.dataset].add((cell.protocol, cell.norm, cell.strength))
        elif has_radii(record):
            found[entry(cell), cell.threat, cell.strength, cell.training_seed] = record
    groups = _grouped((key[:3], record) for key, record in sorted(found.items(), key=lambda item: item[0]))
    for (row, how, sigma), ours in groups.items():
        dataset, model, recipe = row
        samples = min(record.outcomes["radius"].size for record in ours)
        asked = strengths[dataset]
        if how == SMOOTHING and not any(norm == "l2" for _, norm, _ in asked):
            asked = asked | {("pixel", "l2", factor * sigma) for factor in (0.5, 1.0, 2.0)}
        for protocol, norm, strength in sorted(asked):
            if norm not in NORMS:
                continue
            safe = [certified(record, norm, strength)[:samples] for record in ours]
            votes = f"{protocol}, smoothed with σ = {sigma:g}" if how == SMOOTHING else protocol
            common = min(samples, attacked.get((row, norm), samples))
            counts = {"certified_accuracy": common, "certified_accuracy_full": samples}
            for name, count in list(counts.items())[: 1 + (samples > common)]:
                values = [float(np.mean(each[:count])) for each in safe]
                for line in _fractions((dataset, votes, model, recipe, how, norm, strength), values, count):
                    yield (*line[:7], line[7].replace("accuracy", name), *line[8:])


def _untrained_rows(records: list[Record]) -> Iterator[tuple[Any, ...]]:
    trainings = [record for record in records if record.cell.kind == "training"]
    for (dataset, model, recipe), ours in _grouped((entry(r.cell), r) for r in trainings).items():
        if share := sum(bool(why_not_trained(record)) for record in ours) / len(ours):
            samples = min(int(dict(r.card.get(HELD_OUT) or {}).get("samples", 0)) for r in ours)
            where = (dataset, ours[0].cell.protocol, model, recipe, "training", None, 0.0)
            yield (*where, "not_trained", share, np.nan, np.nan, samples, len(ours))


def _cost_rows(records: list[Record]) -> Iterator[tuple[Any, ...]]:
    """Means over training seeds of what was measured once per cell: time, memory, size, NFE."""
    found: list[tuple[tuple[Any, ...], tuple[float, float, float, int, int]]] = []

    def add(
        cell: Cell, protocol: str, strength: float, statistic: str, value: float | None, *rest: Any
    ) -> None:
        if value is not None and np.isfinite(value):
            where = (
                cell.dataset,
                protocol,
                cell.model,
                entry(cell)[2],
                cell.threat,
                None,
                strength,
                statistic,
            )
            low, high, samples = rest or (np.nan, np.nan, 0)
            found.append((where, (float(value), low, high, samples, cell.training_seed)))

    sizes: dict[tuple[Entry, int], tuple[Cell, float]] = {}
    for record in records:
        cell, measures = record.cell, record.measures
        if "parameters" in measures:
            sizes.setdefault((entry(cell), cell.training_seed), (cell, measures["parameters"]))
        if cell.kind == "throughput":
            device, batch = cell.device or "unknown device", float(cell.batch_size)
            rate, passes = measures.get("samples_per_second"), record.outcomes.get("seconds")
            low = high = np.nan
            if rate is not None and passes is not None and passes.size and np.all(passes > 0):
                slow, middle, fast = np.percentile(passes, [95, 50, 5]).tolist()
                low, high = rate * middle / slow, rate * middle / fast
            samples = cell.batch_size * (0 if passes is None else passes.size)
            add(cell, device, batch, "throughput", rate, low, high, samples)
            add(cell, device, batch, "latency_median", measures.get("latency_median"))
            add(cell, device, batch, "latency_p95", measures.get("latency_p95"))
            add(cell, device, batch, "peak_memory", measures.get("peak_memory_bytes"))
            add(cell, device, batch, "floor", measures.get("floor_seconds"))
            add(cell, device, batch, "achieved_fraction", measures.get("achieved"))
        elif cell.kind == "training":
            if record.environment.get("processes", 1) == 1 and "weights_sha256" not in cell.recipe:
                add(cell, str(record.environment.get("device", "")), 0.0, "training_seconds", record.seconds)
            add(cell, "", 0.0, "contraction_rate", measures.get("rho"))
            add(cell, "", 0.0, "lipschitz_solver", measures.get("lipschitz_solver"))
        elif cell.family == "clean":
            add(cell, cell.protocol, 0.0, "nfe", record.nfe)
    for cell, size in sizes.values():
        where = (cell.dataset, "", cell.model, entry(cell)[2], "model", None, 0.0, "parameters")
        found.append((where, (size, np.nan, np.nan, 0, cell.training_seed)))
    for where, values in _grouped(found).items():
        mean = [math.fsum(value[i] for value in values) / len(values) for i in range(3)]
        yield (*where, *mean, max(value[3] for value in values), len({value[4] for value in values}))
