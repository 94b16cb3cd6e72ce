"""The documentation names only what exists, and says of presets, options and folders what the code says."""

from __future__ import annotations

import configparser
import re
import tomllib
from pathlib import Path
from pkgutil import resolve_name

import pytest
from robustode.bench.cli.arguments import command_line
from robustode.bench.config.preset import load_preset, preset_names

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
AT_ROOT = ("CONTRIBUTING.md", "CHANGELOG.md", "README.md")


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / name for name in AT_ROOT)], ids=lambda page: page.name)
def test_every_link_path_figure_and_included_table_exists(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    included = re.findall(r'--8<-- "([^":]+)', text)
    named = re.findall(r"`((?:models|attacks|bench|tests|docs|results)/[\w./-]+)`", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [path for path in named if not (ROOT / path).exists() and "results/quick" not in path] == []
    assert [path for path in included if not (ROOT / path).is_file()] == []


def test_every_page_is_in_the_navigation():
    names = re.findall(r": (\S+\.(?:md|ipynb))$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    assert sorted(names) == sorted(
        [page.name for page in [*PAGES, *DOCS.glob("*.ipynb")]] + ["CONTRIBUTING.md", "CHANGELOG.md"]
    )


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_described_with_its_cost(name):
    text = (DOCS / "presets.md").read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}`")]
    assert load_preset(name).cost in row


def test_the_drawing_and_the_page_of_the_architecture_follow_the_import_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (layers,) = [c["layers"] for c in contracts["contracts"] if c.get("containers") == ["robustode.bench"]]
    names = [name for layer in layers for name in layer.split(" | ")]
    drawing = (DOCS / "architecture.svg").read_text(encoding="utf-8")
    boxes = re.findall(r'<rect x="\d+" y="(\d+)".*\n<text .* class="n">(\w+)</text>', drawing)
    drawn = {name: int(y) for y, name in boxes}
    heights = [{drawn.get(name) for name in layer.split(" | ")} for layer in layers]
    assert all(len(height) == 1 and None not in height for height in heights)
    assert [min(height) for height in heights] == sorted({drawn[name] for name in names})
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    assert [name for name in names if f"`{name}`" not in page] == []


def test_the_preset_that_is_shown_can_be_used(tmp_path):
    text = (DOCS / "presets.md").read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(
        re.findall(r"```toml\n(.*?)```", text, re.DOTALL)[0], encoding="utf-8"
    )
    assert load_preset(str(tmp_path / "mine.toml")).variants.keys() == {"ch-node-wide"}


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / name for name in AT_ROOT)], ids=lambda page: page.name)
def test_every_command_parses(page):
    blocks = "".join(re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
    for command in re.findall(r"^ *(?:.*/)?robustode (.*)$", blocks, re.MULTILINE):
        words = command.split("#")[0].split()
        assert command_line().parse_args(words).command == words[0]


def test_the_reference_names_what_exists():
    names = re.findall(r"^::: (\S+)", (DOCS / "reference.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert names
    for name in names:
        resolve_name(name)


def test_the_docs_environment_installs_the_docs_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    assert tox["testenv:docs"]["deps"].split() == project["optional-dependencies"]["docs"]


def test_the_figures_shown_are_those_listed():
    shown = set()
    for page in [*PAGES, ROOT / "README.md"]:
        shown.update(re.findall(r"results/\w+/report/figures/[\w.-]+", page.read_text(encoding="utf-8")))
    assert sorted(shown) == (DOCS / "figures.txt").read_text(encoding="utf-8").split()
