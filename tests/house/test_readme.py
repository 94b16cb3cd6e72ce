"""The README says nothing that the repository does not carry."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from robustode.bench.config.preset import load_preset, preset_names

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLE = re.compile(r"<!-- table: (\S+) -->\n(.*?)<!-- end of table -->", re.DOTALL)


def table_of(markdown: str) -> list[str]:
    return [line for line in markdown.splitlines() if line.startswith("|")]


def test_every_table_is_the_one_that_the_records_made():
    found = TABLE.findall(README)
    assert found
    for path, text in found:
        assert table_of(text) == table_of((ROOT / path).read_text(encoding="utf-8"))


def test_every_linked_file_and_picture_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_described_with_its_cost(name):
    row = next(line for line in README.splitlines() if line.startswith(f"| `{name}`"))
    assert load_preset(name).cost in row


def test_every_module_of_the_harness_stands_in_the_architecture():
    section = README.split("## Architecture")[1]
    files = [*(ROOT / "bench").rglob("*.py"), *(ROOT / "attacks").glob("*.py")]
    modules = [path.stem for path in files if path.stem != "__init__"]
    assert [name for name in modules if not re.search(rf"\b{name}\b", section)] == []


def test_ci_finds_the_test_command():
    pattern = re.search(r"s/\^(.*?)\$/", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert pattern
    commands = [line for line in README.splitlines() if line.endswith("python3 -m tox")]
    assert len(commands) == 1
