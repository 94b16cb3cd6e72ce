"""Training: the same bytes from the same seed, resumed or not; nothing is chosen on the test set."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import stubs
import torch
from robustode._errors import ContractBroken, ModelFailure, NonFinite
from robustode.bench.config.preset import Recipe
from robustode.bench.records.checkpoint import load_tensors
from robustode.bench.training.partial_training import History
from robustode.bench.training.train import build_model, score, train, training_batches, training_step
from robustode.models import MODELS
from torch import nn
from torch.nn import functional as F

RECIPE = Recipe(epochs=4, batch_size=32, learning_rate=0.02, decay=0.9, weight_decay=1e-3)
FACTS = {"cell": {"model": "m", "seed": 0}}


def fit(data, path, *, name="ch-node", seed=0, recipe=RECIPE, facts=FACTS, build=None, **more):
    spec = MODELS.get(name)
    model = build_model(build or spec.build, data, {} if build else spec.resolve(), seed)
    checkpoint, history = train(
        model, data, recipe, seed=seed, path=path, facts=facts, device=stubs.CPU, **more
    )
    return model, checkpoint, history


class Stop(Exception):
    pass


def stop_after(samples: int):
    """A callback that raises once so many samples were trained on."""
    seen = 0

    def on_batch(count: int) -> None:
        nonlocal seen
        seen += count
        if seen > samples:
            raise Stop

    return on_batch


@pytest.mark.parametrize("name", ["resnet", "ch-node"])
def test_the_same_seed_gives_the_same_bytes(few, tmp_path, name):
    _, one, history = fit(few, tmp_path / "1.safetensors", name=name)
    torch.rand(17)  # the caller's generator is elsewhere by now
    _, two, again = fit(few, tmp_path / "2.safetensors", name=name)
    _, other, _ = fit(few, tmp_path / "3.safetensors", name=name, seed=1)
    assert one.sha256 == two.sha256 != other.sha256
    assert history == again


@pytest.mark.parametrize("epochs", [0, 1, 3])
def test_a_killed_training_goes_on_to_the_same_bytes(few, tmp_path, epochs):
    _, whole, history = fit(few, tmp_path / "whole.safetensors")
    path = tmp_path / "killed.safetensors"
    with pytest.raises(Stop):
        fit(few, path, on_batch=stop_after(epochs * 200 + 50))
    assert not path.exists()
    assert path.with_name("killed.partial.safetensors").exists() == (epochs > 0)
    seen = []
    _, resumed, again = fit(few, path, on_batch=seen.append)
    assert resumed.sha256 == whole.sha256
    assert again == history
    assert seen[0] == epochs * 200
    assert sum(seen) == 4 * 200
    assert len(seen) == 1 + (4 - epochs) * 7
    assert sorted(p.name for p in tmp_path.glob("killed*")) == [
        "killed.partial.safetensors",  # until its record is stored
        "killed.safetensors",
    ]


@pytest.mark.parametrize("how", ["fresh", "other cell", "damaged"])
def test_a_partial_state_that_does_not_fit_is_not_resumed(few, tmp_path, how):
    _, whole, _ = fit(few, tmp_path / "whole.safetensors")
    path = tmp_path / "killed.safetensors"
    partial = path.with_name("killed.partial.safetensors")
    facts = {"cell": {"model": "other"}} if how == "other cell" else FACTS
    with pytest.raises(Stop):
        fit(few, path, facts=facts, on_batch=stop_after(450))
    if how == "damaged":
        partial.write_bytes(partial.read_bytes()[:100])
    seen = []
    _, resumed, _ = fit(few, path, on_batch=seen.append, resume=how != "fresh")
    assert seen[0] == 0
    assert resumed.sha256 == whole.sha256


def test_the_selected_weights_are_those_of_the_best_validation_epoch(few, tmp_path):
    recipe = RECIPE.model_copy(update={"epochs": 8, "learning_rate": 0.1, "decay": 1.0})
    model, checkpoint, history = fit(few, tmp_path / "w.safetensors", recipe=recipe, name="resnet")
    best = max(history.validation_accuracy)
    assert history.validation_accuracy[history.selected("validation")] == best
    assert history.selected("validation") < 7, (
        "this recipe must get worse at some time for the test to say anything"
    )
    assert not model.training
    assert score(model, few.validation, 32, stubs.CPU, 10) == (
        history.validation_loss[history.selected("validation")],
        best,
    )
    assert checkpoint.facts["selected_epoch"] == history.selected("validation") + 1
    assert checkpoint.facts["history"] == vars(history)


@pytest.mark.parametrize(
    ("accuracy", "loss", "best"),
    [
        ([0.1, 0.5, 0.4], [3, 2, 1], 1),
        ([0.5, 0.5, 0.4], [3, 2, 1], 1),
        ([0.5, 0.5, 0.5], [2, 2, 2], 0),
        ([0.5], [1], 0),
    ],
)
def test_selection_is_by_accuracy_then_loss_then_the_earliest(accuracy, loss, best):
    history = History(train_loss=[0.0] * len(loss), validation_loss=loss, validation_accuracy=accuracy)
    assert history.selected("validation") == best


def test_the_test_set_is_never_looked_at(few, tmp_path):
    _, one, _ = fit(few, tmp_path / "1.safetensors")
    model = build_model(MODELS.get("ch-node").build, few, {}, 0)
    blind = dataclasses.replace(few, test=None)
    two, _ = train(
        model, blind, RECIPE, seed=0, path=tmp_path / "2.safetensors", facts=FACTS, device=stubs.CPU
    )
    assert one.sha256 == two.sha256


def test_normalisation_is_fitted_to_the_training_images_alone(few, tmp_path):
    model, checkpoint, _ = fit(few, tmp_path / "w.safetensors")
    assert float(model.normalise.mean) == pytest.approx(float(few.train.images.mean()), rel=1e-5)
    assert float(model.normalise.std) == pytest.approx(float(few.train.images.std()), rel=1e-5)
    assert torch.equal(load_tensors(checkpoint.path)[0]["normalise.mean"], model.normalise.mean)


def test_the_callers_generator_is_untouched(few, tmp_path):
    state = torch.get_rng_state()
    fit(few, tmp_path / "w.safetensors")
    assert torch.equal(torch.get_rng_state(), state)


def test_training_learns(few, tmp_path):
    recipe = RECIPE.model_copy(update={"epochs": 10})
    _, _, history = fit(few, tmp_path / "w.safetensors", recipe=recipe)
    assert history.train_loss[-1] < 0.5 * history.train_loss[0]
    assert max(history.validation_accuracy) > 0.7


@pytest.mark.parametrize("fault", [lambda z, x: z * torch.nan, lambda z, x: z * 1e38 * 1e38])
def test_logits_that_are_not_finite_stop_the_training(few, tmp_path, fault):
    def build(shape, classes):
        return stubs.Faulty(shape, classes, lambda z, x: fault(z, x) if z.requires_grad else z)

    with pytest.raises(NonFinite):
        fit(few, tmp_path / "w.safetensors", build=build)
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_is_divergence(few, tmp_path):
    class Diverging(stubs.Linear):
        def penalty(self):
            return self.head.weight.sum() * torch.inf

    with pytest.raises(NonFinite, match=r"training diverged in epoch 1: the loss is .*; lower the learning"):
        fit(few, tmp_path / "w.safetensors", build=Diverging)


def test_a_loss_of_one_entry_is_a_loss(few, tmp_path):
    class Boxed(stubs.Linear):
        def loss(self, logits, labels):
            return F.cross_entropy(logits, labels)[None]

    _, _, history = fit(few, tmp_path / "w.safetensors", build=Boxed)
    assert np.isfinite(history.train_loss).all()


def test_a_step_is_adam_on_cross_entropy_plus_the_penalty(few):
    class Penalised(stubs.Linear):
        def penalty(self):
            return 0.5 * self.head.weight.square().sum()

    images, labels = few.train.images[:8], few.train.labels[:8]
    model = build_model(Penalised, few, {}, 0)
    weight = model.head.weight.detach().clone().requires_grad_(True)
    bias = model.head.bias.detach().clone()
    loss = F.cross_entropy(images.flatten(1) @ weight.T + bias, labels) + 0.5 * weight.square().sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    assert training_step(model, images, labels, optimiser, 10) == pytest.approx(float(loss.detach()))
    torch.testing.assert_close(model.head.weight.detach(), (weight - 0.1 * gradient).detach())


def test_the_learning_rate_decays_by_epoch(few, tmp_path, monkeypatch):
    seen = []
    real = torch.optim.Adam.step

    def step(self, *args, **kwargs):
        seen.append(self.param_groups[0]["lr"])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    fit(few, tmp_path / "w.safetensors", build=stubs.linear)
    assert seen == pytest.approx([0.02 * 0.9**epoch for epoch in range(4) for _ in range(7)])


def test_every_sample_is_seen_once_an_epoch_in_another_order(few, tmp_path):
    batches = []

    class Watching(stubs.Linear):
        def forward(self, images):
            if self.training:
                batches.append(images[:, 0, :, :].flatten(1).double().sum(1))
            return super().forward(images)

    fit(few, tmp_path / "w.safetensors", build=Watching)
    epochs = [torch.cat(batches[i : i + 7]) for i in range(0, 28, 7)]
    assert not torch.equal(epochs[0], epochs[1])
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, epochs[0].sort().values)


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (lambda s, c: 3, ContractBroken, "the factory returned int, not a torch.nn.Module"),
        (lambda s, c: nn.Flatten(), ContractBroken, r"returned shape \(2, 64\)"),
        (
            lambda s, c: stubs.Linear(s, c).requires_grad_(False),
            ContractBroken,
            "the model has no parameters to train",
        ),
        (lambda s: None, ModelFailure, "the model cannot be built: TypeError"),
        (lambda s, c: stubs.Linear(s, c + 1), ContractBroken, r"\(2, 11\) for 2 images"),
    ],
)
def test_what_cannot_be_trained_says_so(few, build, kind, message):
    with pytest.raises(kind, match=message):
        build_model(build, few, {}, 0)


def test_build_model_is_seeded_and_keeps_the_callers_generator(few):
    state = torch.get_rng_state()
    one, two, other = (build_model(stubs.linear, few, {}, seed) for seed in (0, 0, 1))
    assert torch.equal(one.head.weight, two.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_score_is_the_mean_over_all_samples(few):
    model = build_model(stubs.linear, few, {}, 0)
    loss, accuracy = score(model, few.validation, 32, stubs.CPU, 10)
    with torch.no_grad():
        logits = model(few.validation.images)
    assert loss == pytest.approx(float(F.cross_entropy(logits, few.validation.labels)), rel=1e-5)
    assert accuracy == pytest.approx(float((logits.argmax(1) == few.validation.labels).double().mean()))


def normed(shape, classes):
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, classes)
    )


def test_a_last_batch_of_one_sample_is_left_out(few, tmp_path):
    """Batch normalisation cannot train on it."""
    data = dataclasses.replace(few, train=few.train.first(41))
    recipe = RECIPE.model_copy(update={"epochs": 2, "batch_size": 20})
    seen = []
    _, _, history = fit(data, tmp_path / "w.safetensors", build=normed, recipe=recipe, on_batch=seen.append)
    assert seen[1:] == [20, 20, 1] * 2, "progress counts it all the same"
    assert all(math.isfinite(loss) for loss in history.train_loss)


@pytest.mark.parametrize(
    ("count", "size", "sizes"), [(41, 20, [20, 20]), (42, 20, [20, 20, 2]), (3, 1, [1, 1, 1]), (1, 20, [1])]
)
def test_other_batches_stay(count, size, sizes):
    batches = training_batches(torch.arange(count), size)
    assert [len(rows) for rows in batches] == sizes
    assert torch.equal(torch.cat(batches), torch.arange(sum(sizes)))


class WithState(stubs.Linear):
    """Its state holds more than tensors."""

    def get_extra_state(self):
        return {"calls": 3}

    def set_extra_state(self, state):
        self.calls = state["calls"]


class Sparse(stubs.Linear):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.register_buffer("mask", torch.eye(3).to_sparse())


@pytest.mark.parametrize(
    ("kind", "message"),
    [(WithState, "holds dict under _extra_state"), (Sparse, "a sparse or quantised tensor under mask")],
)
def test_a_state_that_no_checkpoint_holds_is_refused_before_training(few, kind, message):
    with pytest.raises(ContractBroken, match=message):
        build_model(kind, few, {}, 0)
