"""Nothing that robustode did not write is removed or overwritten: refused in one line, before work starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import synthetic
from robustode._errors import InvalidArgument
from robustode.bench.cli.main import main
from robustode.bench.records.atomic import is_temporary, temporary_name, write_atomically
from robustode.bench.records.headline import Headline
from robustode.bench.records.report_files import MANIFEST, read_manifest, write_report_files
from robustode.bench.records.store import Store
from robustode.bench.report.benchmark_tables import add_benchmarks
from robustode.bench.report.report import write_report

FILES = {
    "index.html": b"page",
    "leaderboard.csv": b"rank,dataset,model,recipe,clean\n",
    "figures/a.svg": b"a",
}
TEASER = "report/figures/teaser.png"


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"mine: {name}".encode())
    return folder


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> Path:
    """A results folder with its report."""
    records = synthetic.records(models=("node",), samples=10, threats=("gaussian",))
    folder = synthetic.write(tmp_path_factory.mktemp("reported"), records)
    write_report(folder)
    return folder


@pytest.mark.parametrize(
    ("names", "named"),
    [
        ((TEASER, "report/cards/todo.txt", "report/index.html"), "report/cards/todo.txt"),
        ((TEASER,), TEASER),
        (("report/manifest.json",), "report/manifest.json"),
        (("report",), "report"),
        (("plan.json",), "plan.json"),
        (("records/exp1/seed0.jsonl",), "records/exp1/seed0.jsonl"),
        (("adversarial/node/seed0.zip",), "adversarial/node/seed0.zip"),
        (("checkpoints",), "checkpoints"),
        ((".lock",), ".lock"),
        (("batch_sizes.json",), "batch_sizes.json"),
    ],
)
@pytest.mark.parametrize("how", [["--dry-run"], []])
def test_a_run_into_a_folder_with_files_in_the_way_is_refused(
    tmp_path, monkeypatch, capsys, names, named, how
):
    monkeypatch.chdir(put(tmp_path, *names, "paper.tex"))
    before = contents(tmp_path)
    assert main(["run", "--out", ".", *how]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"({named}" in err
    assert "--out" in err
    assert contents(tmp_path) == before


def test_other_files_of_a_folder_are_no_hindrance_and_stay(tmp_path):
    names = (
        "paper.tex",
        "records/notes.txt",
        "records/exp/run.json",
        "records/exp/all.jsonl",
        "checkpoints/a.pt",
    )
    dotfiles = (".tmp-notes", "report/.tmp-abc", f"checkpoints/{temporary_name()[:-1]}!", "report/.gitkeep")
    put(tmp_path, *names, *dotfiles)
    before = contents(tmp_path)
    store = Store(tmp_path)
    with store.lock():
        assert store.clear() == []
    found = contents(tmp_path)
    found.pop(".lock", None)
    assert found == before


def test_only_what_a_killed_process_left_half_written_is_cleared(tmp_path):
    ours = put(tmp_path, f"records/node/{temporary_name()}", temporary_name(), "records/node/.tmp-mine")
    with Store(ours).lock():
        assert set(contents(ours)) - {".lock"} == {"records/node/.tmp-mine"}


def test_a_name_that_looks_temporary_is_told_from_one_that_is():
    name = temporary_name()
    assert is_temporary(name)
    changed = name[:5] + ("0" if name[5] != "0" else "1") + name[6:]
    assert not any(map(is_temporary, (changed, name + "x", ".tmp-abc", ".tmp-")))


def test_a_report_replaces_its_own_files_and_leaves_those_of_others(reported, tmp_path):
    store = Store(reported)
    put(reported, TEASER, "report/cards/todo.txt")
    write_report_files(
        store.report, {**dict(_own(reported)), "figures/old.svg": b"old"}, reported / "set-aside" / "report"
    )
    assert write_report(reported).moved == []
    for name in (TEASER, "report/cards/todo.txt"):
        assert (reported / name).read_text() == f"mine: {name}"
    assert not (store.report / "figures" / "old.svg").exists()
    assert set(read_manifest(store.report)) == {name for name, _ in _own(reported)}


def _own(folder: Path):
    listed = read_manifest(folder / "report")
    return [(name, (folder / "report" / name).read_bytes()) for name in listed]


@pytest.mark.parametrize("command", ["report", "run"])
def test_what_somebody_edited_in_a_report_is_not_overwritten(tmp_path, capsys, command):
    Headline(preset="quick").write(tmp_path)
    write_report_files(tmp_path / "report", FILES, tmp_path / "aside")
    put(tmp_path, "report/leaderboard.csv")
    before = contents(tmp_path)
    assert main([command, "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    if command == "report":
        Store(tmp_path).put(synthetic.records(models=("node",), samples=10, threats=("gaussian",))[0])
        before = contents(tmp_path)
        assert main([command, "--out", str(tmp_path)]) == 2
        err = capsys.readouterr().err
    assert "leaderboard.csv in" in err
    assert "is not as robustode wrote: move or delete" in err
    assert contents(tmp_path) == before


def test_a_file_that_a_new_figure_would_overwrite_stops_the_report_before_it_writes(tmp_path):
    write_report_files(tmp_path, FILES, tmp_path / "aside")
    put(tmp_path, "figures/b.svg")
    before = contents(tmp_path)
    new = {**FILES, "index.html": b"new", "figures/b.svg": b"b"}
    with pytest.raises(InvalidArgument, match=r"figures/b\.svg in"):
        write_report_files(tmp_path, new, tmp_path / "aside")
    assert contents(tmp_path) == before
    (tmp_path / "figures/b.svg").write_bytes(b"b")  # the same content: nothing is lost
    write_report_files(tmp_path, new, tmp_path / "aside")
    assert (tmp_path / "index.html").read_bytes() == b"new"


def test_a_report_that_was_stopped_half_way_is_made_again(tmp_path, monkeypatch):
    write_report_files(tmp_path, FILES, tmp_path / "aside")
    new = {"index.html": b"new page", "figures/c.svg": b"c"}
    for stop in range(2, 4):
        writes = iter(range(9))

        def write(path: Path, data: bytes, writes=writes, stop=stop) -> None:
            if next(writes) == stop:
                raise KeyboardInterrupt
            write_atomically(path, data)

        with monkeypatch.context() as patch:
            patch.setattr("robustode.bench.records.report_files.write_atomically", write)
            with pytest.raises(KeyboardInterrupt):
                write_report_files(tmp_path, new, tmp_path / "aside")
        assert (tmp_path / "index.html").read_bytes() == b"new page"
    assert write_report_files(tmp_path, new, tmp_path / "aside") == []
    assert set(contents(tmp_path)) == {*new, MANIFEST}


def test_line_ends_that_git_changed_are_no_edit(tmp_path):
    write_report_files(tmp_path, FILES, tmp_path / "aside")
    (tmp_path / "leaderboard.csv").write_bytes(FILES["leaderboard.csv"].replace(b"\n", b"\r\n"))
    assert write_report_files(tmp_path, FILES, tmp_path / "aside") == []
    assert (tmp_path / "leaderboard.csv").read_bytes() == FILES["leaderboard.csv"]


def test_files_of_an_earlier_versions_report_that_are_in_the_way_are_moved(tmp_path, capsys):
    """Published folders, and those of version 0.2.0, have no list of the files that robustode wrote."""
    records = synthetic.records(models=("node",), samples=10, threats=("gaussian",))
    synthetic.write(tmp_path, records)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "leaderboard.csv").write_bytes(FILES["leaderboard.csv"])
    put(tmp_path, "report/index.html", TEASER)
    assert main(["report", "--out", str(tmp_path)]) == 0
    assert "2 files" in capsys.readouterr().out
    aside = tmp_path / "set-aside" / "report"
    assert contents(aside) == {
        "index.html": b"mine: report/index.html",
        "leaderboard.csv": FILES["leaderboard.csv"],
    }
    assert (tmp_path / TEASER).read_bytes() == f"mine: {TEASER}".encode()
    assert main(["report", "--out", str(tmp_path)]) == 0
    assert "set-aside" not in capsys.readouterr().out


def test_a_list_of_files_names_none_outside_the_report(tmp_path):
    write_report_files(tmp_path / "report", FILES, tmp_path / "aside")
    path = tmp_path / "report" / MANIFEST
    path.write_text(path.read_text().replace("figures/a.svg", "figures/../../paper.tex"))
    assert set(read_manifest(tmp_path / "report")) == {"index.html", "leaderboard.csv"}


def test_a_plan_that_cannot_be_read_is_moved_where_the_folder_is_of_robustode(tmp_path):
    Store(tmp_path).put(synthetic.records(models=("node",), samples=10, threats=("gaussian",))[0])
    put(tmp_path, "plan.json")
    store = Store(tmp_path)
    with store.lock():
        store.set_aside("plan.json")
        put(tmp_path, "plan.json")
        store.set_aside("plan.json")
    aside = contents(tmp_path / "set-aside")
    assert aside == dict.fromkeys(("plan.json", "plan-2.json"), b"mine: plan.json")


def test_benchmarks_with_the_name_of_others_are_refused(tmp_path):
    put(tmp_path, "out/benchmarks/cpu.json")
    (tmp_path / "cpu.json").write_text('{"benchmarks": []}')
    with pytest.raises(InvalidArgument, match="is there already with other content"):
        add_benchmarks(tmp_path / "out", tmp_path / "cpu.json")
    assert (tmp_path / "out/benchmarks/cpu.json").read_text() == "mine: out/benchmarks/cpu.json"


def test_an_upgrade_takes_nobody_elses_folders_for_old_records(tmp_path, capsys):
    put(tmp_path, "records/exp/run.json", "upgrade/notes.txt", "checkpoints/a.pt")
    before = contents(tmp_path)
    assert main(["upgrade", "--out", str(tmp_path)]) == 2
    assert "no records in" in capsys.readouterr().err
    found = contents(tmp_path)
    found.pop(".lock", None)
    assert found == before
