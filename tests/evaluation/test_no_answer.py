"""A sample for which the model gives no finite answer: broken, and the others of its batch go on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import stubs
import torch
from robustode._errors import ModelFailure, NonFinite, TimeLimitExceeded
from robustode.attacks import THREATS
from robustode.bench.api import evaluate
from robustode.bench.evaluation import curve as curves
from robustode.bench.evaluation.accuracy import evaluate_cell
from robustode.bench.evaluation.attack_verification import predict
from robustode.bench.evaluation.consistency import inconsistencies
from robustode.bench.evaluation.margins import relative_margins_alone_and_shuffled
from robustode.bench.proofs.randomized_smoothing import smooth_cell
from robustode.bench.records.adversarial_examples import AdversarialExamples, add_steps
from robustode.bench.records.predictions import NO_ANSWER, outcomes_of, predictions, unanswered
from robustode.bench.records.record import Record
from robustode.bench.runtime.checked_model import CheckedModel
from robustode.bench.training.train import score
from torch import Tensor, nn
from torchdiffeq import odeint

COUNT, MARKED = 13, 4
SMALL = {"steps": 4, "targets": 2, "queries": 20, "directions": 2, "restarts": 2, "rounds": 2, "refine": 3}
LIMIT = 0.72


class SolverGaveUp(Exception):
    """A model's own exception."""


def poison(logits: Tensor, bad: Tensor) -> Tensor:
    return logits * torch.nan if bool(bad.any()) else logits


def raising(error: BaseException):
    def fault(logits: Tensor, bad: Tensor) -> Tensor:
        if bool(bad.any()):
            raise error.with_traceback(None)  # else the one exception gathers the frames of every raise
        return logits

    return fault


FAULTS = {
    "underflow": raising(AssertionError("underflow in dt 0.0")),
    "overflow": raising(FloatingPointError("overflow")),
    "singular": raising(torch.linalg.LinAlgError("singular matrix")),
    "numpy": raising(np.linalg.LinAlgError("no convergence")),
    "own": raising(SolverGaveUp("step 17")),
    "time": raising(TimeoutError("no solution within 1 s")),
    "depth": raising(RecursionError("maximum depth of step halving")),
    "index": raising(IndexError("no accepted step")),
    "runtime": raising(RuntimeError("step size is too small")),
    "nan": lambda z, bad: torch.where(bad[:, None], torch.nan, z),
    "one nan": lambda z, bad: z.index_fill(1, torch.tensor(1), torch.nan).where(bad[:, None], z),
    "inf": lambda z, bad: torch.where(bad[:, None], torch.inf, z),
    "poison": poison,
}


class GivesUp(stubs.Linear):
    """A linear model that has no answer where the first pixel is above `limit`."""

    def __init__(self, fault, limit: float = 0.9) -> None:
        super().__init__((1, 4, 4), 3)
        self.fault, self.limit, self.sizes = fault, limit, []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        return self.fault(super().forward(images), images[:, 0, 0, 0] > self.limit)


def problem(fault, limit: float = 0.9):
    """Images of which one is marked, and misclassified by a model that would answer."""
    generator = torch.Generator().manual_seed(0)
    images = 0.3 + 0.4 * torch.rand(COUNT, 1, 4, 4, generator=generator)
    images[MARKED, 0, 0, 0] = 1.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GivesUp(fault, limit)
    with torch.no_grad():
        labels = stubs.Linear.forward(model, images).argmax(1)
    labels[MARKED] = (labels[MARKED] + 1) % 3
    return model, stubs.split_of(images, labels)


def cut(name: str):
    threat = THREATS.get(name)
    return threat.configure(**{k: v for k, v in SMALL.items() if k in threat.parameters})


def run(problem, name: str, strength: float, **changes) -> tuple[Record, AdversarialExamples]:
    model, split = problem
    threat, breaks = cut(name), []
    cell = stubs.cell_for(threat, strength, **{"samples": COUNT, **changes})
    record = evaluate_cell(
        cell,
        model,
        split,
        threat,
        num_classes=3,
        device=stubs.CPU,
        environment={},
        keep=breaks.append if cell.norm else None,
    )
    return record, breaks[0] if breaks else None


