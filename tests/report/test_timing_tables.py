"""The throughput tables: floors where they were measured; leaderboard and figures untouched by them."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pandas as pd
import pytest
import synthetic
from rich.console import Console
from robustode.bench.records.record import Record
from robustode.bench.report.html.throughput_tables import timing_tables
from robustode.bench.report.leaderboard.columns import TASKS
from robustode.bench.report.leaderboard.leaderboard import leaderboard
from robustode.bench.report.leaderboard.shown_fields import BUSY_NOTE
from robustode.bench.report.leaderboard.terminal_table import terminal_table
from robustode.bench.report.report import write_report
from robustode.bench.report.statistics import summarise

pytestmark = pytest.mark.usefixtures("empty_figures")
pytestmark = pytest.mark.usefixtures("empty_figures")

FLOW, GRADIENT = "flow", "flow-gradient"


def small(**changes: object) -> list[Record]:
    return synthetic.records(models=("node", "resnet"), samples=30, threats=("pgd-linf",), **changes)  # type: ignore[arg-type]


def with_flows() -> list[Record]:
    made = [synthetic.flow_record("node", what) for what in (FLOW, GRADIENT)]
    return [*small(), *made, synthetic.flow_record("resnet", FLOW, rates=(25e9, 90e9), work=(1e6, 5e7))]


def lines(records: list[Record]) -> dict[tuple[str, str, str], dict[str, str]]:
    (table,) = timing_tables(summarise(records), records)
    return {(line["model"], line["what"], line["batch"]): line for line in table["lines"]}


def test_floors_stand_on_the_lines_of_flows_alone():
    found = lines(with_flows())
    record = synthetic.flow_record("node", FLOW)
    line = found["node", "ODE blocks, forward", "256"]
    assert (line["floor"], line["binding"]) == ("2 ms", "arithmetic")
    assert line["achieved"] == f"{100 * 2e-3 / record.measures['latency_median']:.1f}"
    assert found["resnet", "ODE blocks, forward", "256"]["binding"] == "bandwidth"
    assert ("node", "ODE blocks, forward + backward", "256") in found
    for (_, what, _), line in found.items():
        if not what.startswith("ODE blocks"):
            assert (line["floor"], line["binding"], line["achieved"]) == ("", "", "")


def test_the_largest_measured_rates_are_named():
    (table,) = timing_tables(summarise(with_flows()), with_flows())
    assert table["ceilings"] == {"bandwidth": "25", "arithmetic": "100"}


def test_each_device_has_its_own_ceilings():
    records = [
        synthetic.flow_record("node", FLOW, "cpu: A"),
        synthetic.flow_record("node", FLOW, "cuda: B", rates=(3e12, 6e13)),
        synthetic.throughput_record("node", "inference", 8, "cpu: C", "2026"),
    ]
    tables = timing_tables(summarise(records), records)
    assert [table["ceilings"] for table in tables] == [
        {"bandwidth": "20", "arithmetic": "100"},
        {},
        {"bandwidth": "3,000", "arithmetic": "60,000"},
    ]


def test_floors_are_averaged_over_seeds():
    records = [synthetic.flow_record("node", FLOW, training_seed=seed) for seed in (0, 1)]
    table = summarise(records).set_index("statistic")
    assert table.loc["floor", ["value", "seeds"]].tolist() == [pytest.approx(2e-3), 2]


def test_a_flow_is_never_taken_for_the_model(tmp_path: Path):
    """Flow timings change the page, the table of everything, and nothing else."""
    without = write_report(synthetic.write(tmp_path / "without", small()))
    flows = write_report(synthetic.write(tmp_path / "with", with_flows()))
    assert leaderboard(with_flows(), synthetic.HEADLINE).equals(leaderboard(small(), synthetic.HEADLINE))
    files = [p.relative_to(without.page.parent) for p in without.page.parent.rglob("*.*")]
    changed = {
        str(name)
        for name in files
        if (without.page.parent / name).read_bytes() != (flows.page.parent / name).read_bytes()
    }
    assert changed == {"index.html", "summary.csv", "manifest.json"}
    old, new = (report.page.read_text(encoding="utf-8") for report in (without, flows))
    for text in ("Roofline time", "Roofline efficiency", "ODE blocks, forward", "GB/s", "GFLOP/s"):
        assert text in new
        assert text not in old
    assert "25 GB/s" in new
    assert "100 GFLOP/s" in new


def test_a_timing_on_a_busy_machine_is_marked(tmp_path):
    crowded = synthetic.flow_record("node", FLOW)
    quiet = synthetic.flow_record("resnet", FLOW)
    records = [
        dataclasses.replace(record, measures={**record.measures, "others_load": load})
        for record, load in ((crowded, 0.4), (quiet, 0.05))
    ]
    (table,) = timing_tables(summarise(records), records)
    assert [line["interval"].endswith(" (busy)") for line in table["lines"]] == [True, False]
    assert table["busy"] == "10"
    synthetic.write(tmp_path, [*small(), *records])
    assert "more than 10%" in write_report(tmp_path).page.read_text(encoding="utf-8")


@pytest.mark.parametrize("crowded", ["best", "other"])
def test_the_mark_is_that_of_the_batch_size_which_is_shown(crowded):
    made = small()
    timed = [
        r for r in made if (r.cell.kind, r.cell.model, r.cell.threat) == ("throughput", "node", "inference")
    ]
    best = max(timed, key=lambda r: r.measures["samples_per_second"]).cell.batch_size
    assert len({r.cell.batch_size for r in timed}) > 1
    records = [
        dataclasses.replace(r, measures={**r.measures, "others_load": 0.4})
        if any(r is one for one in timed) and (r.cell.batch_size == best) is (crowded == "best")
        else r
        for r in made
    ]
    board = leaderboard(records, synthetic.HEADLINE)
    assert ("busy" in board) is (crowded == "best")


def test_a_busy_timing_is_marked_wherever_the_leaderboard_stands(tmp_path):
    made = synthetic.records()
    busy = [
        dataclasses.replace(record, measures={**record.measures, "others_load": 0.4})
        if record.cell.kind == "throughput" and record.cell.model == "node"
        else record
        for record in made
    ]
    for folder, records in ((tmp_path / "quiet", made), (tmp_path / "busy", busy)):
        synthetic.write(folder, records)
        write_report(folder)
    quiet, marked = (
        pd.read_csv(tmp_path / name / "report" / "leaderboard.csv") for name in ("quiet", "busy")
    )
    assert "busy" not in quiet
    timings = [name for name in marked if name.partition("@")[0] in TASKS]
    of_node = marked.set_index("model")["busy"].fillna("").to_dict()
    assert of_node.pop("node").split("; ") == sorted(timings)
    assert set(of_node.values()) == {""}

    def texts(name: str) -> list[str]:
        files = ("leaderboard.md", "leaderboard.tex", "index.html")
        return [(tmp_path / name / "report" / file).read_text(encoding="utf-8") for file in files]

    note = BUSY_NOTE.rpartition("% ")[2]  # the sign is escaped in LaTeX
    for before, after, mark in zip(
        texts("quiet"), texts("busy"), ("\\* |", "* &", "busy machine"), strict=True
    ):
        assert note not in before
        assert mark not in before
        assert note in after
        assert mark in after
    rows = json.loads((tmp_path / "busy" / "report" / "leaderboard.json").read_text())["rows"]
    assert [sorted(row["busy"]) for row in rows if "busy" in row] == [sorted(timings)]
    console = Console(width=200, file=io.StringIO())
    console.print(terminal_table(write_report(tmp_path / "busy").leaderboard, 200))
    said = console.file.getvalue()
    assert f"* {BUSY_NOTE}" in said
    (line,) = [line for line in said.splitlines() if " node " in line]
    assert line.count("*") == len(timings)
