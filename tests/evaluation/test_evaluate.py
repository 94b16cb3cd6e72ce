"""One accuracy cell: exact counts, an attack that is not trusted, a failure that is never an accuracy."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
import stubs
import torch
from robustode._errors import BudgetViolation, ContractBroken, InvalidArgument, NonFinite
from robustode.attacks import THREATS, Threat
from robustode.attacks.algorithms import repeated_runs
from robustode.attacks.core.seeds import sample_seeds
from robustode.bench.evaluation import accuracy as evaluate
from robustode.bench.evaluation.accuracy import EXAMPLES, evaluate_cell, failed, frozen
from robustode.bench.records.record import Record
from robustode.bench.runtime.checked_model import CheckedModel
from robustode.bench.throughput.measure import peak_memory
from torch import nn

COUNT = 30


@pytest.fixture
def problem():
    """A linear model, images away from the box, two thirds of the labels as the model says."""
    generator = torch.Generator().manual_seed(0)
    images = 0.3 + 0.4 * torch.rand(COUNT, 1, 4, 4, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = stubs.Linear((1, 4, 4), 3, nfe=5)
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[::3] = (labels[::3] + 1) % 3
    return model, stubs.split_of(images, labels)


def run(problem, threat, strength: float, **changes) -> Record:
    model, split = problem
    threat = THREATS.get(threat) if isinstance(threat, str) else threat
    cell = stubs.cell_for(threat, strength, **{"samples": COUNT, **changes})
    return evaluate_cell(
        cell, model, split, threat, num_classes=3, device=stubs.CPU, environment={"where": "here"}
    )


@pytest.fixture
def patience(monkeypatch):
    """Values are looked at later than in the query, as on a GPU."""

    def patient(*args, **options):
        return CheckedModel(*args, **{**options, "deferred": True})

    monkeypatch.setattr(evaluate, "CheckedModel", patient)
    monkeypatch.setattr(repeated_runs, "can_stop_early", lambda images: False)


def liar(craft, norm="linf", family="gradient") -> Threat:
    return Threat(name="liar", family=family, norm=norm, craft=craft, needs_gradient=family == "gradient")


def test_clean_accuracy_and_its_counts(problem):
    record = run(problem, "clean", 0.0, batch_size=7)
    assert record.status == "ok"
    assert record.accuracy == pytest.approx(2 / 3)
    assert (record.forwards, record.backwards, record.nfe) == (COUNT, 0, 5.0)
    assert record.outcomes["correct"].shape == (1, COUNT)
    assert stubs.predicted(record, problem[1]).dtype == np.int16
    assert "norm" not in record.outcomes
    assert record.environment == {"where": "here"}
    assert stubs.lines_of(stubs.stored_again(record)) == stubs.lines_of(record)


@pytest.mark.parametrize("draws", [1, 4])
def test_noise_is_predicted_once_a_draw(problem, draws):
    record = run(problem, "gaussian", 0.5, draws=draws, batch_size=11)
    assert (record.forwards, record.backwards) == (draws * COUNT, 0)
    assert record.outcomes["correct"].shape == (draws, COUNT)
    if draws > 1:
        assert not np.array_equal(*stubs.predicted(record, problem[1])[:2])


def test_noise_is_the_threats_own_and_independent_of_the_batch_size(problem):
    model, split = problem
    whole, parts = (run(problem, "gaussian", 0.5, batch_size=size, draws=2) for size in (COUNT, 4))
    np.testing.assert_array_equal(*(stubs.predicted(record, split) for record in (whole, parts)))
    for draw in range(2):
        seeds = sample_seeds(draw, split.indices.tolist())
        noisy = THREATS.get("gaussian")(model, split.images, split.labels, 0.5, seeds)
        with torch.no_grad():
            np.testing.assert_array_equal(stubs.predicted(whole, split)[draw], model(noisy).argmax(1))
    other = run(problem, "gaussian", 0.5, attack_seed=1, draws=2)
    assert not np.array_equal(*(stubs.predicted(record, split) for record in (other, whole)))


@pytest.mark.parametrize(
    ("name", "steps"), [("fgsm-linf", 1), ("fgsm-l2", 1), ("pgd-linf", 20), ("pgd-l2", 20)]
)
def test_an_attack_spends_nothing_on_what_is_wrong_already(problem, name, steps):
    restarts = 1 if name.startswith("fgsm") else 2
    record = run(problem, name, 1e-6, batch_size=8)
    right = COUNT * 2 // 3
    assert record.accuracy == pytest.approx(2 / 3), "no sample breaks at this strength"
    assert record.forwards == COUNT + right * (steps + 1) * restarts + right
    assert record.backwards == right * steps * restarts
    assert record.nfe == 5.0
    assert record.outcomes["norm"].shape == (1, COUNT)
    assert float(record.outcomes["norm"].max()) <= 2e-6


def test_a_misclassified_sample_is_broken_and_never_repaired(problem):
    clean, attacked = run(problem, "clean", 0.0), run(problem, "pgd-linf", 0.5)
    assert not (attacked.outcomes["correct"] & ~clean.outcomes["correct"]).any()
    assert attacked.accuracy < clean.accuracy
    wrong = ~clean.outcomes["correct"]
    assert (attacked.outcomes["norm"][wrong] == 0).all()
    assert (attacked.outcomes["norm"][~wrong] > 0).all()


def test_an_attack_that_would_repair_a_sample_is_not_asked(problem):
    """A craft that is given only correct samples cannot turn a wrong one right."""
    seen = []

    def craft(model, images, labels, strength, seed):
        seen.append((len(images), len(seed)))
        return images

    record = run(problem, liar(craft), 0.1)
    assert seen == [(20, 20)]
    assert record.accuracy == pytest.approx(2 / 3)


def test_a_batch_that_is_all_wrong_is_not_attacked(problem):
    model, split = problem
    with torch.no_grad():
        labels = (model(split.images).argmax(1) + 1) % 3
    record = run((model, stubs.split_of(split.images, labels)), "pgd-linf", 0.1)
    assert record.accuracy == 0
    assert (record.forwards, record.backwards) == (COUNT, 0)


def test_batch_state_are_pooled_into_full_batches(problem):
    seen = []

    def craft(model, images, labels, strength, seed):
        seen.append(len(images))
        return images

    run(problem, liar(craft), 0.1, batch_size=8)
    assert seen == [8, 8, 4]


class Sizes(nn.Module):
    """Notes how many images it is asked about at once."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, []

    def forward(self, images):
        self.seen.append(len(images))
        return self.model(images)