ATTACKS = [t.name for t in THREATS if t.family not in ("clean", "noise", "transfer")]
LINF = [name for name in ATTACKS if name.endswith("linf")]


CASES = [(fault, name) for fault in FAULTS for name in ("clean", "pgd-linf")]
CASES += [
    (fault, name) for fault in ("underflow", "poison") for name in ("gaussian", "autoattack-l2", "cw-l2")
]


@pytest.mark.parametrize(("fault", "name"), CASES)
def test_one_sample_without_an_answer_is_broken_and_the_others_are_as_without_it(fault, name):
    strength = 0.0 if name == "clean" else 0.05
    expected = run(problem(lambda z, bad: z), name, strength)[0]
    record = run(problem(FAULTS[fault]), name, strength)[0]
    assert record.status == "ok"
    _, split = problem(FAULTS[fault])
    found, wanted = stubs.predicted(record, split), stubs.predicted(expected, split)
    assert (found[:, MARKED] == NO_ANSWER).all()
    assert unanswered(record.outcomes)[:, MARKED].all()
    assert unanswered(record.outcomes).sum() == len(found)
    np.testing.assert_array_equal(np.delete(found, MARKED, 1), np.delete(wanted, MARKED, 1))
    again = stubs.stored_again(record)
    np.testing.assert_array_equal(predictions(again.outcomes, split.labels.numpy()), found)


@pytest.mark.parametrize("fault", ["underflow", "nan"])
@pytest.mark.parametrize("name", LINF)
def test_an_attack_that_leads_to_no_answer_has_broken_the_sample(fault, name):
    """No answer above a pixel of .72, which some images reach within their budget, and none as it is."""
    model, split = problem(FAULTS[fault], LIMIT)
    images = split.images.clone()
    images[:, 0, 0, 0] = 0.4
    images[:6, 0, 0, 0] = 0.68
    with torch.no_grad():
        labels = stubs.Linear.forward(model, images).argmax(1)
    with torch.no_grad():  # nothing but no answer breaks a sample, and every gradient leads there
        model.head.weight.mul_(0.05)
        model.head.weight[:, 0] = -2.0 * torch.nn.functional.one_hot(labels.mode().values, 3)
        model.head.bias.copy_(9.0 * torch.nn.functional.one_hot(labels.mode().values, 3))
    labels = torch.full_like(labels, int(labels.mode().values))
    record, breaks = run((model, stubs.split_of(images, labels)), name, 0.1)
    assert record.status == "ok"
    silent = unanswered(record.outcomes)[0]
    in_reach = (images[:, 0, 0, 0] + 0.1 > LIMIT + 0.005).numpy()
    assert in_reach.any()
    assert not (silent & ~in_reach).any()
    if not name.startswith(("spsa", "square", "ddn", "fgsm", "fab")):
        assert silent[in_reach].mean() > 0.5
    np.testing.assert_array_equal(breaks.index, np.flatnonzero(~record.outcomes["correct"][0]))
    rows = torch.from_numpy(breaks.index)
    stored = torch.from_numpy(add_steps(images[rows].numpy(), breaks.steps))
    found = relative_margins_alone_and_shuffled(
        model, stored, labels[rows], COUNT, 3, unperturbed=images[rows]
    )
    assert all((lead > 0).all() for lead in found.values())


def test_a_curve_goes_on_with_the_others():
    model, split = problem(FAULTS["underflow"])
    threat = cut("curve-linf")
    grid = {"strengths": [0.05, 0.3], "reported": [0.3]}
    cells = [
        stubs.cell_for(threat, eps, COUNT, parameters={**threat.parameters, **grid})
        for eps in grid["strengths"]
    ]
    records = curves.evaluate_curve(
        cells, model, split, threat, num_classes=3, device=stubs.CPU, environment={}
    )
    for record in records:
        assert record.status == "ok"
        assert unanswered(record.outcomes)[0, MARKED]
    assert records[1].accuracy < records[0].accuracy


