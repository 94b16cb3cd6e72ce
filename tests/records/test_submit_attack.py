"""`robustode submit-attack`: what holds lowers the score, everything else is refused by name."""

from __future__ import annotations

import dataclasses
import re
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import robustode
import stubs
import torch
from robustode._errors import CheckpointError, InvalidArgument, UnknownName
from robustode.bench.cli.main import main
from robustode.bench.config.plan import make_plan
from robustode.bench.config.preset import load_preset
from robustode.bench.plugins.model_file import load_external
from robustode.bench.records.adversarial_examples import AdversarialExamples, add_steps
from robustode.bench.records.latest import current, newest_training
from robustode.bench.records.predictions import outcomes_of
from robustode.bench.records.record import SUBMISSION, Record
from robustode.bench.records.store import Store
from robustode.bench.report.report import write_report
from robustode.bench.runner.run import run_plan
from robustode.bench.verification.submitted_file import read_submission
from robustode.bench.verification.verify import verify

EPS = 0.1
WEAK = (
    stubs.PRESET.replace('models = ["resnet"]', 'models = ["resnet", "node"]')
    .replace("steps = 3", "steps = 1")
    .replace("0.05", f"{EPS:g}")
)
COLUMN = f"linf@{EPS:g}"


@pytest.fixture(scope="module")
def attacked(tmp_path_factory, digits) -> Path:
    """Two models, one of them attacked so weakly that anyone can do better."""
    folder = tmp_path_factory.mktemp("attacked")
    plan = make_plan(load_preset(str(stubs.preset_file(folder, WEAK))))
    assert run_plan(plan, digits, Store(folder / "out"), device=stubs.CPU).failures == []
    weaken(Store(folder / "out"), digits)
    write_report(folder / "out")
    return folder / "out"


def weaken(store: Store, digits) -> None:
    """As if the attack on resnet had found only every third of its breaks."""
    (record,) = broken(store.folder)
    breaks = store.get_examples(record.cell)
    fewer = AdversarialExamples(index=breaks.index[::3], label=breaks.label[::3], steps=breaks.steps[::3])
    lost = np.isin(digits.test.indices[:40], np.setdiff1d(breaks.index, fewer.index))
    labels = digits.test.labels[:40].numpy()
    outcomes = outcomes_of(np.where(lost, labels, stubs.predicted(record, digits.test)), labels)
    card = {"adversarial": store.put_examples(record.cell, fewer)}
    store.put(dataclasses.replace(record, outcomes=outcomes, card=card))


@pytest.fixture
def folder(attacked, tmp_path) -> Path:
    return Path(shutil.copytree(attacked, tmp_path / "out"))


@pytest.fixture(scope="module")
def stronger(attacked, digits) -> tuple[np.ndarray, np.ndarray]:
    """Indices and images (40, 1, 8, 8) of an attack of our own on resnet, inside the budget."""
    model = robustode.load_model(attacked, "resnet")
    clean, labels = digits.test.images[:40], digits.test.labels[:40]
    images = clean.clone()
    for _ in range(40):
        images.requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(model(images), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, images)
        moved = images.detach() + 0.01 * gradient.sign()
        images = (clean + (moved - clean).clamp(-EPS, EPS)).clamp(0, 1)
    return digits.test.indices[:40].copy(), images.numpy()


def robust(folder: Path) -> dict[str, float]:
    board = pd.read_csv(folder / "report" / "leaderboard.csv")
    assert (board["status"] == "ok").all()
    return dict(zip(board["model"], board[COLUMN], strict=True))


def broken(folder: Path, model: str = "resnet") -> list[Record]:
    return [
        r
        for r in Store(folder).load()[0]
        if r.cell.model == model and r.cell.kind == "accuracy" and r.cell.norm
    ]


def still_standing(folder: Path) -> np.ndarray:
    """Rows of the test set that no attack on resnet breaks."""
    return np.flatnonzero(np.all([record.outcomes["correct"][0] for record in broken(folder)], axis=0))


