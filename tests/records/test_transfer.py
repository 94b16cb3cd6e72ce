"""Stored adversarial examples replayed on other models: known outcomes, and files that are not right."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import stubs
import synthetic
import torch
from robustode._errors import InvalidArgument
from robustode.bench.cli.main import main
from robustode.bench.config.plan import make_plan
from robustode.bench.config.preset import load_preset
from robustode.bench.records.adversarial_examples import AdversarialExamples
from robustode.bench.records.headline import Headline
from robustode.bench.records.latest import current
from robustode.bench.records.record import REPLAY, Record
from robustode.bench.records.store import Store
from robustode.bench.report.leaderboard.leaderboard import leaderboard
from robustode.bench.report.plots.transfer_matrix import transfer_matrices
from robustode.bench.report.statistics import summarise
from robustode.bench.report.worst_case import WORST_CASE
from robustode.bench.runner.model_transfer import TransferResult, _model, replay_all
from robustode.bench.runner.replay import Source, _replay
from robustode.bench.runner.run import run_plan
from robustode.bench.runtime.checked_model import CheckedModel
from robustode.bench.training.find_model import ModelFinder
from robustode.bench.verification.verify import verify

EPS = 0.1
WEIGHT = torch.tensor([1.0, -1.0, 0.5, 0.25]).view(1, 2, 2)


# --- one replay, of linear models whose every outcome is known ----------------------------------


@pytest.fixture(scope="module")
def samples():
    """Images of label 1 that both w.x + b and -w.x + b get right: |w.x| < b."""
    images = 0.5 + 0.2 * (torch.rand(30, 1, 2, 2, generator=torch.Generator().manual_seed(0)) - 0.5)
    return stubs.split_of(images, torch.ones(30, dtype=torch.long))


CELL = stubs.cell_for("pgd-linf", EPS, 30, family=REPLAY)


def breaks_along(split, sign: float, rows=slice(None), eps: float = EPS) -> AdversarialExamples:
    """Every pixel moved by eps against `sign` w."""
    steps = np.trunc(-sign * eps * 65535 * np.sign(WEIGHT.numpy())).astype(np.int32)
    index = split.indices[rows]
    return AdversarialExamples(
        index=index, label=split.labels.numpy()[rows], steps=np.repeat(steps[None], len(index), 0)
    )


def source(breaks: AdversarialExamples, model: str = "a", seed: int = 0) -> Source:
    return Source(model_and_seed=(("digits", model, "plain"), seed), threat="x", sha256=model, breaks=breaks)


def replayed(model, split, sources, cell=CELL):
    class Data:
        test, num_classes = split, 2

    with torch.no_grad():
        clean = model(split.images).argmax(1).numpy().astype(np.int16)
    return _replay(cell, sources, CheckedModel(model, 2, per_sample=True), Data, clean)


def broken_by(split, model) -> np.ndarray:
    """Rows that a step of eps against w breaks: those of margin below eps |w|_1."""
    with torch.no_grad():
        margin = model(split.images)[:, 1].numpy()
    assert np.abs(margin - EPS * 2.75).min() > 1e-4
    return margin < EPS * 2.75


def test_between_equal_weights_every_break_holds_and_between_opposite_ones_none(samples):
    same, opposite = stubs.two_class(WEIGHT, -0.1), stubs.two_class(-WEIGHT, 1.2)
    with torch.no_grad():
        assert bool((same(samples.images)[:, 1] > 0).all())
        assert bool((opposite(samples.images)[:, 1] > 0).all())
    broken = broken_by(samples, same)
    assert 5 < broken.sum() < 25
    ours = source(breaks_along(samples, 1.0, broken))
    outcomes, breaks, tally = replayed(same, samples, [ours])
    assert tally == [
        {"model": "a", "recipe": "plain", "seed": 0, "tried": broken.sum(), "broke": broken.sum()}
    ]
    assert np.array_equal(outcomes["correct"][0], ~broken)
    assert np.array_equal(breaks.index, samples.indices[broken])
    assert np.array_equal(breaks.steps, ours.breaks.steps)
    np.testing.assert_allclose(outcomes["norm"][0], np.where(broken, EPS, 0), atol=2e-5)
    assert outcomes["norm"].max() <= EPS + 1e-6

    outcomes, breaks, tally = replayed(opposite, samples, [ours])
    assert (tally[0]["tried"], tally[0]["broke"]) == (broken.sum(), 0)
    assert outcomes["correct"].all()
    assert len(breaks) == 0
    assert (outcomes["norm"] == 0).all()


def test_an_example_counts_only_where_the_model_is_right_without_it(samples):
    model = stubs.two_class(WEIGHT, -0.375)
    with torch.no_grad():
        right = model(samples.images)[:, 1].numpy() > 0
    assert 5 < right.sum() < 25
    outcomes, breaks, tally = replayed(model, samples, [source(breaks_along(samples, 1.0))])
    assert (tally[0]["tried"], tally[0]["broke"]) == (right.sum(), right.sum())
    assert np.array_equal(breaks.index, samples.indices[right])
    assert not outcomes["correct"].any()
    assert (outcomes["norm"][0][~right] == 0).all()


def test_the_first_source_whose_example_holds_gives_it_and_every_source_is_counted(samples):
    model = stubs.two_class(WEIGHT, -0.3)
    weak = source(breaks_along(samples, 1.0, eps=EPS / 2), "a", 0)
    strong = source(breaks_along(samples, 1.0), "a", 1)
    same_unit = source(breaks_along(samples, 1.0, slice(0, 10)), "a", 1)
    with torch.no_grad():
        margin = model(samples.images)[:, 1].numpy()
    by_weak, by_strong = margin < EPS / 2 * 2.75, margin < EPS * 2.75
    assert 3 < by_weak.sum() < by_strong.sum()
    outcomes, breaks, tally = replayed(model, samples, [weak, strong, same_unit])
    right = margin > 0
    assert [(t["seed"], t["tried"], t["broke"]) for t in tally] == [
        (0, right.sum(), (by_weak & right).sum()),
        (1, right.sum() + right[:10].sum(), (by_strong & right).sum() + (by_strong & right)[:10].sum()),
    ]
    expected = np.where(by_weak & right, EPS / 2, np.where(by_strong & right, EPS, 0))
    np.testing.assert_allclose(outcomes["norm"][0], expected, atol=2e-5)
    assert np.array_equal(breaks.index, samples.indices[by_strong & right])


def test_of_several_examples_of_one_sample_the_first_that_holds_counts(samples):
    """A file may come from elsewhere: every image in it is tried, in its order."""
    model = stubs.two_class(WEIGHT, -0.3)
    parts = [breaks_along(samples, 1.0, eps=e) for e in (0.0, 0.9 * EPS, EPS)]
    joined = {n: np.concatenate([getattr(p, n) for p in parts]) for n in ("index", "label", "steps")}
    outcomes, breaks, _ = replayed(model, samples, [source(AdversarialExamples(**joined))])
    with torch.no_grad():
        margin = model(samples.images)[:, 1].numpy()
    right, nearer = margin > 0, margin < 0.9 * EPS * 2.75
    assert (right & nearer).any()
    assert np.array_equal(outcomes["correct"][0], right & ~(margin < EPS * 2.75))
    length = np.abs(breaks.steps).max(axis=(1, 2, 3)) / 65535
    np.testing.assert_allclose(length[nearer[np.isin(samples.indices, breaks.index)]], 0.9 * EPS, atol=2e-5)


def test_what_leaves_the_budget_or_the_box_or_is_of_other_samples_is_not_tried(samples):
    model = stubs.two_class(WEIGHT, -0.3)
    with torch.no_grad():
        right = int((model(samples.images)[:, 1] > 0).sum())
    far = source(breaks_along(samples, 1.0, eps=EPS * 1.01))
    out = breaks_along(samples, 1.0)
    out.steps[:] = 65535  # above white
    others = breaks_along(samples, 1.0)
    others = dataclasses.replace(others, index=others.index + 1000)
    shaped = breaks_along(samples, 1.0)
    shaped = dataclasses.replace(shaped, steps=np.zeros((30, 1, 3, 3), np.int32))
    wide = dataclasses.replace(CELL, strength=2.0)
    for sources, cell in (
        ([far], CELL),
        ([source(out)], wide),
        ([source(others)], CELL),
        ([source(shaped)], CELL),
    ):
        outcomes, breaks, tally = replayed(model, samples, sources, cell)
        assert (tally[0]["tried"], tally[0]["broke"], len(breaks)) == (0, 0, 0)
        assert outcomes["correct"].sum() == right


def test_what_holds_among_others_alone_is_no_break(samples):
    """A model that answers by how many it is asked at once."""

    class Crowd(torch.nn.Module):
        def forward(self, images):
            alone = torch.full((len(images),), -1.0 if len(images) > 1 else 1.0)
            return torch.stack([torch.zeros(len(images)), alone], 1)

    clean = np.ones(30, np.int16)

    class Data:
        test, num_classes = samples, 2

    outcomes, breaks, tally = _replay(CELL, [source(breaks_along(samples, 1.0))], Crowd(), Data, clean)
    assert tally[0]["broke"] == 30
    assert len(breaks) == 0
    assert outcomes["correct"].all()


# --- a folder -----------------------------------------------------------------------------------

PRESET = (
    stubs.PRESET.replace("steps = 3", "steps = 2")
    .replace("0.05", f"{EPS:g}")
    .replace("samples = 40", "samples = 30")
    .split("[throughput]")[0]
    + "[time_limit]\ntraining = 60\ncell = 30\n"
)
COLUMN = f"linf@{EPS:g}"


def two(folder: Path, digits, text: str = PRESET, seeds: int = 1) -> Path:
    text = text.replace('models = ["resnet"]', 'models = ["resnet", "node"]')
    plan = make_plan(load_preset(str(stubs.preset_file(folder, text))), seeds=seeds)
    assert run_plan(plan, digits, Store(folder / "out"), device=stubs.CPU).failures == []
    return folder / "out"


@pytest.fixture(scope="module")
def attacked(tmp_path_factory, digits) -> Path:
    """Two models and their attacks; nothing replayed yet."""
    return two(tmp_path_factory.mktemp("attacked"), digits)


@pytest.fixture
def folder(attacked, tmp_path) -> Path:
    return Path(shutil.copytree(attacked, tmp_path / "out"))


def replays(folder: Path) -> list[Record]:
    return [r for r in Store(folder).load()[0] if r.cell.family == REPLAY]


def attacks(folder: Path, model: str) -> list[Record]:
    used, _ = current(Store(folder).load()[0])
    return [r for r in used if r.cell.model == model and r.cell.kind == "accuracy" and r.cell.norm]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_breaks_another_model_joins_the_worst_case_and_verifies(folder, capsys):
    before = board_of(folder)
    assert main(["transfer", "--out", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "2 cells done, 0 stored already" in out
    records, _ = Store(folder).load()
    assert [r.cell.model for r in replays(folder)] == ["node", "resnet"]
    board = pd.read_csv(folder / "report" / "leaderboard.csv").set_index("model")
    assert (board["status"] == "ok").all()
    for record in replays(folder):
        cell = record.cell
        (other,) = {"node", "resnet"} - {cell.model}
        (made,) = [r for r in attacks(folder, other) if r.cell.family == "gradient"]
        (own,) = [r for r in attacks(folder, cell.model) if r.cell.family == "gradient"]
        clean = next(r for r in records if r.cell.family == "clean" and r.cell.model == cell.model)
        stored = Store(folder).get_examples(made.cell)
        right = clean.outcomes["correct"][0, :30]
        tried = int(np.isin(np.flatnonzero(right), np.flatnonzero(~made.outcomes["correct"][0])).sum())
        (line,) = record.card["transfer"]
        assert (line["model"], line["seed"]) == (other, 0)
        assert 0 < line["tried"] <= min(len(stored), tried)
        assert 0 < line["broke"] <= line["tried"]
        assert record.card["adversarial"]["count"] == line["broke"]
        assert int((right & ~record.outcomes["correct"][0]).sum()) == line["broke"]
        assert (cell.strength, cell.threat, cell.samples) == (EPS, "transfer-linf", 30)
        assert record.measures["largest_norm"] <= EPS + 1e-6
        assert (record.backwards, record.forwards > 0) == (0, True)
        worst = own.outcomes["correct"][0] & record.outcomes["correct"][0] & right
        assert board.loc[cell.model, COLUMN] == pytest.approx(worst.mean())
        assert board.loc[cell.model, COLUMN] <= before.loc[cell.model, COLUMN]
    page = (folder / "report" / "index.html").read_text()
    assert 'id="transfer"' in page
    assert (folder / "report" / "figures" / "digits-transfer-linf.svg").exists()
    table = (folder / "report" / "transfer.md").read_text()
    assert f"({replays(folder)[0].card['transfer'][0]['broke']} / " in table
    found = verify(folder)
    assert found.findings == []
    assert found.predicted == sum(r.card["adversarial"]["count"] for r in records if "adversarial" in r.card)


def test_the_same_again_changes_nothing(folder):
    assert replay_all(Store(folder)).done == 2
    before = contents(folder)
    again = replay_all(Store(folder))
    assert (again.done, again.skipped) == (0, 2)
    assert contents(folder) == before


def board_of(folder: Path) -> pd.DataFrame:
    return leaderboard(Store(folder).load()[0], Headline.read(folder)).set_index("model")


def test_one_target_leaves_the_other_its_row(folder):
    store = Store(folder)
    done = replay_all(store, names=["resnet"])
    assert (done.done, done.skipped, done.notes, done.failures) == (1, 0, [], [])
    assert [r.cell.model for r in replays(folder)] == ["resnet"]
    board = board_of(folder)
    assert (board["status"] == "ok").all()
    assert board[COLUMN].notna().all()


def second_model(folder: Path, seed: int = 1) -> None:
    """Store resnet again as if it had been trained with another seed to the same weights."""
    store = Store(folder)
    for record in store.load()[0]:
        if record.cell.model != "resnet":
            continue
        cell = dataclasses.replace(record.cell, training_seed=seed)
        card = dict(record.card)
        if record.cell.kind == "training":
            shutil.copy(store.checkpoint_path(record.cell), store.checkpoint_path(cell))
        if "adversarial" in card:
            card["adversarial"] = store.put_examples(cell, store.get_examples(record.cell))
        store.put(dataclasses.replace(record, cell=cell, card=card))


def test_equal_weights_under_another_seed_share_every_break(folder):
    second_model(folder)
    assert replay_all(Store(folder)).failures == []
    (made,) = [
        r for r in attacks(folder, "resnet") if r.cell.family == "gradient" and r.cell.training_seed == 0
    ]
    for record in replays(folder):
        for line in record.card["transfer"]:
            if record.cell.model == line["model"]:
                assert line["seed"] != record.cell.training_seed
                assert line["tried"] == line["broke"] == made.card["adversarial"]["count"] > 0
    used, _ = current(Store(folder).load()[0])
    board = board_of(folder).reset_index().assign(label=lambda b: b["model"])
    ((_, norm, strength, tried, broke),) = transfer_matrices(used, board)
    assert (norm, strength) == ("linf", EPS)
    assert tried.loc["resnet", "resnet"] == broke.loc["resnet", "resnet"]
    assert tried.loc["resnet", "resnet"] == 2 * made.card["adversarial"]["count"]
    assert tried.loc["node", "node"] == 0
    wrong = [finding for finding in verify(folder).disagreements if not finding.file.startswith("report/")]
    assert wrong == []


def test_new_sources_make_a_new_record_and_the_old_one_no_longer_counts(folder):
    store = Store(folder)
    replay_all(store)
    (made,) = [r for r in attacks(folder, "node") if r.cell.family == "gradient"]
    breaks = store.get_examples(made.cell)
    fewer = AdversarialExamples(index=breaks.index[:1], label=breaks.label[:1], steps=breaks.steps[:1])
    store.put(dataclasses.replace(made, card={"adversarial": store.put_examples(made.cell, fewer)}))
    done = replay_all(store)
    assert (done.done, done.skipped) == (1, 1)
    ours = [r for r in replays(folder) if r.cell.model == "resnet"]
    assert len(ours) == 2
    used, superseded = current(store.load()[0])
    (counts,) = [r for r in used if r.cell.family == REPLAY and r.cell.model == "resnet"]
    assert counts.card["transfer"][0]["tried"] <= 1
    assert superseded == 1
    assert replay_all(store, fresh=True).done == 2


def tampered(folder: Path, change) -> list[str]:
    """What verify says once the stored examples of one replay are changed, hashes and all."""
    store = Store(folder)
    replay_all(store)
    record = replays(folder)[0]
    breaks = change(store.get_examples(record.cell))
    card = {**record.card, "adversarial": store.put_examples(record.cell, breaks)}
    store.put(dataclasses.replace(record, card=card))
    return [str(finding) for finding in verify(folder).disagreements]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: dataclasses.replace(b, steps=b.steps * 2), "leave the budget linf 0.1"),
        (lambda b: dataclasses.replace(b, steps=b.steps * 0), "classified correctly at batch size 1"),
        (lambda b: dataclasses.replace(b, label=(b.label + 1) % 10), "have another label"),
        (
            lambda b: AdversarialExamples(index=b.index[1:], label=b.label[1:], steps=b.steps[1:]),
            "1 of the .* have no example",
        ),
    ],
)
def test_a_tampered_replay_is_found(folder, change, message):
    assert any(re.search(message, line) for line in tampered(folder, change))


def test_examples_that_are_not_as_their_record_says_are_not_replayed(folder, monkeypatch, capsys):
    monkeypatch.setattr("robustode.bench.cli.results_commands.show_report", lambda out: 0)
    store = Store(folder)
    for model in ("node", "resnet"):
        (made,) = [r for r in attacks(folder, model) if r.cell.family == "gradient"]
        if model == "node":
            path = store.examples_path(made.cell)
            path.write_bytes(path.read_bytes()[:-1])
    assert main(["transfer", "--out", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "note: not replayed: adversarial/node/" in out
    assert [r.cell.model for r in replays(folder)] == ["node"], "nothing is left to replay on resnet"


def strip(folder: Path, models: tuple[str, ...]) -> None:
    store = Store(folder)
    for record in store.load()[0]:
        if record.cell.model in models and "adversarial" in record.card:
            store.put(dataclasses.replace(record, card={}))


@pytest.mark.parametrize(
    ("prepare", "argv", "message"),
    [
        (lambda f: None, ["--models", "resnt"], "unknown model 'resnt': did you mean resnet"),
        (lambda f: None, ["--models", " , "], "--models names no model"),
        (lambda f: None, ["--models", "nothing.py:build"], "there is no file"),
        (lambda f: strip(f, ("node", "resnet")), [], "no adversarial examples at a reported strength"),
        (lambda f: strip(f, ("node",)), ["--models", "resnet"], "no adversarial examples of another model"),
        (lambda f: shutil.rmtree(f / "records"), [], "no records in"),
        (lambda f: (f / "plan.json").unlink(), [], "not a plan"),
    ],
)
def test_what_the_folder_does_not_hold_is_one_line_and_status_2(folder, capsys, prepare, argv, message):
    prepare(folder)
    before = contents(folder / "records")
    assert main(["transfer", "--out", str(folder), *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err
    assert contents(folder / "records") == before


def test_a_run_whose_preset_says_so_ends_with_it(folder, tmp_path, digits):
    text = PRESET.replace('models = ["resnet"]', 'models = ["resnet", "node"]')
    plan = make_plan(
        load_preset(str(stubs.preset_file(tmp_path, text.replace("[recipe]", "transfer = true\n\n[recipe]"))))
    )
    outcome = run_plan(plan, digits, Store(folder), device=stubs.CPU)
    assert (outcome.done, outcome.failures) == (2, [])
    assert len(replays(folder)) == 2
    assert run_plan(plan, digits, Store(folder), device=stubs.CPU).done == 0
    alone = dataclasses.replace(plan, specs=plan.specs[:1])
    shutil.rmtree(folder / "records" / "node")
    outcome = run_plan(alone, digits, Store(folder), device=stubs.CPU)
    assert (outcome.done, outcome.failures) == (0, []), "one model has nothing to be compared with"


def test_a_model_that_answers_nan_is_a_failure_and_tried_again(folder, monkeypatch, capsys):
    nan = stubs.Faulty((1, 8, 8), 10, lambda logits, images: logits * torch.nan)
    monkeypatch.setattr("robustode.bench.runner.model_transfer.trained_model", lambda *a, **k: nan)
    monkeypatch.setattr("robustode.bench.cli.results_commands.show_report", lambda out: 0)
    assert main(["transfer", "--out", str(folder), "--models", "resnet"]) == 1
    assert "resnet seed 0 · transfer-linf 0.1: nonfinite" in capsys.readouterr().err
    (record,) = replays(folder)
    assert (record.status, dict(record.outcomes)) == ("nonfinite", {})
    assert board_of(folder).loc["resnet", "status"] == "failed: 1 cell"
    monkeypatch.undo()
    assert replay_all(Store(folder), names=["resnet"]).done == 1
    (record,) = replays(folder)
    assert record.status == "ok"


def test_a_model_that_cannot_be_had_is_noted(folder, digits):
    store, done = Store(folder), TransferResult()
    finder = ModelFinder(folder)
    training = next(r for r in store.load()[0] if r.cell.kind == "training" and r.cell.model == "resnet")
    unknown = dataclasses.replace(training, card={**training.card, "architecture": "mine"})
    assert _model(store, unknown, finder, digits, done) is None
    newer = dataclasses.replace(training, cell=dataclasses.replace(training.cell, model_version="99"))
    assert _model(store, newer, finder, digits, done) is None
    other = dataclasses.replace(training, cell=dataclasses.replace(training.cell, index_sha256="0" * 64))
    assert _model(store, other, finder, digits, done) is None
    store.checkpoint_path(training.cell).write_bytes(b"")
    assert _model(store, training, finder, digits, done) is None
    assert [note.partition(": ")[0] for note in done.notes] == ["not replayed on resnet seed 0"] * 4
    assert ["FILE.py" in done.notes[0], "version 99" in done.notes[1], "index" in done.notes[2]] == [True] * 3


# --- from records alone -------------------------------------------------------------------------


def replay_of(model: str, correct: np.ndarray, lines: list[dict[str, object]], seed: int = 0) -> Record:
    cell = synthetic.cell(
        model, seed, threat="transfer-linf", family=REPLAY, norm="linf", strength=0.1, samples=correct.size
    )
    return synthetic.record_of(cell, correct, card={"transfer": lines})


def test_the_matrix_adds_up_seeds_and_leaves_out_what_failed():
    made = synthetic.records(("resnet", "node"), (0, 1), 50)
    row = {"model": "node", "recipe": "quick"}
    right = np.ones(50, bool)
    ours = [
        replay_of("resnet", right, [{**row, "seed": 0, "tried": 4, "broke": 1}]),
        replay_of(
            "resnet",
            right,
            [{**row, "seed": s, "tried": 6, "broke": 3} for s in (0, 1)]
            + [{"model": "resnet", "recipe": "quick", "seed": 0, "tried": 5, "broke": 5}],
            seed=1,
        ),
        synthetic.failed(replay_of("node", right, [])),
    ]
    board = pd.DataFrame({"dataset": "digits", "model": ["resnet", "node"], "recipe": "quick"})
    board["label"] = ["resnet", "node"]
    ((dataset, norm, strength, tried, broke),) = transfer_matrices([*made, *ours], board)
    assert (dataset, norm, strength) == ("digits", "linf", 0.1)
    assert list(tried.index) == list(tried.columns) == ["resnet", "node"]
    assert tried.to_numpy().tolist() == [[5, 0], [16, 0]]
    assert broke.to_numpy().tolist() == [[5, 0], [7, 0]]


def test_a_replay_lowers_one_models_worst_case_and_is_required_of_none():
    made = synthetic.records(("resnet", "node"), (0,), 50)
    before = summarise(made)

    def worst(table):
        rows = table[(table["threat"] == WORST_CASE) & (table["norm"] == "linf")]
        return rows.set_index(["model", "strength"])["value"]

    after = worst(summarise([*made, replay_of("resnet", np.zeros(50, bool), [])]))
    assert after["resnet", 0.1] == after["resnet", 0.2] == 0
    assert after["resnet", 0.05] == worst(before)["resnet", 0.05]
    pd.testing.assert_series_equal(after["node"], worst(before)["node"])


def test_a_plan_without_records_is_refused_before_anything_is_read(tmp_path):
    synthetic.HEADLINE.write(tmp_path)
    with pytest.raises(InvalidArgument, match="no adversarial examples"):
        replay_all(Store(tmp_path))
