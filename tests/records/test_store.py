"""The results folder: lines that survive a crash, one writer at a time, nothing outside it."""

from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import os
from pathlib import Path

import pytest
import stubs
import synthetic
from appending import append_many
from hypothesis import given, settings
from hypothesis import strategies as st
from robustode._errors import InvalidArgument
from robustode.bench.records.atomic import temporary_name, write_atomically
from robustode.bench.records.lines import write_record
from robustode.bench.records.record import Record
from robustode.bench.records.store import Store

RECORDS = synthetic.records(models=("node", "resnet"), samples=5, threats=("gaussian",))


def fill(folder: Path) -> Store:
    store = Store(folder)
    for record in RECORDS:
        store.put(record)
    return store


@pytest.fixture
def store(tmp_path) -> Store:
    return fill(tmp_path / "out")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    """The file of one model and seed."""
    return fill(tmp_path_factory.mktemp("whole")).path(OURS[0].cell).read_bytes()


OURS = [r for r in RECORDS if (r.cell.model, r.cell.training_seed) == ("node", 0)]
"""The records of that file, in the order of its lines."""


def with_file(folder: Path, data: bytes) -> Store:
    path = Store(folder).path(OURS[0].cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return Store(folder)


def keys(records) -> set[str]:
    return {record.cell.key() for record in records}


def test_records_come_back_in_a_fixed_order(store):
    records, damages = store.load()
    assert damages == []
    assert sorted(map(stubs.lines_of, records)) == sorted(map(stubs.lines_of, RECORDS))
    again, _ = Store(store.folder).load()
    assert [stubs.lines_of(r) for r in again] == [stubs.lines_of(r) for r in records]
    assert all(store.get(r.cell) is not None for r in RECORDS)


def test_there_is_one_file_per_model_and_training_seed(store):
    files = sorted(p.relative_to(store.folder).as_posix() for p in store.records.rglob("*") if p.is_file())
    assert files == sorted({f"records/{r.cell.model}/seed{r.cell.training_seed}.jsonl" for r in RECORDS})
    cell = next(r.cell for r in RECORDS if r.cell.threat == "gaussian")
    assert store.name(cell) == f"records/node/seed0.jsonl#digits-gaussian-0.05-{cell.key()[:12]}"
    assert len({store.name(r.cell) for r in RECORDS}) == len(RECORDS)


def test_reading_creates_and_changes_nothing(tmp_path, store):
    none = Store(tmp_path / "none")
    assert none.load() == ([], [])
    assert none.get(RECORDS[0].cell) is None
    assert not none.folder.exists()
    store.path(OURS[0].cell).write_bytes(b"damaged")
    before = {p: p.read_bytes() for p in store.folder.rglob("*") if p.is_file()}
    store.load()
    store.get(OURS[0].cell)
    assert {p: p.read_bytes() for p in store.folder.rglob("*") if p.is_file()} == before


def test_a_later_line_of_a_cell_supersedes(store):
    newer = dataclasses.replace(RECORDS[0], seconds=123.0)
    before = store.path(newer.cell).read_bytes()
    store.put(newer)
    assert store.path(newer.cell).read_bytes().startswith(before), "appended"
    for reader in (store, Store(store.folder)):
        stored = reader.get(newer.cell)
        assert stored is not None
        assert stored.seconds == 123.0
        assert len(reader.load()[0]) == len(RECORDS)
    assert store.clear() == []
    assert store.path(newer.cell).read_bytes().count(newer.cell.key()[:32].encode()) == 1
    assert len(store.load()[0]) == len(RECORDS)


def test_what_a_file_shares_is_written_twice(store):
    lines = store.path(OURS[0].cell).read_bytes().splitlines()
    shared = [line for line in lines if b'"shared":' in line]
    assert len(lines) - len(shared) == len(OURS)
    assert all(shared.count(line) <= 2 for line in shared)
    assert any(shared.count(line) == 2 for line in shared)


def test_a_file_cut_at_any_byte_of_its_last_line_loses_that_line_alone(whole, tmp_path):
    start = whole[:-1].rindex(b"\n") + 1
    newer = dataclasses.replace(OURS[-1], seconds=9.0)
    for length in range(start, len(whole)):
        store = with_file(tmp_path / "out", whole[:length])
        records, damages = store.load()
        complete = length == len(whole) - 1  # only the line end is missing
        assert keys(records) == keys(OURS if complete else OURS[:-1])
        assert len(damages) == (not complete and length > start)
        if damages:
            assert (damages[0].path, damages[0].line) == (store.path(OURS[0].cell), whole.count(b"\n"))
            assert str(damages[0]).startswith(
                f"{store.path(OURS[0].cell)} line {whole.count(chr(10).encode())}: "
            )
        if length % 7 == 0:  # a writer that has not cleared it spoils nothing either
            store.put(newer)
            assert keys(store.load()[0]) == keys(OURS)
            assert store.get(newer.cell).seconds == 9.0


@settings(max_examples=60)
@given(st.data())
def test_a_changed_byte_anywhere_costs_at_most_the_lines_it_touches(whole, tmp_path_factory, data):
    place = data.draw(st.integers(0, len(whole) - 1))
    change = data.draw(st.integers(1, 255))
    spoiled = whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :]
    store = with_file(tmp_path_factory.mktemp("spoiled"), spoiled)
    touched = {whole[:place].count(b"\n")}
    if whole[place : place + 1] == b"\n":
        touched.add(place and whole[: place + 1].count(b"\n"))
    lines = dict(enumerate(whole.splitlines()))
    lost = [r for r in OURS if any(r.cell.key()[:32].encode() in lines.get(n, b"") for n in touched)]
    records, damages = store.load()
    assert keys(OURS) - keys(lost) <= keys(records) <= keys(OURS)
    assert {stubs.lines_of(r) for r in records} <= {stubs.lines_of(r) for r in OURS}
    moved = store.clear()
    assert moved == damages
    assert Store(store.folder).load()[1] == []
    assert keys(store.load()[0]) == keys(records)
    if damages:
        aside = (store.folder / "set-aside" / "node" / "seed0.jsonl").read_bytes()
        spoiled_lines = spoiled.split(b"\n")
        assert aside == b"".join(spoiled_lines[d.line - 1] + b"\n" for d in damages)


