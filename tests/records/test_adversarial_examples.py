"""Adversarial examples as they are stored: never further away, the same bytes again, no pickles."""

from __future__ import annotations

import dataclasses
import io
import zipfile

import numpy as np
import pytest
import stubs
import torch
from hypothesis import given
from hypothesis import strategies as st
from robustode._errors import RecordError
from robustode.attacks import THREATS
from robustode.bench.evaluation.accuracy import evaluate_cell
from robustode.bench.records.adversarial_examples import (
    STEPS,
    AdversarialExamples,
    add_steps,
    perturbation_steps,
)
from robustode.bench.records.examples_archive import content_sha256, names, read, write
from robustode.bench.records.record import Record


def some(count: int = 3, size: int = 500) -> AdversarialExamples:
    rng = np.random.default_rng(0)
    return AdversarialExamples(
        index=np.arange(count), label=np.arange(count) % 2, steps=rng.integers(-size, size, (count, 1, 4, 4))
    )


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 1e-3, 0.05, 1.0]))
def test_rounding_never_lengthens_a_perturbation_or_leaves_the_box(seed, eps):
    rng = np.random.default_rng(seed)
    clean = rng.choice([0.0, 1.0, 1 / 16, 7 / 255, rng.random()], (2, 1, 5, 5)).astype(np.float32)
    moved = np.clip(clean + rng.uniform(-eps, eps, clean.shape), 0, 1).astype(np.float32)
    back = add_steps(clean, perturbation_steps(moved, clean))
    assert (np.minimum(clean, moved) <= back).all()
    assert (back <= np.maximum(clean, moved)).all()
    assert np.abs(moved - back).max() <= 1 / STEPS + 1e-7
    assert np.array_equal(back[moved == clean], clean[moved == clean])


def same(one: AdversarialExamples, two: AdversarialExamples) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(two, name)) for name in ("index", "label", "steps"))


@pytest.mark.parametrize("size", [500, 60_000])
def test_what_is_written_is_read_and_the_same_bytes_again(tmp_path, size):
    examples = some(size=size)
    for name in ("one", "two"):
        for attack in ("pgd", "fgsm"):
            write(tmp_path / name, attack, examples)
    again = read(tmp_path / "one", "pgd")
    assert same(examples, again)
    assert again.steps.dtype == np.int32
    assert content_sha256(again) == content_sha256(examples)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert names(tmp_path / "one") == {"pgd", "fgsm"}
    assert names(tmp_path / "none") == set()


def test_the_hash_is_one_of_the_content():
    examples = some()
    assert content_sha256(examples) == ("719f0972eabc2ac65a3486e1f4f374fe9f856be7738d2ae480abafdeacb48d3d")
    wide = dataclasses.replace(examples, steps=examples.steps.astype(np.int64))
    assert content_sha256(wide) == content_sha256(examples)
    for name in ("index", "label", "steps"):
        other = dataclasses.replace(examples, **{name: getattr(examples, name) + 1})
        assert content_sha256(other) != content_sha256(examples)


def test_other_attacks_stay_when_one_is_replaced(tmp_path):
    path = tmp_path / "seed0.zip"
    for number, name in enumerate(("a", "b", "c")):
        write(path, name, some(number + 1))
    write(path, "b", some(7))
    assert [len(read(path, name)) for name in ("a", "b", "c")] == [1, 7, 3]
    write(path, "c", some(0))
    assert len(read(path, "c")) == 0
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == sorted(set(archive.namelist()))
        assert np.load(io.BytesIO(archive.read("b/steps.npy"))).shape == (7, 1, 4, 4)


def test_a_damaged_archive_is_begun_anew_with_what_can_be_read(tmp_path):
    path = tmp_path / "seed0.zip"
    write(path, "a", some(3))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RecordError):
        read(path, "a")
    write(path, "b", some(2))
    assert names(path) == {"b"}


def test_what_is_not_there_is_not_found(tmp_path):
    path = tmp_path / "seed0.zip"
    with pytest.raises(FileNotFoundError):
        read(path, "a")
    write(path, "a", some())
    with pytest.raises(FileNotFoundError):
        read(path, "b")


def test_what_are_no_examples_is_refused(tmp_path):
    path = tmp_path / "seed0.zip"

    def file(**arrays) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, array in arrays.items():
                buffer = io.BytesIO()
                np.save(buffer, array)
                archive.writestr(f"a/{name}.npy", buffer.getvalue())

    good = {"index": np.arange(2), "label": np.arange(2), "steps": np.zeros((2, 1, 2, 2), int)}
    file(**good)
    assert len(read(path, "a")) == 2
    for bad in (
        {"label": np.array([0.5, 1])},
        {"index": np.arange(3)},
        {"steps": np.zeros((2, 4), int)},
        {"steps": np.array([{}, {}], object)},
    ):
        file(**good | bad)
        with pytest.raises(RecordError):
            read(path, "a")