def test_what_is_attacked_by_itself_is_pooled_over_batches_and_asked_a_batch_at_a_time(problem):
    model, split = problem
    watched, seen = Sizes(model), []
    real = THREATS.get("square-linf").configure(queries=30)

    def craft(model, images, *args, **parameters):
        seen.append(len(images))
        return real.craft(model, images, *args, **parameters)

    for pooled in (True, False):
        threat = dataclasses.replace(real, craft=craft, pooled=pooled)
        found = run((watched, split), threat, 0.02, batch_size=8)
        one = run((model, split), real, 0.02, batch_size=1000)
        np.testing.assert_array_equal(found.outcomes["correct"], one.outcomes["correct"])
    assert seen == [20, 8, 8, 4]
    assert max(watched.seen) == 8


def test_a_known_clean_prediction_is_not_made_again(problem):
    model, split = problem
    threat = THREATS.get("pgd-linf")
    cell = stubs.cell_for(threat, 0.02, COUNT, batch_size=8)
    common = {"num_classes": 3, "device": stubs.CPU, "environment": {}}
    alone = evaluate_cell(cell, model, split, threat, **common)
    known = stubs.predicted(run(problem, "clean", 0.0), split)[0]
    shared = evaluate_cell(cell, model, split, threat, clean=known, **common)
    assert shared.forwards == alone.forwards - COUNT
    for name, outcome in alone.outcomes.items():
        np.testing.assert_array_equal(shared.outcomes[name], outcome)


def test_an_attack_that_writes_over_its_images_is_still_measured_against_them(problem):
    def craft(model, images, labels, strength, seed):
        return images.add_(2 * strength)

    with pytest.raises(BudgetViolation, match=r"left its budget of 0.1 .* by 0\.1"):
        run(problem, liar(craft), 0.1)