def send(folder: Path, tmp_path: Path, index, image, *argv: str, **more: object) -> int:
    path = tmp_path / "sent.npz"
    np.savez(path, index=index, image=image, **more)
    return main(["submit-attack", str(path), "--model", "resnet", "--out", str(folder), *argv])


def test_a_stronger_attack_lowers_its_models_score_alone(folder, stronger, tmp_path, capsys):
    before, standing = robust(folder), still_standing(folder)
    index, image = stronger
    assert send(folder, tmp_path, index, image, origin="A <b>tester</b>, 2026") == 0
    out, err = capsys.readouterr()
    assert err == ""
    after = robust(folder)
    assert after["resnet"] < before["resnet"]
    assert after["node"] == before["node"]
    left = len(still_standing(folder))
    assert after["resnet"] == pytest.approx(left / 40)
    assert left < len(standing)
    assert f"worst case {before['resnet']:.1%} -> {after['resnet']:.1%}" in out
    page = (folder / "report" / "index.html").read_text()
    assert "from A &lt;b&gt;tester&lt;/b&gt;, 2026" in page
    assert "<b>tester" not in page
    summary = pd.read_csv(folder / "report" / "summary.csv")
    assert set(summary[summary["norm"] == "linf"]["threat"]) <= {"pgd-linf", "worst-case", "lipschitz"}
    found = verify(folder)
    assert found.findings == []
    assert found.predicted == sum(
        r.card["adversarial"]["count"] for m in ("resnet", "node") for r in broken(folder, m)
    )


def test_what_is_stored_says_where_it_comes_from(folder, stronger, tmp_path, capsys):
    index, image = stronger
    send(folder, tmp_path, index, image, origin=" A  tester\n")
    (record,) = [record for record in broken(folder) if record.cell.family == SUBMISSION]
    cell = record.cell
    assert cell.threat.startswith("submitted-")
    assert cell.parameters["origin"] == "A tester"
    assert len(cell.parameters["file_sha256"]) == 64
    assert (cell.norm, cell.strength, cell.draws, cell.samples) == ("linf", EPS, 1, 40)
    breaks = Store(folder).get_examples(cell)
    assert len(breaks) == record.card["adversarial"]["count"]
    assert f"accepted {len(breaks)} of 40, from A tester" in capsys.readouterr().out
    assert 0 < record.measures["largest_norm"] <= EPS + 1e-6


def test_the_same_file_again_changes_nothing(folder, stronger, tmp_path, capsys):
    index, image = stronger
    assert send(folder, tmp_path, index, image) == 0

    def contents() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    before = contents()
    capsys.readouterr()
    assert send(folder, tmp_path, index, image) == 0
    assert "(stored already)" in capsys.readouterr().out
    assert contents() == before


def test_the_same_examples_in_another_file_are_credited_to_the_first(folder, stronger, tmp_path, capsys):
    index, image = stronger
    standing = still_standing(folder)
    half = standing[::2]
    assert send(folder, tmp_path, index[half], image[half], origin="first") == 0
    (first,) = [r for r in broken(folder) if r.cell.family == SUBMISSION]
    held, rate = first.card["adversarial"]["count"], robust(folder)["resnet"]
    capsys.readouterr()
    assert send(folder, tmp_path, index[half], image[half], origin="second") == 1
    out, err = capsys.readouterr()
    assert f"rejected {held}: stored already\n" in out
    assert "resnet in linf 0.1" in err
    assert len([r for r in broken(folder) if r.cell.family == SUBMISSION]) == 1
    # What is new in a file that repeats some of another is accepted, alone.
    assert send(folder, tmp_path, index[standing], image[standing], origin="third") == 0
    assert f"rejected {held}: stored already\n" in capsys.readouterr().out
    assert robust(folder)["resnet"] < rate
    counts = [r.card["adversarial"]["count"] for r in broken(folder) if r.cell.family == SUBMISSION]
    assert held in counts
    assert sum(counts) <= len(standing)
    assert verify(folder).findings == []


