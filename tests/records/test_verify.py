"""`robustode verify`: a sound folder agrees with itself, and every planted fault is named."""

from __future__ import annotations

import dataclasses
import re
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import robustode
import stubs
import torch
from robustode._errors import RecordError
from robustode.bench.cli.main import main
from robustode.bench.config.plan import make_plan
from robustode.bench.config.preset import load_preset
from robustode.bench.data import Data, default_root
from robustode.bench.records import examples_archive
from robustode.bench.records.adversarial_examples import AdversarialExamples, add_steps
from robustode.bench.records.checkpoint import load_tensors, save_tensors
from robustode.bench.records.examples_archive import content_sha256
from robustode.bench.records.predictions import outcomes_of, split_outcomes
from robustode.bench.records.record import Record
from robustode.bench.records.store import Store, label_in_file
from robustode.bench.report.report import write_report
from robustode.bench.runner import cell_run as measure
from robustode.bench.runner.run import run_plan
from robustode.bench.verification import recompute as recheck
from robustode.bench.verification.report_consistency import Finding, without_pictures
from robustode.bench.verification.verify import Verification, verify

CELLS = stubs.CELLS + stubs.FLOW_CELLS
"""Of one model with a flow."""

RESULTS = Path(__file__).parents[2] / "results"
MNIST_PRESETS = ("certified", "paper", "standard")


@pytest.fixture(scope="module")
def sound(tmp_path_factory, digits) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    plan = make_plan(load_preset(str(stubs.preset_file(folder))))
    assert run_plan(plan, digits, Store(folder / "out"), device=stubs.CPU).failures == []
    write_report(folder / "out")
    return folder / "out"


@pytest.fixture
def folder(sound, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(sound, tmp_path / "out"))


def attack(folder: Path) -> Record:
    records, _ = Store(folder).load()
    return next(record for record in records if record.cell.norm == "linf" and record.cell.kind == "accuracy")


def examples(folder: Path) -> AdversarialExamples:
    return Store(folder).get_examples(attack(folder).cell)


def replace_examples(folder: Path, *, honest_hash: bool = True, **changes: np.ndarray) -> None:
    """Other examples under a record that vouches for them: only looking at them tells."""
    record, store = attack(folder), Store(folder)
    breaks = dataclasses.replace(examples(folder), **changes)
    facts = store.put_examples(record.cell, breaks)
    if honest_hash:
        store.put(dataclasses.replace(record, card={"adversarial": facts}))


def lines(found: Verification) -> list[str]:
    return [str(finding) for finding in found.disagreements]


UNRUN = "checkpoints: no trained model could be run again, so no example was: see the notes"


def only(folder: Path) -> str:
    (line,) = lines(verify(folder))
    return line


