"""README.md is short, and says nothing that the repository does not hold."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLE = re.compile(r"<!-- leaderboard: (\S+) -->\n(.*?)<!-- end of leaderboard -->", re.DOTALL)
COLUMNS = {
    "Clean": "clean",
    "Worst case ℓ∞ 0.1": "linf@0.1",
    "Worst case ℓ₂ 1.0": "l2@1",
    "Certified ℓ₂ 1.0": "certified-l2@1",
}


def first_rows(path: Path, count: int = 5) -> str:
    """The table that README shows: the first rows of a leaderboard, accuracies in percent."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:count]
    percent = [[f"{100 * float(row[c]):.1f}" if row[c] else "" for c in COLUMNS.values()] for row in rows]
    lines = [
        f"| # | Model | Recipe | {' | '.join(COLUMNS)} | Seeds | Samples |",
        f"| ---: | --- | --- | {'---: | ' * len(COLUMNS)}---: | ---: |",
        *(
            f"| {row['rank']} | [{row['model']}]({row['paper']}) | {row['recipe']} | {' | '.join(cells)} | "
            f"{row['seeds']} | {row['samples']} |"
            for row, cells in zip(rows, percent, strict=True)
        ),
    ]
    return "\n".join(lines) + "\n"


def test_it_is_at_most_8_kb():
    assert len(README.encode()) <= 8000


def test_the_leaderboard_is_the_one_that_the_records_made():
    ((path, text),) = TABLE.findall(README)
    assert text == first_rows(ROOT / path)


def test_python_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert "worst-case" in capsys.readouterr().out


def test_ci_finds_the_test_command():
    pattern = re.search(r"s/\^(.*?)\$/", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert pattern
    expression = pattern[1].replace(r"\(", "(").replace(r"\)", ")")
    assert len([line for line in README.splitlines() if re.fullmatch(expression, line)]) == 1
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