def test_cleared_lines_are_added_to_those_set_aside_before(store):
    for text in (b"one", b"two"):
        path = store.path(OURS[0].cell)
        path.write_bytes(path.read_bytes() + text)
        assert [d.line for d in store.clear()] == [path.read_bytes().count(b"\n") + 1]
    assert (store.folder / "set-aside" / "node" / "seed0.jsonl").read_bytes() == b"one\ntwo\n"
    assert len(store.load()[0]) == len(RECORDS)


def test_a_newer_schema_is_refused_in_one_line_and_left_as_it_is(store, monkeypatch):
    monkeypatch.setattr("robustode.bench.records.lines.SCHEMA", 3)
    line = write_record(OURS[0])[0]
    monkeypatch.undo()
    path = store.path(OURS[0].cell)
    path.write_bytes(path.read_bytes() + line)
    before = path.read_bytes()
    for call in (store.load, store.clear, lambda: store.get(OURS[0].cell), lambda: store.put(OURS[0])):
        with pytest.raises(InvalidArgument, match=r"seed0\.jsonl line \d+: schema 3 is not known") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_an_older_schema_is_refused_and_the_remedy_named(tmp_path):
    (tmp_path / "records" / "node").mkdir(parents=True)
    (tmp_path / "records" / "node" / "digits-clean-0-seed0-0123456789ab.json").write_text("{}")
    store = Store(tmp_path)
    for call in (store.load, store.clear, store.require_records, lambda: store.get(OURS[0].cell)):
        with pytest.raises(InvalidArgument, match=f"schema 1: run `robustode upgrade --out {tmp_path}`"):
            call()
    with pytest.raises(InvalidArgument, match="schema 1"), store.lock():
        pass


@pytest.mark.parametrize("model", ["../../escape", "..", "/tmp/escape", "a/b"])
def test_a_record_cannot_name_a_place_outside_its_folder(store, model, tmp_path):
    """A hand-made line whose checksum holds is still refused, and set aside inside the folder."""
    hostile: Record = dataclasses.replace(OURS[0], cell=dataclasses.replace(OURS[0].cell, model=model))
    path = store.path(OURS[0].cell)
    path.write_bytes(path.read_bytes() + stubs.lines_of(hostile))
    before = {p for p in tmp_path.rglob("*") if not p.is_relative_to(store.folder)}
    records, damages = store.load()
    assert len(records) == len(RECORDS)
    assert [d.reason for d in damages] == ["it belongs into the file of another model or training seed"]
    store.clear()
    assert {p for p in tmp_path.rglob("*") if not p.is_relative_to(store.folder)} == before
    assert store.load()[1] == []


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


def test_what_a_full_disk_has_no_room_for_is_taken_back(store, monkeypatch):
    path = store.path(OURS[0].cell)
    before, write = path.read_bytes(), os.write

    def full(file, data):
        if len(data) < 50:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[:50])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        store.put(dataclasses.replace(OURS[0], seconds=5.0))
    monkeypatch.undo()
    assert path.read_bytes() == before


def test_a_write_makes_folders_and_a_readable_file(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, b"x")
    assert path.read_bytes() == b"x"
    assert path.stat().st_mode & 0o777 == 0o644


def test_two_processes_that_append_to_one_file_spoil_no_line(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=append_many, args=(tmp_path, OURS, float(n))) for n in (1, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    records, damages = Store(tmp_path).load()
    assert damages == []
    assert keys(records) == keys(OURS)
    assert {r.seconds for r in records} <= {1.0, 2.0}
    lines = Store(tmp_path).path(OURS[0].cell).read_bytes().splitlines()
    assert sum(b'"key":' in line for line in lines) == 6 * len(OURS)


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
    half = store.records / "node" / temporary_name()
    half.write_bytes(b"{")
    assert store.load()[1] == []
    with store.lock():
        assert not half.exists()