@pytest.mark.parametrize(
    ("name", "sizes"), [("clean", {}), ("gaussian", {}), ("pgd-linf", {"steps": 3, "restarts": 1})]
)
def test_memory_does_not_grow_with_the_number_of_samples(problem, name, sizes):
    model, split = problem
    threat = THREATS.get(name).configure(**sizes)
    peaks = []
    for repeats in (1, 20):
        many = stubs.split_of(split.images.repeat(repeats, 1, 1, 1), split.labels.repeat(repeats))
        cell = stubs.cell_for(threat, 0.0 if name == "clean" else 0.02, len(many), batch_size=10)
        peaks.append(
            peak_memory(
                partial(
                    evaluate_cell, cell, model, many, threat, num_classes=3, device=stubs.CPU, environment={}
                ),
                stubs.CPU,
            )
        )
    classes = 0 if name != "pgd-linf" else 2 * 8 * len(many)  # clean predictions, twice while they are joined
    assert (
        0 < peaks[1] < 1.5 * peaks[0] + classes
    )  # twenty times the samples; garbage is collected when it is


CHEATS = pytest.mark.parametrize(
    ("craft", "norm", "kind", "message"),
    [
        (lambda m, x, y, s, seed: x + 2 * s, "linf", BudgetViolation, r"left its budget of 0.1 .* by 0\.1"),
        (lambda m, x, y, s, seed: x + s, "l2", BudgetViolation, r"left its budget of 0.1 .* by 0\.3"),
        (lambda m, x, y, s, seed: x - 1, None, BudgetViolation, r"or the box \[0, 1\] by 0\.[67]"),
        (lambda m, x, y, s, seed: x * torch.nan, "linf", NonFinite, "NaN or infinite pixels for 20 samples"),
        (lambda m, x, y, s, seed: torch.where(x > 0.5, torch.inf, x), None, NonFinite, "NaN or infinite"),
    ],
)


@CHEATS
def test_an_attack_that_cheats_is_an_error(problem, craft, norm, kind, message):
    with pytest.raises(kind, match=message):
        run(problem, liar(craft, norm=norm), 0.1)


@CHEATS
@pytest.mark.usefixtures("patience")
def test_an_attack_that_cheats_is_the_same_error_once_it_is_settled(problem, craft, norm, kind, message):
    with pytest.raises(kind, match=message):
        run(problem, liar(craft, norm=norm), 0.1)


@pytest.mark.parametrize("name", ["clean", "gaussian", "uniform", "pgd-linf", "pgd-l2"])
def test_patience_changes_no_result(problem, name, request):
    strength = 0.0 if name == "clean" else 0.05
    options = {"batch_size": 7, "draws": 2 if name == "gaussian" else 1}
    hasty = run(problem, name, strength, **options)
    request.getfixturevalue("patience")
    patient = run(problem, name, strength, **options)
    assert (patient.forwards, patient.backwards) == (hasty.forwards, hasty.backwards)
    for key, outcome in hasty.outcomes.items():
        np.testing.assert_array_equal(patient.outcomes[key], outcome)


@pytest.mark.parametrize("name", ["pgd-linf", "pgd-l2"])
def test_a_gpu_breaks_the_same_samples_and_goes_on_with_them(problem, name, request):
    strength = 0.15 if name == "pgd-linf" else 0.5
    hasty = run(problem, name, strength)
    request.getfixturevalue("patience")
    patient = run(problem, name, strength)
    broken = ~hasty.outcomes["correct"]
    assert COUNT / 2 < broken.sum() < COUNT, "a third is wrong as it is"
    np.testing.assert_array_equal(patient.outcomes["correct"], ~broken)
    assert patient.forwards > hasty.forwards
    assert patient.backwards > hasty.backwards


