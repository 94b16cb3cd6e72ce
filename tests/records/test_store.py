"""The results folder: whole files or none, one run at a time, nothing outside it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import synthetic
from robustode._errors import InvalidArgument
from robustode.bench.records.record import Record, to_json
from robustode.bench.records.store import Store, write_atomically

RECORDS = synthetic.records(models=("node", "resnet"), samples=5, threats=("gaussian",))


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store(tmp_path / "out")
    for record in RECORDS:
        store.put(record)
    return store


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob(".tmp-*"))


def test_records_come_back_in_a_fixed_order(store):
    records, problems = store.load()
    assert problems == []
    assert sorted(map(to_json, records)) == sorted(map(to_json, RECORDS))
    again, _ = Store(store.folder).load()
    assert [to_json(r) for r in again] == [to_json(r) for r in records]
    assert all(store.get(r.cell) is not None for r in RECORDS)


def test_paths_are_readable_and_unique():
    store = Store(Path("out"))
    paths = [store.path(record.cell) for record in RECORDS]
    assert len(set(paths)) == len(RECORDS)
    cell = next(r.cell for r in RECORDS if r.cell.threat == "gaussian")
    assert store.path(cell).as_posix() == (
        f"out/records/node/digits-gaussian-0.05-seed0-{cell.key()[:12]}.json"
    )


def test_reading_creates_nothing(tmp_path):
    store = Store(tmp_path / "none")
    assert store.load() == ([], [])
    assert store.get(RECORDS[0].cell) is None
    assert not store.folder.exists()


def test_a_record_is_replaced_by_a_newer_one_of_its_cell(store):
    record = dataclasses.replace(RECORDS[0], seconds=123.0)
    store.put(record)
    stored = store.get(record.cell)
    assert stored is not None
    assert stored.seconds == 123.0
    assert len(store.load()[0]) == len(RECORDS)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data.replace(b'"status": "ok"', b'"status": "error"'),
        lambda data: data.replace(b'"schema_version": 1', b'"schema_version": 7'),
        lambda data: data.replace(b'"schema_version": 1', b'"schema_version": []'),
        lambda data: b"\xff\xfe" + data,
    ],
    ids=["cut", "empty", "edited", "newer", "nonsense", "binary"],
)
def test_what_cannot_be_used_is_named_and_set_aside(store, damage):
    path = store.path(RECORDS[3].cell)
    before = path.read_bytes()
    path.write_bytes(damage(before))
    assert path.read_bytes() != before
    assert store.get(RECORDS[3].cell) is None
    records, problems = store.load()
    assert len(records) == len(RECORDS) - 1
    assert [p.path for p in problems] == [path]
    assert str(problems[0]).startswith(f"{path}: ")
    store.set_aside(problems)
    assert not path.exists()
    assert (store.folder / "set-aside" / path.parent.name / path.name).read_bytes() == damage(before)
    assert store.load()[1] == []


def test_a_record_under_another_name_is_not_used(store):
    path = store.path(RECORDS[0].cell)
    other = path.with_name("renamed.json")
    path.rename(other)
    records, problems = store.load()
    assert len(records) == len(RECORDS) - 1
    assert problems[0].reason == "its name does not match its content"
    assert store.get(RECORDS[0].cell) is None


@pytest.mark.parametrize("model", ["../../escape", "..", "/tmp/escape", "a/b"])
def test_a_record_cannot_name_a_place_outside_its_folder(store, model, tmp_path):
    """A hand-made record whose hash fits is still refused, and set aside inside the folder."""
    hostile: Record = dataclasses.replace(RECORDS[0], cell=dataclasses.replace(RECORDS[0].cell, model=model))
    path = store.records / "node" / f"x-{hostile.cell.key()[:12]}.json"
    path.write_text(to_json(hostile), encoding="utf-8")
    before = {p for p in tmp_path.rglob("*") if not p.is_relative_to(store.folder)}
    records, problems = store.load()
    assert len(records) == len(RECORDS)
    assert [p.path for p in problems] == [path]
    store.set_aside(problems)
    assert {p for p in tmp_path.rglob("*") if not p.is_relative_to(store.folder)} == before


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call, error):
    path = tmp_path / "file.json"
    write_atomically(path, b"old")

    def stop(*_args):
        raise error

    monkeypatch.setattr(os, call, stop)
    with pytest.raises((KeyboardInterrupt, OSError)):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_makes_folders_and_a_readable_file(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, b"x")
    assert path.read_bytes() == b"x"
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_second_run_of_the_same_folder_is_refused(tmp_path):
    first, second = Store(tmp_path / "out"), Store(tmp_path / "out")
    with (
        first.lock(),
        pytest.raises(InvalidArgument, match="another run is writing to") as caught,
        second.lock(),
    ):
        pass
    assert "\n" not in str(caught.value)
    with second.lock():
        pass


def test_the_lock_is_released_by_an_error(tmp_path):
    store = Store(tmp_path / "out")
    with pytest.raises(RuntimeError, match="stop"), store.lock():
        raise RuntimeError("stop")
    with store.lock():
        pass


def test_what_a_killed_run_left_half_written_is_ignored_and_cleared(store):
    half = store.records / "node" / ".tmp-abc.json"
    half.write_bytes(b"{")
    assert store.load()[1] == []
    with store.lock():
        assert leftovers(store.folder) == []