def test_it_is_said_that_examples_lower_nothing(folder, stronger, tmp_path, digits, capsys):
    index, image = stronger
    assert send(folder, tmp_path, index, image, origin="first") == 0
    gone = np.setdiff1d(np.arange(40), still_standing(folder))
    clean = digits.test.images[:40].numpy()
    nearer = clean + 0.999 * (image - clean)  # other images, as adversarial as those of before
    capsys.readouterr()
    assert send(folder, tmp_path, index[gone], nearer[gone], origin="second") == 0
    out = capsys.readouterr().out
    rate = f"{robust(folder)['resnet']:.1%}"
    assert f"worst case {rate} -> {rate}" in out


def test_what_an_attack_of_the_harness_found_is_no_news(folder, tmp_path, digits, capsys):
    (record,) = broken(folder)
    breaks = Store(folder).get_examples(record.cell)
    rows = np.array([digits.test.indices.tolist().index(n) for n in breaks.index])
    image = add_steps(digits.test.images[rows].numpy(), breaks.steps)
    assert send(folder, tmp_path, breaks.index, image) == 1
    assert f"rejected {len(breaks)}: stored already\n" in capsys.readouterr().out


def test_the_same_file_counts_anew_where_more_samples_are_attacked(folder, stronger, tmp_path, digits):
    index, image = stronger
    assert send(folder, tmp_path, index, image) == 0
    store = Store(folder)
    (record,) = [r for r in broken(folder) if r.cell.family == SUBMISSION]
    breaks = store.get_examples(record.cell)
    rate = robust(folder)["resnet"]
    # As if it had been sent when 20 samples were attacked, and a later run had attacked 40.
    fewer = dataclasses.replace(record.cell, samples=20)
    facts = store.put_examples(fewer, breaks.of(index[:20].tolist()))
    labels = digits.test.labels[:20].numpy()
    outcomes = outcomes_of(stubs.predicted(record, digits.test)[:, :20], labels)
    store.put(dataclasses.replace(record, cell=fewer, outcomes=outcomes, card={"adversarial": facts}))
    stubs.forget(store, record.cell)
    assert send(folder, tmp_path, index, image) == 0
    used, _ = current(store.load()[0])
    (again,) = [r for r in used if r.cell.family == SUBMISSION]
    assert again.cell.samples == 40
    assert again.card["adversarial"]["count"] == len(breaks)
    assert robust(folder)["resnet"] == rate


def test_files_whose_hashes_begin_alike_stand_beside_each_other(folder, stronger, tmp_path):
    index, image = stronger
    assert send(folder, tmp_path, index, image) == 0
    (record,) = [r for r in broken(folder) if r.cell.family == SUBMISSION]
    other = {"origin": "other", "file_sha256": record.cell.parameters["file_sha256"][:8] + "0" * 56}
    other_steps = dataclasses.replace(record, cell=dataclasses.replace(record.cell, parameters=other))
    assert other_steps.cell.threat == record.cell.threat
    assert current([record, other_steps]) == ([record, other_steps], 0)