def waits(problem, threat, strength: float, **changes) -> int:
    with stubs.Waits() as seen:
        run(problem, threat, strength, **changes)
    return seen.count


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("name", ["clean", "gaussian", "salt-pepper", "uniform"])
def test_a_gpu_is_waited_for_once_a_draw(problem, name):
    strength = 0.0 if name == "clean" else 0.05
    assert waits(problem, name, strength, batch_size=COUNT) == 1
    assert waits(problem, name, strength, batch_size=3) == 1
    if name == "gaussian":
        assert waits(problem, name, strength, batch_size=3, draws=4) == 4


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("name", ["pgd-linf", "pgd-l2"])
def test_a_gpu_is_not_waited_for_between_the_steps_of_an_attack(problem, name):
    threat = THREATS.get(name)
    for steps in (2, 9):
        once, twice = (threat.configure(steps=steps, restarts=restarts) for restarts in (1, 2))
        settled = 2 + 2  # clean predictions, and the attack's; in each of two batches, was all of it finite?
        assert waits(problem, once, 1e-3, batch_size=10) == settled
        # Before another restart, in each of two batches: who may be broken, and who is when asked again?
        assert waits(problem, twice, 1e-3, batch_size=10) == settled + 2 * 2


@pytest.mark.parametrize("family", ["noise", "gradient"])
def test_one_image_over_budget_among_many_is_enough(problem, family):
    def craft(model, images, labels, strength, seed):
        images = images.clone()
        images[3, 0, 1, 1] += strength + 1e-5
        return images

    with pytest.raises(BudgetViolation):
        run(problem, liar(craft, family=family), 0.1)


def test_an_overstep_of_rounding_size_is_allowed(problem):
    craft = liar(lambda m, x, y, s, seed: (x.double() + s + 5e-7).float())
    assert run(problem, craft, 0.1).status == "ok"


@pytest.mark.parametrize("shape", [lambda x: x[:, :, :2], lambda x: x[:5], lambda x: x.flatten(1)])
def test_another_shape_is_an_error(problem, shape):
    with pytest.raises(BudgetViolation, match="liar returned shape"):
        run(problem, liar(lambda m, x, y, s, seed: shape(x), family="noise"), 0.1)


@pytest.mark.parametrize("name", ["clean", "gaussian", "fgsm-linf", "pgd-l2"])
def test_nan_logits_of_every_sample_are_an_error_and_not_an_accuracy(problem, name):
    _, split = problem
    model = stubs.Faulty((1, 4, 4), 3, lambda z, x: torch.where(x.flatten(1)[:, :1] > -1, torch.nan, z))
    with pytest.raises(NonFinite):
        run((model, split), name, 0.0 if name == "clean" else 0.3)


def test_a_nan_gradient_is_an_error_and_not_robustness(problem):
    model, split = problem
    with torch.no_grad():
        labels = model(split.images).argmax(1)
    spoiled = stubs.Faulty((1, 4, 4), 3, lambda z, x: z + (x - x).flatten(1).sqrt().sum(1, keepdim=True))
    spoiled.load_state_dict(model.state_dict())
    for name in ("fgsm-linf", "fgsm-l2", "pgd-linf", "pgd-l2"):
        with pytest.raises(NonFinite, match="input gradient"):
            run((spoiled, stubs.split_of(split.images, labels)), name, 0.1)


def test_wrong_logits_are_an_error(problem):
    _, split = problem
    with pytest.raises(ContractBroken):
        run((stubs.Linear((1, 4, 4), 4), split), "clean", 0.0)


@pytest.mark.parametrize("name", ["clean", "gaussian", "pgd-linf"])
def test_a_model_cannot_change_the_images_of_the_test_set(problem, name):
    """Not even one that hides its writing from autograd."""
    _, split = problem
    before = split.images.clone()

    def write(logits, images):
        images.data.zero_()
        return logits

    run((stubs.Faulty((1, 4, 4), 3, write), split), name, 0.0 if name == "clean" else 1.0)
    assert torch.equal(split.images, before)