def test_a_sound_folder_agrees_with_itself(sound, digits, capsys):
    said: list[str] = []
    found = verify(sound, say=said.append)
    assert found.findings == []
    count = len(examples(sound))
    assert (found.records, found.models, found.predicted) == (CELLS, 1, count)
    assert 0 < count < 40
    assert any(f"{count} adversarial examples" in line for line in said)
    assert main(["verify", "--out", str(sound)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == (
        f"checked: records {CELLS}, models 1, adversarial examples {count}; disagreements: 0, notes: 0"
    )
    assert err == ""


def test_what_is_stored_lies_beside_its_record_and_breaks_the_model(sound, digits):
    record, breaks = attack(sound), examples(sound)
    assert Store(sound).examples_path(record.cell) == sound / "adversarial" / "resnet" / "seed0.zip"
    assert record.card["adversarial"]["sha256"] == content_sha256(breaks)
    rows = [list(digits.test.indices).index(index) for index in breaks.index]
    clean = digits.test.images[rows].numpy()
    images = add_steps(clean, breaks.steps)
    assert np.abs(images.astype(float) - clean).max() <= 0.05
    with torch.no_grad():
        predicted = robustode.load_model(sound, "resnet")(torch.from_numpy(images)).argmax(1)
    assert (predicted.numpy() != breaks.label).all()


def test_a_run_again_keeps_examples_and_makes_those_that_are_gone(sound, folder, digits, monkeypatch):
    plan = make_plan(load_preset(str(stubs.preset_file(folder))))
    path = Store(folder).examples_path(attack(folder).cell)
    before = path.read_bytes()
    assert run_plan(plan, digits, Store(folder), device=stubs.CPU).done == 0
    path.unlink()
    assert run_plan(plan, digits, Store(folder), device=stubs.CPU).done == 1
    assert path.read_bytes() == before
    monkeypatch.setattr(measure, "evaluate_cell", None)
    assert run_plan(plan, digits, Store(folder), device=stubs.CPU).done == 0


def test_an_example_at_a_larger_strength_vouches_for_nothing_at_a_smaller_one(tmp_path, digits):
    """The reported strength is lowered in a folder that holds the larger one's examples."""
    smaller = stubs.PRESET.replace("strengths = [0.05]", "strengths = [0.05, 0.1]")
    larger, store = smaller.replace("reported = 0.05", "reported = 0.1"), Store(tmp_path / "out")
    for text in (larger, smaller):
        plan = make_plan(load_preset(str(stubs.preset_file(tmp_path, text))))
        outcome = run_plan(plan, digits, store, device=stubs.CPU)
    assert outcome.done == 1
    write_report(store.folder)
    assert lines(verify(store.folder)) == []
    records = {(r.cell.threat, r.cell.strength): r for r in store.load()[0]}
    record, clean = records["pgd-linf", 0.05], records["clean", 0.0].outcomes["correct"][0]
    broken = int((clean & ~record.outcomes["correct"][0]).sum())
    assert record.card["adversarial"]["count"] == broken > 0
    facts = store.put_examples(record.cell, store.get_examples(record.cell).of(set()))
    store.put(dataclasses.replace(record, card={"adversarial": {**facts, "samples": 40}}))
    bare = f"{broken} of the {broken} samples that its record calls broken have no example stored"
    assert [line for line in lines(verify(store.folder)) if bare in line]


def moved(breaks: AdversarialExamples, by: int) -> np.ndarray:
    """One pixel of the first example further from the clean one, by `by` steps."""
    steps = breaks.steps.copy()
    where = (0, *np.argwhere(steps[0] > 0)[0])
    steps[where] += by
    return steps


def test_a_pixel_out_of_budget_is_named(folder):
    breaks = examples(folder)
    replace_examples(folder, steps=moved(breaks, 200))
    line = only(folder)
    assert line.startswith("adversarial/resnet/seed0.zip#digits-pgd-linf-0.05-")
    count = len(breaks)
    assert f"1 of {count} (first: sample {breaks.index[0]}) leave the budget linf 0.05 or the box" in line


def test_a_pixel_out_of_the_box_is_named(folder, digits):
    breaks = examples(folder)
    row = list(digits.test.indices).index(breaks.index[0])
    steps = breaks.steps.copy()
    steps[(0, *np.argwhere(digits.test.images[row].numpy() == 0)[0])] = -5
    replace_examples(folder, steps=steps)
    assert "leave the budget linf 0.05 or the box [0, 1], by up to 7.63e-05" in only(folder)


def test_an_edited_file_of_examples_is_named(folder):
    replace_examples(folder, honest_hash=False, steps=moved(examples(folder), -1))
    assert "hash" in only(folder)
    Store(folder).examples_path(attack(folder).cell).write_bytes(b"PK no")
    assert "BadZipFile" in only(folder)


def test_a_swapped_label_is_named(folder):
    breaks = examples(folder)
    label = breaks.label.copy()
    label[1] = (label[1] + 1) % 10
    replace_examples(folder, label=label)
    assert f"(first: sample {breaks.index[1]}) have another label than the dataset" in only(folder)


def test_an_index_of_another_sample_is_named(folder, digits):
    index = examples(folder).index.copy()
    index[0] = digits.test.indices[200]
    replace_examples(folder, index=index)
    assert re.search("indices .* 40", only(folder))
    index[0] = index[1]
    replace_examples(folder, index=index)
    assert re.search("indices .* 40", only(folder))


def test_an_image_that_is_not_adversarial_is_named(folder):
    breaks = examples(folder)
    steps = breaks.steps.copy()
    steps[2] = 0
    replace_examples(folder, steps=steps)
    found = lines(verify(folder))
    assert len(found) == 2
    for line, how in zip(found, ("at batch size 1", "in shuffled batches"), strict=True):
        assert f"sample {breaks.index[2]}) are classified correctly {how}: not adversarial" in line


def test_an_example_too_few_is_named(folder):
    breaks = examples(folder)
    replace_examples(folder, index=breaks.index[1:], label=breaks.label[1:], steps=breaks.steps[1:])
    assert f"1 of the {len(breaks)} samples that its record calls broken have no example stored" in only(
        folder
    )


def test_a_count_that_is_not_that_of_the_file_is_named(folder):
    record, store = attack(folder), Store(folder)
    facts = record.card["adversarial"]
    edited = {**facts, "count": facts["count"] + 1}
    store.put(dataclasses.replace(record, card={**record.card, "adversarial": edited}))
    assert f"{facts['count']} examples, its record says {facts['count'] + 1}" in only(folder)


def test_a_missing_file_of_examples_is_named(folder):
    Store(folder).examples_path(attack(folder).cell).unlink()
    assert only(folder).startswith("adversarial/resnet/seed0.zip#digits-pgd-linf-0.05-")
    assert only(folder).endswith(": missing: its record counts these adversarial examples")


def test_a_record_that_claims_more_is_named(folder):
    """Its hash is right, since whoever edits a record can compute it; its samples tell."""
    record = attack(folder)
    correct = np.ones_like(record.outcomes["correct"])
    outcomes = {"correct": correct, "misclassified_as": np.zeros(0, np.uint8)}
    Store(folder).put(dataclasses.replace(record, outcomes=outcomes))
    write_report(folder)
    found = "\n".join(lines(verify(folder)))
    assert f"{len(examples(folder).index)} of its samples" in found


def test_a_record_that_calls_its_label_a_mistake_is_named(folder, digits):
    record = attack(folder)
    labels = np.where(record.outcomes["correct"], -1, digits.test.labels[:40].numpy())
    outcomes = split_outcomes(labels.astype(np.int16), record.outcomes["correct"])
    Store(folder).put(dataclasses.replace(record, outcomes=outcomes))
    assert re.search("outcomes .*labels", only(folder))


def test_a_norm_beyond_the_budget_is_named(folder):
    record = attack(folder)
    assert 0 < record.measures["largest_norm"] <= 0.05 + 1e-6
    Store(folder).put(dataclasses.replace(record, measures={"largest_norm": 0.06}))
    write_report(folder)
    assert "a norm of 0.06 exceeds 0.05" in only(folder)


def test_clean_predictions_that_the_weights_do_not_make_are_named(folder, digits):
    store = Store(folder)
    record = next(r for r in store.load()[0] if r.cell.family == "clean")
    better = stubs.predicted(record, digits.test)
    better[0, :5] = (better[0, :5] + 1) % 10
    store.put(dataclasses.replace(record, outcomes=outcomes_of(better, digits.test.labels[:40].numpy())))
    write_report(folder)
    found = lines(verify(folder))
    assert any("5 of 40 clean predictions differ (1 may on another machine)" in line for line in found)


def edit(folder: Path, name: str, old: str, new: str) -> None:
    path = folder / "report" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def cell_of(folder: Path, name: str, statistic: str, column: str) -> str:
    import pandas as pd

    table = pd.read_csv(folder / "report" / name, dtype=str)
    if statistic:
        table = table[(table["statistic"] == statistic) & (table["threat"] == "worst-case")]
    return str(table[column].iloc[0])


def test_an_edited_headline_number_is_named(folder):
    value = cell_of(folder, "leaderboard.csv", "", "linf@0.05")
    edit(folder, "leaderboard.csv", f",{value},", ",0.999,")
    assert only(folder) == (
        "report/leaderboard.csv: row 1 (digits resnet), column linf@0.05: "
        f"it says '0.999', the records give '{value}'"
    )


def test_an_edited_interval_is_named(folder):
    low = cell_of(folder, "summary.csv", "accuracy", "low")
    edit(folder, "summary.csv", f",{low},", ",0.5,")
    line = only(folder)
    assert line.startswith("report/summary.csv: row ")
    assert "column low: it says '0.5', the records give" in line


def test_edited_markdown_and_absent_tables_are_named(folder):
    edit(folder, "leaderboard.md", "resnet", "resnet-50")
    assert "leaderboard.md: line 7 is not what the records make: it says '[resnet-50](" in only(folder)
    (folder / "report" / "leaderboard.md").unlink()
    write_report(folder)
    (folder / "report" / "summary.csv").unlink()
    assert only(folder).startswith("report/summary.csv: missing: run `robustode report`")
    lines_of = (folder / "report" / "leaderboard.csv").read_text().splitlines()
    (folder / "report" / "leaderboard.csv").write_text(lines_of[0] + "\n")
    assert "it has 0 rows, the records make 1" in lines(verify(folder))[0]


def test_an_edited_number_on_the_page_is_named(folder):
    page = folder / "report" / "index.html"
    text = page.read_text()
    value = f"{100 * float(cell_of(folder, 'leaderboard.csv', '', 'linf@0.05')):.1f}"
    assert value in text
    page.write_text(text.replace(value, "99.9"))
    assert "report/index.html: line" in only(folder)
    assert "99.9" in only(folder)


def test_a_page_drawn_with_other_last_digits_is_the_same_page():
    one, two = (
        '<p>42.7</p><svg viewBox="0 0 1 1"><path d="M{}"/></svg><img src="data:image/png;base64,{}">'.format(
            *digits
        )
        for digits in (("0.1", "AAAA"), ("0.2", "BBBB"))
    )
    assert without_pictures(one) == without_pictures(two)
    assert without_pictures(one) != without_pictures(two.replace("42.7", "72.7"))


def test_a_record_that_vouches_for_no_samples_is_named(folder):
    """Whoever leaves examples out cannot say that none were due."""
    breaks = examples(folder)
    replace_examples(folder, index=breaks.index[:0], label=breaks.label[:0], steps=breaks.steps[:0])
    record, store = attack(folder), Store(folder)
    facts = {**record.card["adversarial"], "samples": 0}
    store.put(dataclasses.replace(record, card={**record.card, "adversarial": facts}))
    count = len(breaks)
    assert f"{count} of the {count} samples that its record calls broken have no example" in only(folder)


def test_a_missing_record_is_named(folder):
    cell = attack(folder).cell
    stubs.forget(Store(folder), cell)
    write_report(folder)
    found = verify(folder)
    missing = f"records/resnet/seed0.jsonl#{cell.key()[:12]}: missing: plan.json lists it for digits/resnet/0"
    assert lines(found) == [missing]
    assert [str(note) for note in found.notes] == [
        f"{Store(folder).examples_name(cell)}: no record that can be read counts these examples"
    ]


def test_an_edited_record_is_named_once(folder):
    path, key = Store(folder).path(attack(folder).cell), attack(folder).cell.key()
    lines = path.read_text().splitlines(True)
    (number,) = [n for n, line in enumerate(lines) if key[:32] in line]
    lines[number] = lines[number].replace('"forwards":', '"forwards":1')
    path.write_text("".join(lines))
    write_report(folder)
    assert only(folder) == (
        f"records/resnet/seed0.jsonl line {number + 1}: "
        "its checksum does not match its content: cut, edited by hand or damaged"
    )


def test_a_swapped_or_absent_checkpoint_is_named(folder):
    store = Store(folder)
    training = next(r for r in store.load()[0] if r.cell.kind == "training")
    path = store.checkpoint_path(training.cell)
    tensors, _ = load_tensors(path)
    save_tensors(path, {name: tensor + 1 for name, tensor in tensors.items()})
    assert only(folder) == (
        f"checkpoints/resnet/{path.name}: its hash is not the one in {CELLS} of its {CELLS} records: swapped"
    )
    path.unlink()
    assert only(folder) == f"checkpoints/resnet/{path.name}: cannot be read: No such file or directory"


def test_a_lost_plan_is_named(folder):
    (folder / "plan.json").unlink()
    write_report(folder)
    assert "plan.json: not a plan" in only(folder)


def test_other_data_are_not_compared(folder, digits, monkeypatch):
    other: Data = dataclasses.replace(digits, index_sha256="0" * 64)
    monkeypatch.setattr("robustode.bench.verification.verify.load_data", lambda name, root: other)
    assert re.search("digits .*index_sha256", only(folder))


def test_a_figure_that_the_page_shows_and_that_is_gone_is_named(folder):
    (folder / "report" / "figures" / "digits-accuracy.svg").unlink()
    found = verify(folder)
    assert lines(found) == []
    (note,) = found.notes
    assert re.search(r"report/figures: 1 of .* \(figures/digits-accuracy.svg", str(note))


def test_a_page_that_is_gone_is_a_note_and_a_table_that_is_gone_is_not(folder):
    (folder / "report" / "index.html").unlink()
    found = verify(folder)
    assert (lines(found), [note.file for note in found.notes]) == ([], ["report/index.html"])
    (folder / "report" / "leaderboard.md").unlink()
    assert only(folder).startswith("report/leaderboard.md: missing")


@pytest.mark.usefixtures("registries")
def test_a_model_from_a_file_needs_its_file(tmp_path, few, capsys):
    path = tmp_path / "net.py"
    path.write_text(
        "from torch import nn\n"
        "def flat(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))\n"
    )
    from robustode.bench.plugins.model_file import load_external

    plan = make_plan(load_preset(str(stubs.preset_file(tmp_path))), models=[load_external(f"{path}:flat")])
    run_plan(plan, few, Store(tmp_path / "out"), device=stubs.CPU)
    write_report(tmp_path / "out")
    elsewhere = path.rename(tmp_path / "moved.py")
    found = verify(tmp_path / "out")
    assert lines(found) == [UNRUN]
    assert found.models == 0
    assert re.search("net.py is not there any more, and flat .*--models", str(found.notes[0]))
    capsys.readouterr()
    elsewhere.rename(path)
    assert main(["verify", "--out", str(tmp_path / "out"), "--models", f"{path}:flat"]) == 0
    assert "models 1, " in capsys.readouterr().out


def test_another_version_is_not_run_again(folder, monkeypatch):
    from robustode.models import MODELS

    spec = MODELS.get("resnet")
    raised = dataclasses.replace(spec, version=spec.version + 1)
    monkeypatch.setitem(MODELS._items, "resnet", raised)
    found = verify(folder)
    assert lines(found) == [UNRUN]
    assert [note.what for note in found.notes] == [
        f"not run again: resnet was made by version {spec.version} of resnet, which is {raised.version} "
        "here: its code has changed since; `robustode run` trains it anew"
    ]


def test_a_stated_dependence_on_the_batch_is_a_note(folder, monkeypatch):
    def dependent(*args, **options):
        found = real(*args, **options)
        found["in shuffled batches"] = -np.ones_like(found["in shuffled batches"])
        return found

    real = recheck.relative_margins_alone_and_shuffled
    monkeypatch.setattr(recheck, "relative_margins_alone_and_shuffled", dependent)
    assert "in shuffled batches" in only(folder)
    store = Store(folder)
    training = next(r for r in store.load()[0] if r.cell.kind == "training")
    card = {**training.card, "expected_failures": {"batch-independence": "it says so"}}
    store.put(dataclasses.replace(training, card=card))
    write_report(folder)
    found = verify(folder)
    assert lines(found) == []
    assert "in shuffled batches" in found.notes[0].what


def test_a_tie_is_a_note(folder, monkeypatch):
    monkeypatch.setattr(
        recheck,
        "relative_margins_alone_and_shuffled",
        lambda *args, **options: {"at batch size 1": -1e-6 * np.ones(len(args[1]))},
    )
    found = verify(folder)
    assert lines(found) == []
    assert re.search("at batch size 1, .*0.0001", found.notes[0].what)


def test_a_disagreement_is_on_the_last_lines_with_status_1(folder, capsys):
    edit(folder, "leaderboard.md", "resnet", "resnet-50")
    Store(folder).examples_path(attack(folder).cell).unlink()
    assert main(["verify", "--out", str(folder)]) == 1
    out, err = capsys.readouterr()
    assert "disagreements: 2, notes: 0" in out.splitlines()[-1]
    assert [line.split(":")[0] for line in err.splitlines()] == ["disagrees"] * 2


@pytest.mark.parametrize("argv", [["--out", "none"], ["--models", "none.py:build"], ["--nothing"]])
def test_wrong_arguments_are_one_line_and_status_2(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with suppress(SystemExit):  # argparse prints the line itself
        assert main(["verify", *argv]) == 2
    assert capsys.readouterr().err.count("\n") == 1


MNIST = [name for name in MNIST_PRESETS if (RESULTS / name / "plan.json").exists()]


@pytest.mark.parametrize(
    "name", ["digits", "sweep", *(pytest.param(name, marks=pytest.mark.slow) for name in MNIST)]
)
def test_what_is_published_agrees_with_itself(name):
    if name in MNIST and not (default_root() / "MNIST").exists():
        pytest.skip("MNIST is not at hand")
    found = verify(RESULTS / name)
    assert lines(found) == []
    assert [note for note in found.notes if not note.file.startswith("report/")] == []
    assert found.predicted > 0
    assert found.models == {"digits": 7, "sweep": 8}.get(name, found.models)


def test_models_by_name_are_checked_alone(tmp_path, digits, capsys):
    two = stubs.PRESET.replace('models = ["resnet"]', 'models = ["resnet", "node"]')
    out = tmp_path / "out"
    run_plan(
        make_plan(load_preset(str(stubs.preset_file(tmp_path, two)))), digits, Store(out), device=stubs.CPU
    )
    write_report(out)
    for path in (out / "checkpoints" / "node").glob("*.safetensors.xz"):
        path.write_bytes(b"")
    capsys.readouterr()
    assert main(["verify", "--out", str(out), "--models", "resnet"]) == 0
    assert "models 1," in capsys.readouterr().out
    assert main(["verify", "--out", str(out)]) == 1
    assert "checkpoints/node/" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("models", "message"),
    [("resnt", "unknown model of {} 'resnt': did you mean resnet?"), (",", "--models names no model")],
)
def test_a_model_that_is_not_there_is_one_line_and_status_2(sound, capsys, models, message):
    assert main(["verify", "--out", str(sound), "--models", models]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message.format(sound) in err


def test_a_file_of_examples_damaged_anywhere_is_no_file_of_examples(sound, tmp_path):
    whole = Store(sound).examples_path(attack(sound).cell).read_bytes()
    path, name = tmp_path / "seed0.zip", label_in_file(attack(sound).cell)
    places = range(0, len(whole), max(1, len(whole) // 200))
    read = 0  # some bytes, of a date say, are of no consequence
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with suppress(RecordError, FileNotFoundError):
            examples_archive.read(path, name)
            read += 1
    assert read < len(places) / 2, "most damage is seen, and as a RecordError alone"


def test_models_that_could_not_be_run_are_named_and_counted(monkeypatch, capsys):
    note = Finding(file="records/mine/seed0.jsonl", what="not run again: no file", note=True)
    done = Verification(records=9, models=2, unrun=["mine seed 0"], findings=[note])
    monkeypatch.setattr("robustode.bench.verification.verify.verify", lambda *_, **__: done)
    assert main(["verify"]) == 0
    noted, passed, last = capsys.readouterr().out.splitlines()
    assert noted == f"note: {note}"
    assert passed.startswith("not run again: mine seed 0; ")
    assert "models 2 of 3," in last
