"""The throughput tables of the page: how fast, and how close to the roofline of the device. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pandas as pd

from ...records.latest import entry
from ...records.record import Record
from ...throughput.machine_load import BUSY
from ...throughput.roofline import DeviceRates, Work
from ..text import count, memory, missing, percent, time_text

_NAMES = {
    "training-step": "training step",
    "flow": "ODE blocks, forward",
    "flow-gradient": "ODE blocks, forward + backward",
}
_STATISTICS = ("throughput", "latency_median", "latency_p95", "peak_memory", "floor", "achieved_fraction")


def timing_tables(summary: pd.DataFrame, records: Iterable[Record]) -> list[dict[str, Any]]:
    """One table per dataset and device, one line per model, pass and batch size.

    Parameters
    ----------
    summary
        ``statistics.summarise(records)``.
    records
        The records that count: those of ODE blocks say what limits the roofline time.
    """
    records = list(records)
    timing = summary[summary["statistic"].isin(_STATISTICS)]
    measured = [record for record in records if "floor_seconds" in record.measures]
    bindings = {_line(record): _binding(record) for record in measured}
    crowded = {_line(record) for record in records if record.measures.get("others_load", 0.0) > BUSY}
    tables = []
    for (dataset, device), rows in timing.groupby(["dataset", "protocol"], sort=True):
        # By hand: grouping hundreds of models in pandas takes seconds.
        cells: dict[tuple[str, str, str, float], dict[str, Any]] = defaultdict(dict)
        for row in rows.itertuples():
            line: Any = (row.model, row.recipe, row.threat, row.strength)
            cells[line].setdefault(str(row.statistic), row)
        lines = []
        for where, values in sorted(cells.items(), key=lambda item: item[0]):
            model, recipe, threat, batch = where
            rate = values.get("throughput")
            got = {name: values[name].value if name in values else None for name in _STATISTICS}
            spread = "" if rate is None or missing(rate.low) else f"{count(rate.low)} – {count(rate.high)}"
            busy = (dataset, device, *where) in crowded
            lines.append(
                {
                    "model": model,
                    "recipe": recipe,
                    "what": _NAMES.get(threat, threat),
                    "batch": f"{batch:.0f}",
                    "rate": count(got["throughput"]),
                    "rate_sort": _sort(got["throughput"]),
                    "interval": f"{spread} (busy)" if busy else spread,
                    "median": time_text(got["latency_median"]),
                    "median_sort": _sort(got["latency_median"]),
                    "p95": time_text(got["latency_p95"]),
                    "p95_sort": _sort(got["latency_p95"]),
                    "memory": memory(got["peak_memory"]),
                    "memory_sort": _sort(got["peak_memory"]),
                    "floor": time_text(got["floor"]),
                    "floor_sort": _sort(got["floor"]),
                    "binding": bindings.get((dataset, device, model, recipe, threat, batch), ""),
                    "achieved": percent(got["achieved_fraction"]),
                    "achieved_sort": _sort(got["achieved_fraction"]),
                }
            )
        here = [record for record in measured if _line(record)[:2] == (dataset, device)]
        busy = any(line[:2] == (dataset, device) for line in crowded)
        tables.append(
            {
                "dataset": dataset,
                "device": device,
                "lines": lines,
                "ceilings": _ceilings(here),
                "busy": f"{100 * BUSY:.0f}" if busy else "",
            }
        )
    return tables


def _sort(value: Any) -> str:
    return "" if missing(value) else f"{value:.10g}"


def _line(record: Record) -> tuple[Any, ...]:
    """The table and line of a timing, as the summary names them."""
    cell = record.cell
    dataset, model, recipe = entry(cell)
    return dataset, cell.device or "unknown device", model, recipe, cell.threat, float(cell.batch_size)


def _binding(record: Record) -> str:
    measures = record.measures
    work = Work(operations=int(measures["operations"]), bytes=int(measures["bytes"]))
    return _rates([record]).binding(work)


def _rates(records: list[Record]) -> DeviceRates:
    """The largest rates that any of the records measured."""
    names = ("copy_bandwidth", "arithmetic_rate")
    return DeviceRates(**{name: max(record.measures[name] for record in records) for name in names})


def _ceilings(records: list[Record]) -> dict[str, str]:
    """Bandwidth and arithmetic rate of one table, in giga per second; empty without any."""
    if not records:
        return {}
    rates = _rates(records)
    return {"bandwidth": _giga(rates.copy_bandwidth), "arithmetic": _giga(rates.arithmetic_rate)}


def _giga(value: float) -> str:
    return f"{value / 1e9:,.0f}" if value >= 1e11 else f"{value / 1e9:.3g}"