@pytest.mark.parametrize("fails", [False, True])
def test_modes_flags_and_gradients_are_restored(problem, fails):
    _, split = problem

    def fault(logits, images):
        if fails:
            raise RuntimeError("stop")
        return logits

    model = nn.Sequential(stubs.Faulty((1, 4, 4), 3, fault), nn.Dropout(0.5))
    model.train()
    model[1].eval()
    model[0].head.bias.requires_grad_(False)
    state = torch.get_rng_state()
    try:
        run((model, split), "pgd-linf", 0.1)
    except Exception:
        assert fails
    assert [module.training for module in model.modules()] == [True, True, True, False]
    assert [p.requires_grad for p in model.parameters()] == [True, False]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_inside_a_frozen_block_no_gradient_reaches_a_parameter(problem):
    model = problem[0].train()
    kept = [torch.ones_like(p) for p in model.parameters()]
    for parameter, gradient in zip(model.parameters(), kept, strict=True):
        parameter.grad = gradient
    with frozen(model):
        assert not model.training
        assert all(p.requires_grad for p in model.parameters()), "an adjoint may need it"
        model(problem[1].images).sum().backward()
    assert model.training
    assert all(p.grad is g for p, g in zip(model.parameters(), kept, strict=True))
    assert all(bool((gradient == 1).all()) for gradient in kept)


def test_progress_is_reported_in_samples(problem):
    model, split = problem
    threat, seen = THREATS.get("gaussian"), []
    cell = stubs.cell_for(threat, 0.1, COUNT, draws=2, batch_size=8)
    evaluate_cell(
        cell, model, split, threat, num_classes=3, device=stubs.CPU, environment={}, on_samples=seen.append
    )
    assert seen == [8, 8, 8, 6] * 2


def test_only_the_first_samples_are_evaluated(problem):
    record = run(problem, "clean", 0.0, samples=9)
    assert record.forwards == 9
    assert record.outcomes["correct"].shape == (1, 9)


def test_examples_are_the_first_images_as_they_were_attacked(problem):
    model, split = problem
    record = run(problem, "gaussian", 0.2)
    noisy = THREATS.get("gaussian")(model, split.images, split.labels, 0.2, sample_seeds(0, range(COUNT)))
    expected = (noisy[:EXAMPLES] * 255).round().to(torch.uint8).numpy()
    np.testing.assert_array_equal(record.examples["image"], expected)
    np.testing.assert_array_equal(record.examples["index"], range(EXAMPLES))
    np.testing.assert_array_equal(record.examples["label"], split.labels[:EXAMPLES])
    np.testing.assert_array_equal(record.examples["prediction"], stubs.predicted(record, split)[0, :EXAMPLES])


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (NonFinite("bad logits"), "nonfinite", "bad logits"),
        (BudgetViolation("too far"), "budget", "too far"),
        (ContractBroken("shape"), "contract", "shape"),
        (InvalidArgument("no"), "error", "no"),
        (RuntimeError("first\nsecond"), "error", "RuntimeError: first"),
        (MemoryError(), "error", "MemoryError: MemoryError"),
    ],
)
def test_a_failure_becomes_a_record_without_outcomes(error, status, line):
    cell = stubs.cell_for("clean", 0.0, 3)
    record = failed(cell, error, seconds=1.5, environment={})
    assert (record.status, record.error, record.seconds) == (status, line, 1.5)
    assert not record.outcomes
    assert np.isnan(record.accuracy)
    assert stubs.lines_of(stubs.stored_again(record)) == stubs.lines_of(record)


def test_the_norm_of_uniform_noise_is_not_an_attacks(problem):
    record = run(problem, "uniform", 0.1)
    assert record.cell.norm is None
    assert "norm" not in record.outcomes
    bounded = dataclasses.replace(record.cell, norm="linf")
    assert bounded.key() != record.cell.key()


@pytest.mark.parametrize(("name", "strength"), [("clean", 0.0), ("gaussian", 0.2), ("pgd-linf", 0.1)])
def test_a_batch_that_does_not_fit_is_asked_in_parts(digits, name, strength):
    class Small(stubs.Linear):
        def forward(self, images):
            if len(images) > 6:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(images)

    small, split, threat = Small((1, 8, 8), 10), digits.test.first(20), THREATS.get(name)
    large = stubs.Linear((1, 8, 8), 10)
    large.load_state_dict(small.state_dict())
    cell = stubs.cell_for(threat, strength, 20)
    records = [
        evaluate_cell(cell, model, split, threat, num_classes=10, device=stubs.CPU, environment={})
        for model in (small, large)
    ]
    np.testing.assert_array_equal(*(stubs.predicted(record, split) for record in records))
    assert records[0].status == "ok"