COUNT = 24


def attacked(model, split, threat, strength: float, **changes) -> tuple[Record, AdversarialExamples]:
    kept: list[AdversarialExamples] = []
    cell = stubs.cell_for(threat, strength, COUNT, batch_size=8, **changes)
    record = evaluate_cell(
        cell, model, split, threat, num_classes=3, device=stubs.CPU, environment={}, keep=kept.append
    )
    (breaks,) = kept
    return record, breaks


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(COUNT, 1, 4, 4, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = stubs.Linear((1, 4, 4), 3)
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[::4] = (labels[::4] + 1) % 3
    return model, stubs.split_of(images, labels)


@pytest.mark.parametrize("name", ["pgd-linf", "pgd-l2"])
def test_what_is_kept_is_what_was_predicted(problem, name):
    model, split = problem
    record, breaks = attacked(model, split, THREATS.get(name), 0.2)
    right = np.arange(COUNT) % 4 != 0
    broken = right & ~record.outcomes["correct"][0]
    assert 0 < len(breaks) < right.sum()
    np.testing.assert_array_equal(breaks.index, split.indices[broken])
    np.testing.assert_array_equal(breaks.label, split.labels[broken])
    clean = split.images[broken].numpy()
    images = add_steps(clean, breaks.steps)
    with torch.no_grad():
        predicted = model(torch.from_numpy(images)).argmax(1)
    np.testing.assert_array_equal(predicted, stubs.predicted(record, split)[0, broken])
    order = {"pgd-linf": np.inf, "pgd-l2": 2}[name]
    lengths = np.linalg.norm((images.astype(float) - clean).reshape(len(breaks), -1), order, axis=1)
    np.testing.assert_allclose(lengths, record.outcomes["norm"][0, broken], rtol=1e-6)


def test_a_break_that_depends_on_its_neighbours_is_none(problem):
    model, split = problem
    spoiled = stubs.Faulty((1, 4, 4), 3, lambda z, x: z.roll(1, 1) if len(x) > 1 and x.max() > 1.5 else z)
    spoiled.load_state_dict(model.state_dict())
    free = THREATS.get("pgd-linf")
    record, breaks = attacked(spoiled, split, free, 1e-6)
    assert (len(breaks), record.accuracy) == (0, 0.75)
    assert breaks.steps.shape == (0, 1, 4, 4)

    def together(logits, images):
        """Wrong for whatever was perturbed, unless it comes alone."""
        return logits.roll(1, 1) if len(images) > 1 and not images.requires_grad else logits

    spoiled.fault = together
    with torch.no_grad():
        labels = spoiled(split.images).argmax(1)
    record, breaks = attacked(spoiled, stubs.split_of(split.images, labels), free, 1e-6)
    assert (len(breaks), record.accuracy) == (0, 1.0)


def test_a_break_that_depends_on_the_order_of_its_batch_is_none(problem):
    """Wrong for whatever was perturbed, alone and in the order of the samples, and right in any other."""
    model, split = problem

    def ordered(logits, images):
        if images.requires_grad or len(images) < 2:
            return logits.roll(1, 1)
        places = [int((split.images - image).flatten(1).norm(dim=1).argmin()) for image in images]
        return logits.roll(1, 1) if places == sorted(places) else logits

    spoiled = stubs.Faulty((1, 4, 4), 3, ordered)
    spoiled.load_state_dict(model.state_dict())
    with torch.no_grad():
        labels = spoiled(split.images).roll(-1, 1).argmax(1)
    clean = labels.numpy()
    cell = stubs.cell_for(THREATS.get("pgd-linf"), 1e-6, len(clean), batch_size=len(clean))
    common = {"num_classes": 3, "device": stubs.CPU, "environment": {}, "clean": clean}
    kept: list[AdversarialExamples] = []
    threat, own = THREATS.get("pgd-linf"), stubs.split_of(split.images, labels)
    judged = evaluate_cell(cell, spoiled, own, threat, keep=kept.append, **common)
    assert (judged.accuracy, len(kept[0])) == (1.0, 0)
    assert evaluate_cell(cell, spoiled, own, threat, **common).accuracy == 0.0, "nothing was asked again"
