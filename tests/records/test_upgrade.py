"""`robustode upgrade`: a folder of schema 1 becomes one of schema 2, whole or not at all."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import lzma
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import synthetic
from robustode._errors import InvalidArgument, RecordError
from robustode.bench.cli.main import main
from robustode.bench.records import schema_1, upgrade
from robustode.bench.records.adversarial_examples import AdversarialExamples
from robustode.bench.records.checkpoint import load_bytes
from robustode.bench.records.headline import Headline
from robustode.bench.records.predictions import predictions
from robustode.bench.records.record import Record, digest
from robustode.bench.records.store import Store

LABELS = np.arange(30) % 10
EXAMPLES = AdversarialExamples(
    index=np.array([3, 5]), label=np.array([3, 5]), steps=np.arange(32, dtype=np.int32).reshape(2, 1, 4, 4)
)


def encoded(array: np.ndarray) -> dict:
    raw = (
        np.packbits(array.ravel()).tobytes() if array.dtype == bool else np.ascontiguousarray(array).tobytes()
    )
    data = base64.b64encode(zlib.compress(raw)).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}


def write_old(folder: Path, record: Record) -> Path:
    """Store a record as version 0.1 did; its outcomes have whole predictions and norms."""
    outcomes = dict(record.outcomes)
    if record.cell.kind == "accuracy":
        outcomes["prediction"] = predictions(outcomes, LABELS)
        outcomes.pop("misclassified_as")
        if record.cell.norm:
            outcomes["norm"] = np.full(outcomes["correct"].shape, record.cell.strength / 2, np.float32)
    body = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    body |= {"cell": dataclasses.asdict(record.cell), "schema_version": 1, "key": record.cell.key()}
    body["outcomes"] = {name: encoded(array) for name, array in outcomes.items()}
    body["examples"] = {name: encoded(array) for name, array in record.examples.items()}
    body["sha256"] = digest(body)
    path = folder / "records" / record.cell.model / f"{schema_1.file_stem(record.cell)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body), encoding="utf-8")
    return path


def made() -> list[Record]:
    """Two models: one attack with examples, weights, and an expected failure of an old name."""
    records = []
    grid = ("gaussian", "pgd-linf")
    for record in synthetic.records(models=("node", "resnet"), samples=30, threats=grid):
        if record.cell.kind == "accuracy":
            correct = record.outcomes["correct"]
            record = synthetic.record_of(record.cell, correct, LABELS, examples=record.examples)
        records.append(record)
    return records


@pytest.fixture
def old(tmp_path) -> tuple[Path, list[Record]]:
    folder, records = tmp_path / "out", []
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, index=EXAMPLES.index, label=EXAMPLES.label, steps=EXAMPLES.steps.astype(np.int16)
    )
    for record in made():
        cell, card = record.cell, dict(record.card)
        if cell.kind == "training":
            weights = f"weights of {cell.model} {cell.training_seed}".encode()
            card["checkpoint_sha256"] = hashlib.sha256(weights).hexdigest()
            card["expected_failures"] = {"batch_independent": "because"}
            name = f"{cell.dataset}-seed{cell.training_seed}-{cell.key()[:12]}"
            path = folder / "checkpoints" / cell.model / f"{name}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(weights)
            path.with_suffix(".json").write_text("{}")
        if cell.norm and cell.strength == 0.1:
            stem = schema_1.file_stem(cell)
            path = folder / "adversarial" / cell.model / f"{stem}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(buffer.getvalue())
            sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
            card["adversarial"] = {"file": "x", "sha256": sha256, "count": 2, "samples": 30}
        record = dataclasses.replace(record, card=card)
        write_old(folder, record)
        records.append(record)
    Headline(preset="quick", reported={"linf": 0.1}, rank="linf").write(folder)
    return folder, records


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def check(folder: Path, records: list[Record]) -> None:
    store = Store(folder)
    found = {record.cell.key(): record for record in store.load()[0]}
    assert found.keys() == {record.cell.key() for record in records}
    assert not (folder / "upgrade").exists()
    for record in records:
        new = found[record.cell.key()]
        if record.cell.kind == "accuracy":
            assert new.accuracy == record.accuracy
            np.testing.assert_array_equal(
                predictions(new.outcomes, LABELS), predictions(record.outcomes, LABELS)
            )
            assert "norm" not in new.outcomes
            if record.cell.norm:
                assert new.measures["largest_norm"] == np.float32(record.cell.strength / 2)
        if record.cell.kind == "training":
            plain = load_bytes(store.checkpoint_path(record.cell))
            assert hashlib.sha256(plain).hexdigest() == new.card["checkpoint_sha256"]
            assert new.card["expected_failures"] == {"batch-independence": "because"}
        if "adversarial" in record.card:
            assert np.array_equal(store.get_examples(record.cell).steps, EXAMPLES.steps)
            assert new.card["adversarial"]["npz_sha256"] == record.card["adversarial"]["sha256"]
            assert store.get(record.cell) is not None
        shown = record.cell.training_seed == 0 and record.cell.strength in (0.0, 0.05, 0.1)
        assert not new.examples or shown


def test_a_folder_is_converted_once(old, capsys):
    folder, records = old
    assert main(["run", "--models", "resnet", "--out", str(folder)]) == 2
    assert f"schema 1: run `robustode upgrade --out {folder}`" in capsys.readouterr().err
    assert main(["upgrade", "--out", str(folder)]) == 0
    assert f"{len(records)} records" in capsys.readouterr().out
    check(folder, records)
    before = contents(folder)
    assert main(["upgrade", "--out", str(folder)]) == 0
    assert contents(folder) == before


@pytest.mark.parametrize("step", range(0, 40, 3))
def test_an_upgrade_that_was_stopped_anywhere_goes_on(old, monkeypatch, step):
    """Every replacing, copying and removing of files may be the last."""
    folder, records = old
    left = [step]

    def stopping(real):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for module, name in ((upgrade.os, "replace"), (shutil, "rmtree")):
            patch.setattr(module, name, stopping(getattr(module, name)))
        try:
            upgrade.upgrade(folder)
        except KeyboardInterrupt:
            with pytest.raises(InvalidArgument, match="robustode upgrade"):
                Store(folder).load()
    upgrade.upgrade(folder)
    check(folder, records)


def test_an_upgrade_that_goes_on_says_what_was_done(old, monkeypatch, capsys):
    folder, records = old
    (folder / "adversarial" / "note.txt").write_text("mine")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(upgrade, "_swap", stop)
        with pytest.raises(KeyboardInterrupt):
            upgrade.upgrade(folder)
    assert main(["upgrade", "--out", str(folder)]) == 0
    out = capsys.readouterr().out
    assert f"{len(records)} records" in out
    assert "adversarial/note.txt" in out
    check(folder, records)


def test_records_that_all_are_damaged_are_set_aside(old, capsys):
    folder, records = old
    for path in folder.glob("records/*/*.json"):
        path.write_bytes(path.read_bytes()[:100])
    assert main(["upgrade", "--out", str(folder)]) == 0
    assert capsys.readouterr().out.count("records/") == len(records)
    assert len(list((folder / "set-aside" / "records").rglob("*.json"))) == len(records)
    assert Store(folder).load() == ([], [])
    assert not (folder / "upgrade").exists()


def test_records_of_both_schemas_are_refused(old, tmp_path, capsys):
    folder, records = old
    Store(tmp_path / "new").put(records[0])
    shutil.copytree(tmp_path / "new" / "records", folder / "records", dirs_exist_ok=True)
    before = contents(folder)
    assert main(["upgrade", "--out", str(folder)]) == 2
    assert "both schemas" in capsys.readouterr().err
    assert contents(folder) == before


def test_what_does_not_read_back_replaces_nothing(old, monkeypatch):
    folder, records = old
    before = contents(folder)
    monkeypatch.setattr(upgrade, "compress", lambda plain: lzma.compress(plain + b"x"))
    with pytest.raises(RecordError, match="does not read back the same"):
        upgrade.upgrade(folder)
    assert {
        name: data for name, data in contents(folder).items() if not name.startswith("upgrade/")
    } == before
    monkeypatch.undo()
    upgrade.upgrade(folder)
    check(folder, records)


def test_damaged_and_foreign_files_are_set_aside(old):
    folder, records = old
    path = folder / "records" / "node" / f"{schema_1.file_stem(records[0].cell)}.json"
    path.write_bytes(path.read_bytes()[:100])
    (folder / "adversarial" / "note.txt").write_text("mine")
    done = upgrade.upgrade(folder)
    assert {"adversarial/note.txt", path.relative_to(folder).as_posix()} <= set(done.set_aside)
    for name in done.set_aside:
        assert (folder / "set-aside" / name).is_file()
    assert len(Store(folder).load()[0]) == len(records) - 1


def test_a_folder_without_records_is_one_line(tmp_path, capsys):
    assert main(["upgrade", "--out", str(tmp_path / "none")]) == 2
    assert main(["upgrade", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 2
    assert list(tmp_path.iterdir()) == [], "nothing is written into it"