class Blowup(nn.Module):
    """A neural ODE on torchdiffeq's dopri5: y' = y^2 leaves the real line in finite time for large pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        y = images.flatten(1)
        times = torch.tensor([0.0, 1.1])
        y = odeint(lambda t, y: y**2, y, times, method="dopri5", rtol=1e-3, atol=1e-3)[-1]
        return self.head(y)


def test_an_underflow_of_dt_costs_one_sample_alone():
    _, split = problem(None)
    model = Blowup()
    with pytest.raises(AssertionError, match="underflow in dt"):
        model(split.images)
    with torch.no_grad():
        others = torch.tensor([i for i in range(COUNT) if i != MARKED])
        labels = split.labels.clone()
        labels[others] = model(split.images[others]).argmax(1)
    for name in ("clean", "gaussian", "pgd-l2"):
        record = run((model, stubs.split_of(split.images, labels)), name, 0.01 * (name != "clean"))[0]
        assert record.status == "ok"
        assert unanswered(record.outcomes).sum() == 1
        assert record.accuracy == pytest.approx((COUNT - 1) / COUNT)


def never(_z, _bad):
    raise AssertionError("underflow in dt 0.0")


@pytest.mark.parametrize("name", ["clean", "pgd-linf"])
@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (never, ModelFailure, "underflow in dt"),
        (lambda z, _: z * torch.nan, NonFinite, "13 of 13 samples"),
        (lambda z, _: z * torch.inf, NonFinite, "13 of 13 samples"),
    ],
)
def test_no_answer_for_any_sample_is_a_failure_of_the_model(name, fault, error, message):
    with pytest.raises(error, match=message):
        run(problem(fault), name, 0.0 if name == "clean" else 0.05)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (TypeError("unsupported operand"), ModelFailure),
        (AttributeError("no attribute"), ModelFailure),
        (FileNotFoundError("no such file"), ModelFailure),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
        (MemoryError(), MemoryError),
        (TimeLimitExceeded("took too long"), TimeLimitExceeded),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
@pytest.mark.parametrize("name", ["clean", "gaussian"])
def test_errors_of_code_memory_and_time_are_no_answer_of_no_sample(error, raised, name):
    with pytest.raises(raised):
        run(problem(raising(error)), name, 0.0 if name == "clean" else 0.05)


class BadBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, bad, how):
        ctx.bad, ctx.how = bad, how
        return logits.clone()

    @staticmethod
    def backward(ctx, gradient):
        if not bool(ctx.bad.any()):
            return gradient, None, None
        if ctx.how == "raise":
            raise AssertionError("underflow in dt 0.0")
        return torch.where(ctx.bad[:, None] | (ctx.how == "poison"), torch.nan, gradient), None, None


@pytest.mark.parametrize("how", ["raise", "nan", "poison"])
@pytest.mark.parametrize("name", ["fgsm-linf", "pgd-l2", "autoattack-linf", "fmn-l2"])
def test_a_sample_without_a_gradient_is_counted_and_the_others_are_attacked(name, how):
    """A finite answer whose gradient is NaN is no break, and no robustness that nobody is told of."""
    model, split = problem(lambda z, bad: BadBackward.apply(z, bad, how), 0.65)
    images = split.images.clone()
    images[:, 0, 0, 0] = 0.3
    images[MARKED, 0, 0, 0] = 1.0
    with torch.no_grad():
        labels = model(images).argmax(1)
    sound = run((problem(lambda z, bad: z)[0], stubs.split_of(images, labels)), name, 0.3)[0]
    record = run((model, stubs.split_of(images, labels)), name, 0.3)[0]
    assert record.measures["nonfinite_gradients"] > 0
    assert "nonfinite_gradients" not in sound.measures
    assert not unanswered(record.outcomes).any()
    others = np.delete(record.outcomes["correct"], MARKED, 1)
    np.testing.assert_array_equal(others, np.delete(sound.outcomes["correct"], MARKED, 1))


def test_a_sample_that_gave_up_is_found_by_halving_and_not_asked_again():
    model, split = problem(FAULTS["underflow"])
    images = split.images.repeat(5, 1, 1, 1)[:64]
    images[:, 0, 0, 0] = 0.5
    images[40, 0, 0, 0] = 1.0
    queried = CheckedModel(model, 3, per_sample=True)
    found = predict(queried, images)
    assert (found == NO_ANSWER).nonzero().flatten().tolist() == [40]
    assert len(model.sizes) <= 2 + 2 * 6, "and one try to find the type of its images"
    calls = len(model.sizes)
    again = predict(queried, images)
    assert torch.equal(found, again)
    assert len(model.sizes) == calls + 1


def test_a_held_out_sample_without_an_answer_is_wrong_and_has_no_loss():
    model, split = problem(FAULTS["underflow"])
    rows = torch.tensor([i for i in range(COUNT) if i != MARKED])
    others = stubs.split_of(split.images[rows], split.labels[rows])
    loss, accuracy = score(model, split, 5, stubs.CPU, 3)
    assert accuracy == pytest.approx((COUNT - 1) / COUNT)
    assert loss == pytest.approx(score(model, others, 5, stubs.CPU, 3)[0])


def test_a_sample_without_an_answer_hides_no_noise_of_the_model():
    def fault(logits: Tensor, bad: Tensor) -> Tensor:
        return raising(AssertionError("underflow in dt 0.0"))(logits + 0.1 * torch.randn_like(logits), bad)

    model, split = problem(fault)
    found = inconsistencies(model, split.images, num_classes=3, batch_size=COUNT, device=stubs.CPU)
    assert "determinism" in found
    sound = problem(FAULTS["underflow"])[0]
    assert not inconsistencies(sound, split.images, num_classes=3, batch_size=COUNT, device=stubs.CPU)


def test_training_and_plain_queries_still_refuse():
    model, split = problem(FAULTS["nan"])
    with pytest.raises(NonFinite):
        CheckedModel(model, 3)(split.images)


def test_a_copy_without_an_answer_has_no_vote_and_its_image_no_large_radius():
    model, split = problem(FAULTS["underflow"])
    cell = dataclasses.replace(
        stubs.cell_for("clean", 0.05, COUNT, parameters={"n0": 4, "n": 24, "alpha": 0.01}, batch_size=32),
        kind="certificate",
        threat="smoothing",
    )
    record = smooth_cell(cell, model, split, num_classes=3, device=stubs.CPU, environment={})
    assert record.outcomes["radius"][MARKED] == 0
    assert (record.outcomes["radius"] > 0).sum() > COUNT // 2


@pytest.mark.parametrize("progress", [False, True])
def test_evaluate_says_what_share_has_no_answer(progress, capsys):
    def fault(logits, images):
        return torch.where(images.flatten(1).sum(1, keepdim=True) > 19, torch.nan, logits)

    table = evaluate(
        stubs.Faulty((1, 8, 8), 10, fault),
        threats=["clean", ("pgd-linf", 0.05)],
        samples=20,
        progress=progress,
    )
    shares = table[table["statistic"] == "no_answer"].set_index("threat")["value"]
    assert 0 < shares["clean"] < 1
    assert shares["worst-case"] >= shares["clean"]
    assert shares["pgd-linf"] >= shares["clean"]
    whole = evaluate(stubs.Linear((1, 8, 8), 10), threats=["clean"], samples=20)
    assert "no_answer" not in set(whole["statistic"])


def test_outcomes_without_an_answer_are_told_from_wrong_classes():
    labels = np.array([0, 1, 2, 0])
    prediction = np.array([[0, -1, 1, -1], [0, 1, -1, 2]], np.int16)
    outcomes = outcomes_of(prediction, labels)
    np.testing.assert_array_equal(unanswered(outcomes), prediction == NO_ANSWER)
    np.testing.assert_array_equal(predictions(outcomes, labels), prediction)
    assert not unanswered(outcomes_of(prediction.clip(0), labels)).any()