def test_a_file_damaged_anywhere_is_one_line(attacked, stronger, tmp_path):
    path = tmp_path / "sent.npz"
    np.savez_compressed(path, index=stronger[0], image=stronger[1])
    whole = path.read_bytes()
    places = range(0, len(whole), len(whole) // 100)
    read = 0  # some bytes, of a date say, are of no consequence
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with suppress(InvalidArgument):
            read_submission(path)
            read += 1
    assert read < len(places) / 2, "most damage is seen, and as an InvalidArgument alone"


def test_two_submissions_count_together(folder, stronger, tmp_path):
    index, image = stronger
    standing = still_standing(folder)
    half = standing[::2]
    assert send(folder, tmp_path, index[half], image[half]) == 0
    first = robust(folder)["resnet"]
    rest = np.setdiff1d(standing, half)
    assert send(folder, tmp_path, index[rest], image[rest]) == 0
    assert robust(folder)["resnet"] < first
    assert len([r for r in broken(folder) if r.cell.family == SUBMISSION]) == 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pixels_may_be_whole_numbers(folder, stronger, tmp_path, digits, dtype):
    index, image = stronger
    scale = np.iinfo(dtype).max
    clean = digits.test.images[:40].numpy()
    image = np.clip(np.trunc((image - clean) * scale * 0.95) + np.round(clean * scale), 0, scale)
    assert send(folder, tmp_path, index, image.astype(dtype)) == 0
    assert verify(folder).findings == []


def test_each_refused_example_is_counted_by_its_reason(folder, stronger, tmp_path, digits, capsys):
    index, _ = stronger
    row = int(still_standing(folder)[0])
    clean = digits.test.images[:40].numpy()
    wrong = int(
        np.flatnonzero(
            ~next(
                r for r in Store(folder).load()[0] if r.cell.model == "resnet" and r.cell.family == "clean"
            ).outcomes["correct"][0]
        )[0]
    )
    rows = [int(r) for r in still_standing(folder)[:4]]
    cases = {
        "not among the evaluated test samples, numbered as in Data.test.indices": (
            digits.test.indices[300],
            clean[row],
        ),
        "misclassified as it is": (index[wrong], clean[wrong]),
        "still classified correctly": (index[rows[0]], clean[rows[0]]),
        "out of budget: linf 0.1 exceeded by up to 0.01": (
            index[rows[1]],
            np.clip(clean[rows[1]] + EPS + 0.01, 0, 1),
        ),
        "NaN or infinite": (index[rows[2]], np.full_like(clean[row], np.nan)),
        "outside the box [0, 1]": (index[rows[3]], clean[rows[3]] - 0.01),
    }
    before = robust(folder)
    sent = list(cases.values())
    assert send(folder, tmp_path, [i for i, _ in sent], np.stack([x for _, x in sent])) == 1
    out, err = capsys.readouterr()
    assert all(f"rejected 1: {reason}\n" in out for reason in cases)
    assert "accepted 0 of 6, from sent.npz" in out
    assert "outside the box [0, 1]\n  clip the pixels to [0, 1]" in out
    assert "exceeded by up to 0.01\n  shrink each perturbation" in out
    assert "--norm" not in out, "it was not attacked in another norm"
    assert "resnet in linf 0.1" in err
    assert robust(folder) == before
    assert not [record for record in broken(folder) if record.cell.family == SUBMISSION]


def misses(case: str, clean: np.ndarray) -> np.ndarray:
    """An image that does not count, for one reason each."""
    return {
        "still classified correctly": clean,
        "NaN or infinite": np.full_like(clean, np.nan),
        "outside the box [0, 1]": clean - 0.5,
        "out of budget": np.clip(np.where(clean > 0.5, clean - 2 * EPS, clean + 2 * EPS), 0, 1),
    }[case]


MISSES = ["still classified correctly", "NaN or infinite", "outside the box [0, 1]", "out of budget"]


@pytest.fixture(scope="module")
def alone(attacked, stronger, tmp_path_factory) -> tuple[int, float]:
    """How many images of the stronger attack hold, each sent alone, and the accuracy they leave."""
    tmp_path = tmp_path_factory.mktemp("alone")
    folder = Path(shutil.copytree(attacked, tmp_path / "out"))
    rows = still_standing(folder)
    assert send(folder, tmp_path, stronger[0][rows], stronger[1][rows]) == 0
    (record,) = [r for r in broken(folder) if r.cell.family == SUBMISSION]
    return record.card["adversarial"]["count"], robust(folder)["resnet"]


@pytest.mark.parametrize("case", MISSES)
def test_every_image_of_a_sample_is_tried(folder, stronger, alone, tmp_path, digits, capsys, case):
    index, image = stronger
    rows, (held, rate) = still_standing(folder), alone
    bad = misses(case, digits.test.images[rows].numpy())
    assert send(folder, tmp_path, np.tile(index[rows], 2), np.concatenate([bad, image[rows]])) == 0
    out = capsys.readouterr().out
    assert f"accepted {held} of {2 * len(rows)}" in out
    assert "given before" not in out
    rejected = sum(int(n) for n in re.findall(rf"rejected (\d+): {re.escape(case)}", out))
    assert rejected >= len(rows)
    assert robust(folder)["resnet"] == rate
    assert verify(folder).findings == []


def test_of_two_images_that_hold_the_first_counts(folder, stronger, tmp_path, digits, capsys):
    index, image = stronger
    rows = still_standing(folder)
    clean = digits.test.images[rows].numpy()
    nearer = clean + np.float32(0.99) * (image[rows] - clean)
    assert send(folder, tmp_path, np.tile(index[rows], 3), np.concatenate([nearer, image[rows], nearer])) == 0
    out = capsys.readouterr().out
    (record,) = [r for r in broken(folder) if r.cell.family == SUBMISSION]
    held = record.card["adversarial"]["count"]
    assert f"accepted {held} of {3 * len(rows)}" in out
    extra = int(re.search(r"rejected (\d+): an earlier image of its sample holds", out)[1])
    assert held / 2 < extra <= 2 * held
    breaks = Store(folder).get_examples(record.cell)
    assert len(set(breaks.index.tolist())) == len(breaks) == held
    longest = np.abs(breaks.steps).max(axis=(1, 2, 3)) / (EPS * 65535)
    assert (longest < 0.995).mean() > 0.5, "the nearer one, where it holds"
    assert (longest < 1.001).all()


def test_an_image_that_is_stored_already_does_not_hide_a_new_one_of_its_sample(
    folder, stronger, tmp_path, digits, capsys
):
    index, image = stronger
    assert send(folder, tmp_path, index, image, origin="first") == 0
    clean = digits.test.images[:40].numpy()
    nearer = clean + np.float32(0.99) * (image - clean)
    capsys.readouterr()
    assert send(folder, tmp_path, np.tile(index, 2), np.concatenate([image, nearer]), origin="second") == 0
    accepted = int(re.search(r"accepted (\d+) of 80", capsys.readouterr().out)[1])
    assert accepted > 0


def test_a_file_of_which_less_was_accepted_before_is_taken_in_again(folder, stronger, tmp_path, capsys):
    index, image = stronger
    assert send(folder, tmp_path, index, image) == 0
    rate, store = robust(folder)["resnet"], Store(folder)
    (record,) = [r for r in broken(folder) if r.cell.family == SUBMISSION]
    breaks = store.get_examples(record.cell)
    # As an older version left it, which tried one image of each sample.
    facts = store.put_examples(record.cell, breaks.of(breaks.index[:1].tolist()))
    store.put(dataclasses.replace(record, card={"adversarial": facts}))
    assert send(folder, tmp_path, index, image) == 0
    assert "(stored already)" not in capsys.readouterr().out.splitlines()[-2]
    (again,) = [r for r in broken(folder) if r.cell.family == SUBMISSION]
    assert again.card["adversarial"]["count"] == len(breaks)
    assert robust(folder)["resnet"] == rate


def test_one_that_holds_is_kept_among_others_that_do_not(folder, stronger, tmp_path, digits, capsys):
    index, image = stronger
    image = image.copy()
    standing = still_standing(folder)
    image[standing[1:]] = np.nan
    assert send(folder, tmp_path, index[standing], image[standing]) in (0, 1)
    out = capsys.readouterr().out
    assert f"rejected {len(standing) - 1}: NaN or infinite" in out


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"not a zip", "is not an .npz file of plain arrays"),
        ({"index": np.arange(2)}, "has no array image"),
        ({"index": np.arange(2), "image": np.zeros((3, 1, 8, 8))}, "image must be (2, c, h, w)"),
        ({"index": np.arange(0), "image": np.zeros((0, 1, 8, 8))}, "holds no examples: index is empty"),
        ({"index": np.arange(2.0), "image": np.zeros((2, 1, 8, 8))}, "index must be a list of whole numbers"),
        (
            {"index": np.arange(2), "image": np.zeros((2, 1, 8, 8), int)},
            "image must be float, uint8 or uint16, not int64: for values of 0 to 255, image.astype(np.uint8)",
        ),
        (
            {"index": np.arange(2), "image": np.linspace(0, 255, 128).reshape(2, 1, 8, 8)},
            "pixels must be in [0, 1], and go from 0 to 255: divide by 255",
        ),
        (
            {
                "index": np.arange(2),
                "image": np.tile(np.linspace(-1, 1.5, 64).reshape(1, 8, 8), (2, 1, 1, 1)),
            },
            "go from -1 to 1.5: undo the normalisation",
        ),
        ({"index": np.arange(2), "image": np.zeros((2, 8, 8))}, "image[:, None] adds the channel"),
        ({"index": np.ones((2, 1)), "image": np.zeros((2, 1, 8, 8))}, "index.ravel().astype(np.int64) makes"),
        ({"index": np.arange(2), "image": np.array([{}, {}])}, "is not an .npz file of plain arrays"),
        (
            {"index": np.arange(2), "image": np.zeros((2, 1, 9, 9))},
            "images sent are (1, 9, 9), those of digits (1, 8, 8)",
        ),
    ],
)
def test_a_bad_file_is_one_line_and_status_2(attacked, tmp_path, capsys, arrays, message):
    path = tmp_path / "bad.npz"
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    elif arrays is not None:
        np.savez(path, **arrays)
    assert main(["submit-attack", str(path), "--model", "resnet", "--out", str(attacked)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model", "resnt"], "unknown model 'resnt': did you mean resnet"),
        (["--model", "resnet", "--seed", "3"], "holds no resnet with seed 3"),
        (["--model", "resnet", "--norm", "l2"], "trained and attacked in l2 at a reported strength"),
        (["--model", "resnet", "--recipe", "plian"], "unknown recipe 'plian': did you mean plain"),
        (["--model", "resnet", "--out", "none"], "no records in none: run `robustode run` first"),
    ],
)
def test_what_the_folder_does_not_hold_is_one_line_and_status_2(
    attacked, stronger, tmp_path, capsys, argv, message
):
    path = tmp_path / "sent.npz"
    np.savez(path, index=stronger[0], image=stronger[1])
    assert main(["submit-attack", str(path), "--out", str(attacked), *argv]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.usefixtures("registries")
def test_a_model_from_a_file_is_judged_by_the_code_that_was_trained(tmp_path, digits, capsys):
    path, out, sent = tmp_path / "net.py", tmp_path / "out", tmp_path / "sent.npz"
    path.write_text(
        "from torch import nn\n"
        "def flat(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))\n"
    )
    plan = make_plan(load_preset(str(stubs.preset_file(tmp_path))), models=[load_external(f"{path}:flat")])
    run_plan(plan, digits, Store(out), device=stubs.CPU)
    np.savez(sent, index=digits.test.indices[:5], image=digits.test.images[:5].numpy())
    argv = ["submit-attack", str(sent), "--out", str(out), "--model"]
    elsewhere = path.rename(tmp_path / "elsewhere.py")
    assert main([*argv, "flat"]) == 2
    assert "say where it is with --model FOLDER/net.py:flat" in capsys.readouterr().err
    elsewhere.rename(path)
    assert main([*argv, "flat"]) == 1, "clean images break nothing"
    assert main([*argv, f"{path}:flat"]) == 1
    assert isinstance(robustode.load_model(out, "flat", model=f"{path}:flat"), torch.nn.Module)
    path.write_text(path.read_text() + "# edited\n")
    capsys.readouterr()
    assert main([*argv, f"{path}:flat"]) == 2
    assert "its code has changed since" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="its code has changed since"):
        robustode.load_model(out, "flat", model=f"{path}:flat")


def test_of_several_recipes_the_one_last_run_is_meant():
    plain = stubs.cell_for("clean", 0.0, 4, kind="training", recipe={"name": "plain"})
    given = dataclasses.replace(plain, recipe={"name": "given"})
    of_clean = dataclasses.replace(plain, kind="accuracy")
    records = [
        Record(cell=cell, environment={"created": created})
        for cell, created in ((plain, "2"), (of_clean, "3"), (given, "1"))
    ]
    assert newest_training(records, ()) is records[0]
    assert newest_training(records, {given.key()}) is records[2]
    assert newest_training(records, {plain.key()}, "given") is records[2]
    with pytest.raises(UnknownName, match="unknown recipe 'givn': did you mean given"):
        newest_training(records, (), "givn")
    assert newest_training(records[1:2], (), "givn") is None
