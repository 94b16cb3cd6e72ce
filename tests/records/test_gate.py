"""The gate: which results a branch changes, in a real git repository, and what it says of them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import stubs
from robustode._errors import InvalidArgument
from robustode.bench.config.plan import make_plan
from robustode.bench.config.preset import load_preset
from robustode.bench.records.atomic import write_atomically
from robustode.bench.records.store import Store
from robustode.bench.report.report import texts
from robustode.bench.runner.run import run_plan
from robustode.bench.verification import ci_gate as gate
from robustode.bench.verification.ci_gate import changed_entries, changed_files

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(root: Path, *arguments: str) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *arguments], cwd=root, check=True, capture_output=True)


def write(root: Path, *paths: str, text: str = "x") -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def write_tables(folder: Path) -> None:
    """The report without its figures and page."""
    for name, text in texts(folder).items():
        write_atomically(folder / "report" / name, text.encode())


@pytest.fixture
def root(tmp_path) -> Path:
    """A repository whose main has two results folders and a folder of benchmarks; on a branch of it."""
    git(tmp_path, "init", "-q", "-b", "main")
    for folder in ("one", "two"):
        for model in ("a", "b"):
            write(tmp_path, f"results/{folder}/records/{model}/seed0.jsonl")
        write(tmp_path, f"results/{folder}/plan.json")
    write(tmp_path, "results/benchmarks/cpu.json", "models/a.py", ".gitignore", text="/results/quick/\n")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "main")
    git(tmp_path, "checkout", "-qb", "branch")
    return tmp_path


def entries(root: Path) -> dict[str, set[str]]:
    found = changed_entries(root, changed_files(root, "main"))
    return {folder.relative_to(root).as_posix(): models for folder, models in found.items()}


def test_nothing_changed_is_nothing_to_verify(root, monkeypatch, capsys):
    assert entries(root) == {}
    write(root, "models/a.py", "results/benchmarks/cpu.json", "results/README.md", text="new")
    write(root, "results/quick/records/a/seed0.jsonl")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "other things")
    assert entries(root) == {}
    monkeypatch.chdir(root / "models")
    assert gate.main(["--against", "main"]) == 0
    assert capsys.readouterr().out.endswith(" main\n")


def test_changed_new_deleted_and_renamed_files_choose_their_models(root):
    write(root, "results/one/records/a/seed0.jsonl", text="changed")
    write(root, "results/one/checkpoints/c/w x\u00e9.safetensors.xz")
    (root / "results/one/records/b/seed0.jsonl").unlink()
    git(root, "add", "-A")
    git(root, "commit", "-qm", "committed")
    write(root, "results/two/adversarial/d/seed0.zip", "results/two/report/index.html")
    assert entries(root) == {"results/one": {"a", "b", "c"}, "results/two": {"d"}}
    git(root, "mv", "results/two/records/a", "results/two/records/z")
    assert entries(root)["results/two"] == {"a", "d", "z"}


def test_tables_alone_choose_a_folder_and_no_model(root):
    write(root, "results/one/plan.json", text="new")
    assert entries(root) == {"results/one": set()}


def test_a_folder_that_is_gone_is_left_out(root):
    shutil.rmtree(root / "results/one")
    git(root, "commit", "-qam", "gone")
    assert entries(root) == {}


def test_what_main_did_since_does_not_count(root):
    write(root, "results/one/records/a/seed0.jsonl", text="mine")
    git(root, "commit", "-qam", "mine")
    git(root, "checkout", "-q", "main")
    write(root, "results/two/records/b/seed0.jsonl", text="theirs")
    git(root, "commit", "-qam", "theirs")
    git(root, "checkout", "-q", "branch")
    assert entries(root) == {"results/one": {"a"}}


def test_what_cannot_be_compared_is_one_line(root, tmp_path_factory, monkeypatch, capsys):
    with pytest.raises(InvalidArgument, match="git merge-base: fatal: Not a valid object name none"):
        changed_files(root, "none")
    with pytest.raises(InvalidArgument):
        changed_files(root, "--all")
    monkeypatch.chdir(tmp_path_factory.mktemp("bare"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(Path.cwd().parent))
    assert gate.main([]) == 2
    err = capsys.readouterr().err
    assert err.startswith("gate: error: git rev-parse: fatal: not a git repository")
    assert err.count("\n") == 1


@pytest.mark.usefixtures("registries")
def test_the_gate_verifies_changed_models_only(root, digits, monkeypatch, capsys):
    folder = root / "results" / "three"
    preset = load_preset(str(stubs.preset_file(root)))
    unknown = stubs.spec("unknown")
    for models in (None, [unknown]):
        assert (
            run_plan(make_plan(preset, models=models), digits, Store(folder), device=stubs.CPU).failures == []
        )
    write_tables(folder)
    git(root, "add", "-A")
    git(root, "commit", "-qm", "a submission")
    monkeypatch.chdir(root)
    assert gate.main(["--against", "main"]) == 1
    out, err = capsys.readouterr()
    assert "results/three: changed models: resnet, unknown" in out
    assert err == "disagrees: results/three/unknown seed 0 was not run again: its file belongs into models/\n"

    git(root, "branch", "-f", "main", "branch")
    weights = next((folder / "checkpoints" / "resnet").glob("*.safetensors.xz"))
    data_before = weights.read_bytes()
    write(root, "results/three/records/resnet/.note")
    assert gate.main(["--against", "main"]) == 0
    assert "models run 1" in capsys.readouterr().out
    weights.write_bytes(data_before[:-1] + bytes([data_before[-1] ^ 1]))
    assert gate.main(["--against", "main"]) == 1
    assert f"checkpoints/resnet/{weights.name}: is damaged" in capsys.readouterr().err
