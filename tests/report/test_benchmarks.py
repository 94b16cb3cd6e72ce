"""Files of benchmarks: what is read from them, the tables, the page, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import synthetic
from robustode._errors import InvalidArgument
from robustode.bench.report.benchmark_tables import benchmarks_markdown, main, read_file
from robustode.bench.report.benchmark_timing import HEADS, Goal, timing
from robustode.bench.report.report import write_report
from test_report import Page, contents, small

pytestmark = pytest.mark.usefixtures("empty_figures")

COMMAND = "pytest tests/benchmarks -m 'not gpu' --benchmark-only --benchmark-json=results/benchmarks/cpu.json"


def entry(group: str = "flow forward", name: str = "test_forward[cpu-node]", **extra: Any) -> dict[str, Any]:
    stats = {"min": 0.001, "median": 0.002, "mean": 0.003, "rounds": 20}
    return {"group": group, "name": name, "stats": stats, "extra_info": extra}


TIMED: dict[str, Any] = {
    "what": "node",
    "baseline": "eager torchdiffeq",
    "baseline_seconds": 0.009,
    "ratio": 4.5,
    "ratio_quartiles": [4.25, 4.75],
    "device": "CPU Test, 2 threads",
    "batch_size": 100,
}


def body(*entries: dict[str, Any]) -> dict[str, Any]:
    return {
        "machine_info": {
            "cpu": {"brand_raw": "Test CPU 9000"},
            "system": "Linux",
            "python_version": "3.12.1",
        },
        "commit_info": {"id": "0123abc", "dirty": True},
        "environment": {"versions": {"python": "3.12.1", "torch": "2.9.0"}},
        "datetime": "2026-01-02T03:04:05+00:00",
        "command": COMMAND,
        "benchmarks": list(entries),
    }


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("goal", "changes", "met"),
    [
        ("ratio >= 4.5", {}, True),
        ("ratio >= 4.6", {}, False),
        ("ratio >= 3", {"ratio": None}, None),
        ("overhead <= 0.05", {"ratio": 0.96}, True),
        ("overhead <= 0.05", {"ratio": 0.95}, False),
        ("overhead <= 0.05", {"ratio": 1.2}, True),
        ("seconds < 0.002", {}, False),
        ("seconds < 0.3", {"ratio": None}, True),
        ("ratio >= 0.99", {"bytes": 100, "baseline_bytes": 100}, True),
        ("ratio >= 0.99", {"bytes": 200, "baseline_bytes": 100}, False),
    ],
)
def test_goals(goal, changes, met):
    assert timing(entry(**(TIMED | changes), goal=goal)).met is met


@pytest.mark.parametrize("text", ["", "ratio", "ratio = 3", "speed >= 3", "ratio >= three", "ratio >= 3 x"])
def test_a_goal_that_cannot_be_read_is_refused(text):
    with pytest.raises(ValueError, match="a goal reads like"):
        Goal.parse(text)


def test_the_row_says_everything():
    row = dict(zip(HEADS, timing(entry(**TIMED, goal="ratio >= 3")).cells(), strict=True))
    assert row == {
        "Group": "flow forward",
        "What": "node",
        "Batch": "100",
        "Median": "2 ms",
        "Baseline": "eager torchdiffeq",
        "Its median": "9 ms",
        "Ratio": "4.5 [4.25, 4.75]",
        "Rounds": "20",
        "Goal": "≥ 3",
        "Met": "yes",
    }


def test_memory_is_written_in_bytes_and_overhead_in_percent():
    held = timing(entry(**TIMED, bytes=3 << 20, baseline_bytes=3 << 20)).cells()
    assert (held[3], held[5], held[6]) == ("3 MiB", "3 MiB", "1")
    assert timing(entry(**(TIMED | {"ratio": 0.8}), goal="overhead <= 0.05")).cells()[-2:] == (
        "overhead ≤ 5% (is 25.0%)",
        "no",
    )


def test_a_file_without_baselines_is_still_read(tmp_path):
    old = {"benchmarks": [{k: v for k, v in entry().items() if k != "extra_info"}]}
    (one,) = read_file(write(tmp_path / "old.json", old)).timings
    assert one.cells() == ("flow forward", "test_forward[cpu-node]", "", "2 ms", "", "", "", "20", "", "")


def test_the_table_names_device_versions_commit_and_commands(tmp_path):
    path = write(
        tmp_path / "cpu.json",
        body(
            entry(**TIMED),
            entry("c", **TIMED, goal="ratio > 9"),
            entry("a|b", **(TIMED | {"what": "<b>_x_"})),
        ),
    )
    text = benchmarks_markdown([read_file(path)])
    for part in (
        "- Device: CPU Test, 2 threads",
        "- Machine: Test CPU 9000 · Linux · Python 3.12",
        "- Versions: python 3.12.1, torch 2.9.0",
        "- Commit: 0123abc, with changes that are not committed",
        "- Date: 2026-01-02",
        "- Goals: 0 of 1 met",
        f"```sh\n{COMMAND}\n"
        "python -m robustode.bench.report.benchmark_tables results/benchmarks/cpu.json\n```",
        "| flow forward | node | 100 | 2 ms | eager torchdiffeq | 9 ms | 4.5 [4.25, 4.75] | 20 |  |  |",
        "| a\\|b | &lt;b&gt;\\_x\\_ |",
    ):
        assert part in text
    assert text.index("a\\|b") < text.index("| flow forward")


def test_two_devices_in_one_file_are_told_apart(tmp_path):
    entries = [entry(**(TIMED | {"device": device})) for device in ("GPU", "CPU")]
    file = read_file(write(tmp_path / "both.json", body(*entries)))
    assert file.facts[0] == ("Device", "CPU and GPU")
    assert [t.cells()[1] for t in file.timings] == ["node, GPU", "node, CPU"]


def test_the_command_writes_the_table_beside_the_file(tmp_path):
    path = write(tmp_path / "cpu.json", body(entry(**TIMED)))
    command = [sys.executable, "-m", "robustode.bench.report.benchmark_tables", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "".join(f"wrote {tmp_path / name}\n" for name in ("cpu.md", "cpu-goals.md"))
    assert (tmp_path / "cpu.md").read_text(encoding="utf-8") == benchmarks_markdown([read_file(path)])


@pytest.mark.parametrize(
    "content",
    [None, [], {"benchmarks": [{}]}, body(entry(**TIMED, goal="faster"))],
    ids=["absent", "list", "empty", "goal"],
)
def test_what_is_no_file_of_benchmarks_is_refused(tmp_path, capsys, content):
    path = tmp_path / "cpu.json"
    if content is not None:
        write(path, content)
    with pytest.raises(InvalidArgument, match=r"cpu\.json"):
        read_file(path)
    assert main([str(path)]) == 2
    assert "cpu.json" in capsys.readouterr().err
    assert not (tmp_path / "cpu.md").exists()


def test_the_command_replaces_no_other_file(tmp_path, capsys):
    path = tmp_path / "notes.json"
    path.write_text('{"benchmarks": []}')
    (tmp_path / "notes.md").write_text("# My notes\n")
    assert main([str(path)]) == 2
    assert "notes.md is another file: move it elsewhere" in capsys.readouterr().err
    assert (tmp_path / "notes.md").read_text() == "# My notes\n"
    (tmp_path / "notes.md").unlink()
    assert [main([str(path)]), main([str(path)])] == [0, 0], "its own tables are replaced"


def test_the_command_wants_one_file(capsys):
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.usefixtures("empty_figures")
def test_the_report_has_a_page_of_benchmarks_while_there_are_files(tmp_path):
    synthetic.write(tmp_path, small(("node",), threats=("gaussian",)))
    write_report(tmp_path)
    without = contents(tmp_path / "report")
    file = write(
        tmp_path / "benchmarks" / "cpu.json", body(entry(**(TIMED | {"what": "<script>x</script>"})))
    )

    index = Page(write_report(tmp_path).page.read_text(encoding="utf-8"))
    written = contents(tmp_path / "report")
    assert written.keys() - without.keys() == {"benchmarks.html", "benchmarks.md"}
    assert {"benchmarks.html", "benchmarks.md"} <= {
        attrs.get("href") for tag, attrs in index.tags if tag == "a"
    }
    assert "eager torchdiffeq" not in index.text
    assert written["benchmarks.md"].decode() == benchmarks_markdown([read_file(file)])
    page = Page(written["benchmarks.html"].decode())
    assert not [tag for tag, _ in page.tags if tag in ("script", "img")]
    for part in ("4.5 [4.25, 4.75]", "eager torchdiffeq", "<script>x</script>", COMMAND, "0123abc"):
        assert part in page.text
    write_report(tmp_path)
    assert contents(tmp_path / "report") == written

    file.unlink()
    write_report(tmp_path)
    assert contents(tmp_path / "report") == without
