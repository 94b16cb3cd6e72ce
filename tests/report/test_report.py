"""The report from stored records: complete, safe, and the same bytes again."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import synthetic
from rich.console import Console
from robustode._errors import InvalidArgument
from robustode.bench.records.lines import line_key
from robustode.bench.records.record import Record
from robustode.bench.records.store import Store
from robustode.bench.report.leaderboard.columns import board_columns
from robustode.bench.report.leaderboard.leaderboard import leaderboard
from robustode.bench.report.leaderboard.terminal_table import terminal_table
from robustode.bench.report.report import write_report
from robustode.bench.report.statistics import COLUMNS

MODELS = ("node", "resnet")


def small(models: tuple[str, ...] = MODELS, **changes: object) -> list[Record]:
    changes.setdefault("threats", ("gaussian", "fgsm-linf", "pgd-linf"))
    return synthetic.records(models=models, samples=30, **changes)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


class Page(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_report_is_complete(tmp_path: Path) -> None:
    report = write_report(synthetic.write(tmp_path, small(seeds=(0, 1))))
    written = contents(tmp_path / "report")
    assert set(written) >= {
        "index.html",
        "summary.csv",
        *(f"leaderboard.{kind}" for kind in ("csv", "json", "md", "tex")),
    }
    assert {"figures/digits-accuracy.svg", "figures/digits-accuracy.png"} <= set(written)
    assert (report.failures, report.problems, report.superseded) == ([], [], 0)
    assert report.page == tmp_path / "report" / "index.html"
    board = pd.read_csv(tmp_path / "report" / "leaderboard.csv")
    assert board["model"].tolist() == report.leaderboard["model"].tolist()
    assert board["linf@0.1"].between(0, 1).all()
    rows = list(csv.DictReader(io.StringIO(written["summary.csv"].decode())))
    assert tuple(rows[0]) == COLUMNS
    markdown = written["leaderboard.md"].decode()
    assert re.search(
        r"\| 1 \| \[node\]\(https://arxiv\.org/abs/\d+\.\d+\) \|.* ± .*\[\d+\.\d, \d+\.\d\]", markdown
    )


@pytest.mark.usefixtures("empty_figures")
def test_page_needs_no_network_and_can_be_used_by_keyboard(tmp_path: Path) -> None:
    text = write_report(synthetic.write(tmp_path, small())).page.read_text(encoding="utf-8")
    page = Page(text)
    for tag, attrs in page.tags:
        if tag in ("img", "script", "link"):
            source = attrs.get("src") or attrs.get("href")
            assert source is None or source.startswith("data:")
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert images
    assert all(attrs["alt"] for attrs in images)
    assert "@import" not in text
    assert sum(tag == "button" for tag, _ in page.tags) > 5
    assert any(tag == "th" and attrs.get("aria-sort") == "ascending" for tag, attrs in page.tags)
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))
    links = {attrs["href"] for tag, attrs in page.tags if tag == "a" and str(attrs["href"]).startswith("#")}
    assert {str(link)[1:] for link in links} <= set(ids)
    assert "Wilson" in page.text
    assert "no certificate" in page.text


WITHOUT_TORCH = """
import sys
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "torchdiffeq", "torchattacks"):
            raise ImportError(f"{name} must not be imported here")
