"""What is published under results/ is what its records say, and no attack breaks a certificate."""

from __future__ import annotations

import json
import math
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from robustode.bench.records.record import Record
from robustode.bench.records.store import Store
from robustode.bench.report.benchmark_tables import main, read_file, tables
from robustode.bench.verification.report_consistency import check_tables

RESULTS = Path(__file__).parents[2] / "results"
PUBLISHED = [path.parent for path in sorted(RESULTS.glob("*/plan.json")) if path.parent.name != "quick"]
VERIFIED = {"digits", "sweep"}
"""Folders whose report test_verify.py checks along with everything else."""
each_folder = pytest.mark.parametrize("folder", PUBLISHED, ids=lambda path: path.name)


def test_something_is_published():
    assert "digits" in {folder.name for folder in PUBLISHED}


def certified_cases(records: list[Record]) -> tuple[int, list[str]]:
    """Pairs of a sample and an attack inside its certified radius, and those that broke it."""
    count, broken = 0, []
    radii = {
        (r.cell.model, r.cell.training_seed, r.cell.checkpoint_sha256): r
        for r in records
        if r.cell.threat == "lipschitz" and "radius" in r.outcomes
    }
    for record in records:
        cell = record.cell
        certificate = radii.get((cell.model, cell.training_seed, cell.checkpoint_sha256))
        if cell.kind != "accuracy" or record.status != "ok" or certificate is None:
            continue
        if cell.norm is None and cell.family != "clean":
            continue
        scale = math.sqrt(certificate.measures["pixels"]) if cell.norm == "linf" else 1.0
        inside = certificate.outcomes["radius"][: cell.samples] > cell.strength * scale
        survived = record.outcomes["correct"].all(0)
        count += int(inside.sum())
        broken += [f"{cell.label()}: sample {i}" for i in np.flatnonzero(inside & ~survived)]
    return count, broken


@each_folder
def test_no_attack_breaks_a_certificate(folder, published):
    count, broken = certified_cases(published(folder))
    assert count > 0
    assert broken == []


@each_folder
def test_every_record_comes_from_a_clean_commit_and_is_sound(folder, published):
    records = published(folder)
    assert {record.status for record in records} == {"ok"}
    assert {bool(record.environment["dirty"]) for record in records} == {False}
    assert None not in {record.environment["commit"] for record in records}


@each_folder
def test_the_report_is_what_the_records_make(folder):
    """Page, tables and cards; of pictures what is said of them, since other machines draw other bytes."""
    if folder.name not in VERIFIED:
        assert [str(finding) for finding in check_tables(Store(folder)) if not finding.note] == []


def test_published_results_stay_small():
    """As git has them: pages and figures that `robustode report` makes again are not counted."""
    git = subprocess.run(
        ["git", "ls-files", "-z", "."], cwd=RESULTS, capture_output=True, text=True, check=False
    )
    files = [RESULTS / name for name in git.stdout.split("\0") if name]
    if git.returncode or not files:
        pytest.skip("this is no git checkout")
    assert len(files) <= 400
    assert sum(path.stat().st_size for path in files if path.exists()) <= 60_000_000


def test_every_section_of_the_page_can_be_reached_from_its_top():
    page = (RESULTS / "standard" / "report" / "index.html").read_text(encoding="utf-8")
    nav = page[page.index("<nav") : page.index("</nav>")]
    sections = re.findall(r'<section id="(\w+)"', page)
    assert {"leaderboard", "figures", "models", "reading", "records"} <= set(sections)
    assert [name for name in sections if f'href="#{name}"' not in nav] == []


def stale_tables(folder: Path) -> list[str]:
    """Tables of benchmarks that are absent, left over, or not what their file makes."""
    wanted = {k: v for path in folder.glob("*.json") for k, v in tables(read_file(path)).items()}
    found = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    return sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))


def test_every_table_of_benchmarks_is_the_one_that_its_file_makes():
    assert stale_tables(RESULTS / "benchmarks") == []


def test_a_stale_table_of_benchmarks_is_found(tmp_path):
    assert stale_tables(tmp_path / "absent") == []
    stats = {"min": 1.0, "median": 2.0, "mean": 3.0, "rounds": 5}
    file = {"benchmarks": [{"group": "flow forward", "name": "node", "stats": stats}]}
    (tmp_path / "cpu.json").write_text(json.dumps(file), encoding="utf-8")
    assert stale_tables(tmp_path) == ["cpu-goals.md", "cpu.md"]
    assert main([str(tmp_path / "cpu.json")]) == 0
    assert stale_tables(tmp_path) == []
    (tmp_path / "cpu.json").write_text(json.dumps(file).replace("2.0", "2.5"), encoding="utf-8")
    assert stale_tables(tmp_path) == ["cpu.md"]
    (tmp_path / "cuda.md").write_text("left over", encoding="utf-8")
    assert stale_tables(tmp_path) == ["cpu.md", "cuda.md"]