sys.meta_path.insert(0, Forbidden())
from pathlib import Path
from robustode.bench.report.report import write_report
from robustode.bench.report.leaderboard.terminal_table import terminal_table
terminal_table(write_report(Path(sys.argv[1])).leaderboard)
assert not {"torch", "robustode.models", "robustode.attacks"} & set(sys.modules)
"""


def test_report_is_byte_identical_in_a_process_without_torch(tmp_path: Path) -> None:
    synthetic.write(tmp_path, small(failures={("node", "pgd-linf", 0.1): synthetic.FAILURE}))
    write_report(tmp_path)
    first = contents(tmp_path / "report")
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    second = contents(tmp_path / "report")
    assert {name for name in first if first[name] != second.get(name)} == set()
    assert first.keys() == second.keys()


@pytest.mark.usefixtures("empty_figures")
def test_stale_figures_are_removed(tmp_path: Path) -> None:
    synthetic.write(tmp_path, small())
    write_report(tmp_path)
    for path in (tmp_path / "records" / "resnet").glob("*.jsonl"):
        path.unlink()
    assert (tmp_path / "report/figures/digits-examples-resnet.svg").exists()
    write_report(tmp_path)
    assert not (tmp_path / "report/figures/digits-examples-resnet.svg").exists()
    assert (tmp_path / "report/figures/digits-examples-node.svg").exists()


def test_markup_in_records_is_shown_and_not_run(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    made = []
    for record in small(("node",), failures={("node", "gaussian", 0.1): attack}):
        card = dict(record.card) | (
            {"reference": f"{attack} javascript:alert(3)", "claims": [attack]} if record.card else {}
        )
        made.append(dataclasses.replace(record, card=card))
    report = write_report(synthetic.write(tmp_path, made))
    page = Page(report.page.read_text(encoding="utf-8"))
    scripts = [attrs.get("type", "text/javascript") for tag, attrs in page.tags if tag == "script"]
    assert scripts == ["application/json", "text/javascript"]
    assert not any("onerror" in attrs for _, attrs in page.tags)
    assert not any(str(attrs.get("href", "")).startswith("javascript") for _, attrs in page.tags)
    assert attack in page.text
    markdown = (tmp_path / "report/leaderboard.md").read_text(encoding="utf-8")
    assert "<script>" not in markdown


def test_markup_in_model_names(tmp_path: Path) -> None:
    name = '"><b>x|[bold]y[/bold]'
    made = small(("node",), threats=("gaussian",))
    made = [
        dataclasses.replace(r, cell=dataclasses.replace(r.cell, model="m", recipe={"name": name}))
        for r in made
    ]
    made += small(("m",), threats=("gaussian",))
    report = write_report(synthetic.write(tmp_path, made))
    page = Page(report.page.read_text(encoding="utf-8"))
    assert not any(tag == "b" and "x" in attrs for tag, attrs in page.tags)
    assert name in page.text
    console = Console(width=100, file=io.StringIO(), record=True)
    board = report.leaderboard.assign(model="[bold]m[/bold]")
    console.print(terminal_table(board))
    assert "[bold]m[/bold]" in console.export_text()


@pytest.mark.usefixtures("empty_figures")
def test_failure_is_named_and_never_counted_as_robust(tmp_path: Path) -> None:
    failures = {("node", "pgd-linf", 0.1): synthetic.FAILURE}
    report = write_report(synthetic.write(tmp_path, small(failures=failures)))
    assert report.failures == [f"node seed 0 · pgd-linf 0.1: {synthetic.FAILURE}"]
    board = report.leaderboard.set_index("model")
    assert pd.isna(board.loc["node", "linf@0.1"])
    assert board.loc["node", "rank"] == 2
    assert synthetic.FAILURE in Page(report.page.read_text(encoding="utf-8")).text


@pytest.mark.usefixtures("empty_figures")
def test_damaged_records_are_named_and_left_out(tmp_path: Path) -> None:
    synthetic.write(tmp_path, small())
    store = Store(tmp_path)
    target = next(r.cell for r in small() if (r.cell.model, r.cell.threat) == ("node", "clean"))
    path = store.path(target)
    lines = path.read_bytes().splitlines()
    edited = next(n for n, line in enumerate(lines) if f'"key":"{line_key(target)}"'.encode() in line)
    truncated = next(n for n, line in enumerate(lines) if b'"gaussian"' in line)
    lines[edited] = json.dumps(json.loads(lines[edited]) | {"nfe": 1.0}, separators=(",", ":")).encode()
    lines[truncated] = lines[truncated][:100]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    report = write_report(tmp_path)
    damaged = {edited + 1, truncated + 1}
    assert {(problem.path, problem.line) for problem in report.problems} == {(path, n) for n in damaged}
    text = Page(report.page.read_text(encoding="utf-8")).text
    assert all(f"{path.relative_to(tmp_path).as_posix()} line {n}" in text for n in damaged)
    board = report.leaderboard.set_index("model")
    assert board.loc["node", "status"] == "incomplete"
    assert pd.isna(board.loc["node", "clean"])
    assert pd.isna(board.loc["node", "linf@0.1"])


@pytest.mark.usefixtures("empty_figures")
def test_superseded_records_are_counted(tmp_path: Path) -> None:
    old = small(("node",), threats=("gaussian",))
    new = small(("node",), threats=("gaussian",), created="2026-03-01T00:00:00Z", model_version="2")
    report = write_report(synthetic.write(tmp_path, [*old, *new]))
    assert report.superseded == len(old)
    assert len(report.leaderboard) == 1


@pytest.mark.parametrize(
    "made",
    [
        pytest.param([r for r in small() if r.cell.kind != "throughput"], id="no throughput"),
        pytest.param(small(("node",)), id="one model"),
        pytest.param(small(threats=()), id="no attacks"),
        pytest.param(small(training=False), id="no training"),
        pytest.param([r for r in small() if r.cell.kind == "training"], id="training only"),
        pytest.param([r for r in small() if r.cell.kind == "throughput"], id="throughput only"),
        pytest.param([synthetic.failed(r) for r in small()], id="only failures"),
        pytest.param(small() + small(dataset="mnist"), id="two datasets"),
    ],
)
def test_missing_pieces(tmp_path: Path, made: list[Record]) -> None:
    report = write_report(synthetic.write(tmp_path, made))
    text = Page(report.page.read_text(encoding="utf-8")).text
    assert all(model in text for model in report.leaderboard["model"])
    assert report.problems == []
    assert len(report.leaderboard) == len({(r.cell.dataset, r.cell.model) for r in made})


@pytest.mark.parametrize("damaged", [False, True])
def test_nothing_to_report(tmp_path: Path, damaged: bool) -> None:
    if damaged:
        (tmp_path / "records" / "node").mkdir(parents=True)
        (tmp_path / "records" / "node" / "seed0.jsonl").write_text("{")
    with pytest.raises(InvalidArgument, match=r"seed0\.jsonl" if damaged else "run `robustode run` first"):
        write_report(tmp_path)
    assert not (tmp_path / "report").exists()


@pytest.mark.usefixtures("empty_figures")
def test_unusable_plan_and_benchmarks_are_named(tmp_path: Path) -> None:
    synthetic.write(tmp_path, small(("node",)), headline=None)
    (tmp_path / "plan.json").write_text("{}")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "bad.json").write_text("[]")
    stats = {"min": 1e-3, "median": 2e-3, "mean": 3e-3, "rounds": 5}
    good = {
        "machine_info": {"cpu": {"brand_raw": "Test CPU 9000"}, "python_version": "3.12.1"},
        "benchmarks": [{"group": "forward", "name": "test_forward[node]", "stats": stats}],
    }
    (tmp_path / "benchmarks" / "good.json").write_text(json.dumps(good))
    report = write_report(tmp_path)
    assert sorted(p.path.name for p in report.problems) == ["bad.json", "plan.json"]
    text = Page(report.page.read_text(encoding="utf-8")).text
    for part in ("benchmarks/bad.json", "plan.json"):
        assert part in text
    timings = Page(report.page.with_name("benchmarks.html").read_text(encoding="utf-8")).text
    for part in ("Test CPU 9000", "test_forward[node]", "2 ms"):
        assert part in timings
    assert "Test CPU 9000" not in text


def test_terminal_table_fits_and_marks_the_best() -> None:
    made = synthetic.records(
        models=(*synthetic.CORE, *synthetic.MORE), samples=50, devices=("cpu: Intel Xeon", "cuda: H100")
    )
    table = terminal_table(leaderboard(made, synthetic.HEADLINE))
    plain = Console(width=200, file=io.StringIO(), record=True)
    plain.print(table)
    lines = [line.rstrip() for line in plain.export_text().splitlines()]
    assert max(map(len, lines)) <= 100
    assert "…" not in "".join(line for line in lines if "node" in line)
    column = [str(c.header).startswith("Worst ℓ∞") for c in table.columns].index(True)
    cells = list(table.columns[column].cells)
    assert [str(cell.style) for cell in cells].count("bold") == 1
    assert cells[0].style == "bold"


def test_terminal_table_shows_how_far_training_seeds_differ() -> None:
    made = [*small(("node",), seeds=(0, 1, 2)), *small(("resnet",))]
    board = leaderboard(made, synthetic.HEADLINE)
    table = terminal_table(board, None)
    clean = {str(c.header).split()[0]: c for c in table.columns}["Clean"]
    cells = dict(zip(board["model"], map(str, clean.cells), strict=True))
    value, spread = (board.set_index("model").loc["node", name] for name in ("clean", "clean_spread"))
    assert cells["node"] == f"{100 * value:.1f} ±{100 * spread:.1f}"
    assert "±" not in cells["resnet"]
    assert "± standard deviation over training seeds" in str(table.caption)
    heads = [word for column in table.columns for word in str(column.header).split()]
    assert "Parameters" in heads, "no heading is broken inside a word"


def test_terminal_table_marks_shared_ranks() -> None:
    board = leaderboard(synthetic.records(models=synthetic.CORE, samples=50), synthetic.HEADLINE)
    shared = terminal_table(board.assign(rank=[1, 2, 2, 4]))
    assert [str(cell) for cell in shared.columns[0].cells] == ["1", "=2", "=2", "4"]
    assert "cannot be told apart" in str(shared.caption)
    alone = terminal_table(board.assign(rank=[1, 2, 3, 4]))
    assert "cannot be told apart" not in str(alone.caption)


@pytest.mark.parametrize("width", [10, 50, None])
def test_terminal_table_keeps_the_ranking_column_and_counts_what_is_left_out(width: int | None) -> None:
    board = leaderboard(synthetic.records(models=synthetic.CORE, samples=50), synthetic.HEADLINE)
    ranking, every = board_columns(board).ranking, terminal_table(board, None)
    table = terminal_table(board, width)
    left_out = len(every.columns) - len(table.columns)
    caption, heads = str(table.caption), " ".join(" ".join(str(c.header).split()) for c in table.columns)
    assert ranking.title.replace("Worst case", "Worst") + " " + ranking.at in heads
    assert f"ranked by {ranking.title} at {ranking.at}" in caption
    assert (f"{left_out} columns left out; all in leaderboard.md" in caption) == (left_out > 0)
    assert (left_out == 0) == (width is None), "the whole table needs more than 50 characters"
    if width == 50:
        assert heads.count("Worst ") == 2, "noise goes before a worst case"
        assert "Salt" not in heads
