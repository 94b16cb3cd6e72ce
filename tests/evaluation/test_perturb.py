"""Training on perturbed images: which threat, how strong, on whose stream, and what of it is in the key."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import stubs
import torch
from robustode._errors import InvalidArgument
from robustode.attacks import THREATS
from robustode.attacks.core.seeds import Purpose, stream_seeds
from robustode.bench.config.model_selection import select_models
from robustode.bench.config.perturbation import Perturber, recipe_facts, training_queries, training_threat
from robustode.bench.config.plan import make_plan
from robustode.bench.config.preset import Perturbation, Recipe, load_preset
from robustode.bench.evaluation.accuracy import batches
from robustode.bench.training.train import build_model, train
from robustode.models import MODELS

PLAIN = Recipe(epochs=3, batch_size=50, learning_rate=0.02)
NOISE = Perturbation(threat="gaussian", strength=0.2)
ATTACK = Perturbation(threat="pgd-linf", strength=0.1, parameters={"steps": 3, "restarts": 1})


def on(wish: Perturbation, seed: int = 0) -> tuple[stubs.Linear, Perturber]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = stubs.Linear((1, 8, 8), 10)
    return model, Perturber(model, wish, seed, 10)


def batch(few) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    return few.train.images[:30], few.train.labels[:30], few.train.indices[:30]


def test_noise_follows_from_seed_epoch_and_sample_alone(few):
    images, labels, numbers = batch(few)
    _, change = on(NOISE)
    once = change(images, labels, numbers, 0)
    assert 0.05 < float((once - images).std()) < 0.2  # of sigma 0.2, half of it clipped away at black pixels
    assert torch.equal(change(images[7:9], labels[7:9], numbers[7:9], 0), once[7:9])
    assert not torch.equal(change(images, labels, numbers, 1), once)
    assert not torch.equal(change(images, labels, numbers), once)
    assert not torch.equal(on(NOISE, seed=1)[1](images, labels, numbers, 0), once)


def test_an_attack_raises_the_loss_within_its_budget_and_leaves_the_model_alone(few):
    images, labels, numbers = batch(few)
    model, change = on(ATTACK)
    model.train()
    perturbed = change(images, labels, numbers, 0)
    assert not perturbed.requires_grad
    assert float((perturbed - images).abs().max()) <= 0.1 + 1e-6
    loss = torch.nn.functional.cross_entropy
    assert loss(model(perturbed), labels) > loss(model(images), labels) + 0.05
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_an_attack_in_training_goes_on_with_what_is_broken(few):
    """The largest loss is trained on; an attack that is scored stops on a sample once it is broken."""
    images, labels, numbers = batch(few)
    model, change = on(ATTACK)
    threat, seeds = training_threat(ATTACK), stream_seeds(Purpose.TRAINING, 0, 1, numbers.tolist())
    given = (model.eval(), images, labels, ATTACK.strength, seeds)
    trained_on = change(images, labels, numbers, 1)
    assert torch.equal(trained_on, threat(*given, early_stopping=False))
    assert not torch.equal(trained_on, threat(*given))


@pytest.mark.parametrize(
    ("ramp", "strengths"), [(0, [0.1, 0.1, 0.1]), (2, [0.05, 0.1, 0.1]), (4, [0.025, 0.05, 0.075])]
)
def test_the_strength_grows_over_the_ramp(ramp, strengths):
    _, change = on(ATTACK.model_copy(update={"ramp": ramp}))
    assert [change.strength(epoch) for epoch in range(3)] == pytest.approx(strengths)
    assert change.strength(None) == 0.1


def trained(few, path, recipe, **more):
    spec = MODELS.get("resnet")
    model = build_model(spec.build, few, spec.resolve(), 0)
    facts = {"cell": recipe_facts(recipe)}
    return train(model, few, recipe, seed=0, path=path, facts=facts, device=stubs.CPU, **more)


@pytest.mark.parametrize("wish", [NOISE, ATTACK], ids=["noise", "attack"])
def test_training_on_perturbed_images_goes_on_to_the_same_bytes(few, tmp_path, wish):
    recipe = PLAIN.model_copy(update={"perturb": wish})
    whole, history = trained(few, tmp_path / "whole.safetensors", recipe)

    class Stop(Exception):
        pass

    seen = []

    def stop(count: int) -> None:
        seen.append(count)
        if sum(seen) > 300:
            raise Stop

    with pytest.raises(Stop):
        trained(few, tmp_path / "parts.safetensors", recipe, on_batch=stop)
    parts, again = trained(few, tmp_path / "parts.safetensors", recipe)
    assert (whole.sha256, history) == (parts.sha256, again)
    plain, _ = trained(few, tmp_path / "plain.safetensors", PLAIN)
    assert plain.sha256 != whole.sha256


def test_adversarial_training_gains_robustness(few, tmp_path):
    recipe = Recipe(epochs=15, batch_size=50, learning_rate=0.02)
    left = {}
    for name, wish in {"plain": None, "attack": ATTACK}.items():
        spec = MODELS.get("resnet")
        model = build_model(spec.build, few, spec.resolve(), 0)
        path = tmp_path / f"{name}.safetensors"
        asked = recipe.model_copy(update={"perturb": wish})
        train(model, few, asked, seed=0, path=path, facts={"cell": {}}, device=stubs.CPU)
        threat = THREATS.get("pgd-linf")
        perturbed = threat(model, few.train.images.clone(), few.train.labels, 0.1, 3)
        left[name] = int((model(perturbed).argmax(1) == few.train.labels).sum())
    assert left["attack"] > left["plain"] + 20  # of 200


def test_a_key_holds_the_threat_its_version_and_all_of_its_parameters():
    facts = recipe_facts(PLAIN.model_copy(update={"perturb": ATTACK}))
    parameters = dict(THREATS.get("pgd-linf").configure(steps=3, restarts=1).parameters)
    assert facts["perturb"] == {
        "threat": "pgd-linf",
        "strength": 0.1,
        "ramp": 0.0,
        "parameters": parameters,
        "version": THREATS.get("pgd-linf").version,
        "streams": 2,
    }


def test_the_key_of_a_plain_training_is_what_it_was():
    assert "perturb" not in recipe_facts(PLAIN)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_plain_training_draws_its_weights_and_its_order_as_it_did(few, tmp_path, monkeypatch, seed):
    """Weights of plain rows are published: another stream would change them."""
    orders, permute = [], torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda n: orders.append(permute(n)) or orders[-1])
    model = build_model(lambda shape, classes: stubs.Linear(shape, classes), few, {}, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        initial = stubs.Linear((1, 8, 8), 10).state_dict()
        assert all(torch.equal(initial[name], value) for name, value in model.state_dict().items())
        recipe = PLAIN.model_copy(update={"epochs": 2})
        cpu = torch.device("cpu")
        train(model, few, recipe, seed=seed, path=tmp_path / "a", facts={"cell": {}}, device=cpu)
        for epoch, order in enumerate(orders):
            torch.manual_seed(1_000_003 * seed + epoch + 1)
            assert torch.equal(order, permute(len(few.train)))
    assert len(orders) == 2


def probe(few, wish: Perturbation, count: int = 20) -> list[dict[tuple[str, int], torch.Tensor]]:
    """The perturbations of samples 0 .. count - 1 in training, on held-out samples and in the evaluation."""
    grey, labels, numbers = torch.full((count, 1, 8, 8), 0.5), torch.zeros(count).long(), np.arange(count)
    model, threat = on(wish)[0], training_threat(wish)
    split = dataclasses.replace(few.test, images=grey, labels=labels, indices=numbers)
    cell = stubs.cell_for("gaussian", wish.strength, count)
    found: list[dict[tuple[str, int], torch.Tensor]] = [{}, {}, {}]
    for seed in (0, 1):
        change = Perturber(model, wish, seed, 10)
        found[1]["validation", seed] = change(grey, labels, numbers) - grey
        for epoch in range(4):
            found[0]["training", 10 * seed + epoch] = change(grey, labels, numbers, epoch) - grey
    for draw in range(4):
        ((_, images, targets, seeds),) = batches(split, numbers, cell, torch.device("cpu"), draw)
        changed = threat(model, images.clone(), targets, wish.strength, seeds, early_stopping=False)
        found[2]["evaluation", draw] = changed.detach() - grey
    return found


STARTS = Perturbation(threat="pgd-l2", strength=0.1, parameters={"steps": 1, "restarts": 1})


@pytest.mark.parametrize("wish", [NOISE, STARTS], ids=["noise", "starts"])
def test_no_training_sees_the_noise_or_the_starts_of_the_test(few, wish):
    """Image i of the training set in epoch d was given the noise of test image i in draw d."""
    streams = {name: noise for found in probe(few, wish) for name, noise in found.items()}
    for (name, one), (other, two) in itertools.combinations(streams.items(), 2):
        same = (one == two).flatten(1).all(1)
        assert not bool(same.any()), (name, other)


def test_queries_of_a_training_are_counted():
    plain = recipe_facts(PLAIN)
    assert training_queries(plain) == (3, 3)
    assert training_queries(recipe_facts(PLAIN.model_copy(update={"perturb": NOISE}))) == (3, 3)
    attacked = recipe_facts(PLAIN.model_copy(update={"perturb": ATTACK}))
    assert training_queries(attacked) == (3 * 5, 3 * 4)  # 3 steps and the look at the last iterate
    assert training_queries({"name": "given"}) == (0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threat": "pgd-lin"}, "unknown threat 'pgd-lin': did you mean pgd-linf"),
        ({"threat": "clean"}, "clean cannot be trained on"),
        ({"threat": "paper-gaussian"}, "paper-gaussian cannot be trained on"),
        ({"threat": "solver-transfer-linf"}, "solver-transfer-linf cannot be trained on"),
        ({"threat": "salt-pepper", "strength": 1.5}, "at most 1, not 1.5"),
        ({"parameters": {"stepz": 3}}, "unknown parameter of threat gaussian 'stepz'"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(change, message):
    with pytest.raises(InvalidArgument, match=message):
        training_threat(NOISE.model_copy(update=change))


def test_a_plan_refuses_it_before_anything_runs(tmp_path):
    text = stubs.PRESET.replace("epochs = 2\n", 'epochs = 2\nperturb = { threat = "nois", strength = 0.1 }\n')
    with pytest.raises(InvalidArgument, match="unknown threat 'nois'"):
        make_plan(load_preset(str(stubs.preset_file(tmp_path, text))))


def test_rows_may_have_fewer_seeds_unless_seeds_are_asked_for():
    preset = load_preset("standard")
    specs = select_models(preset, ["resnet-adversarial-l2", "node"])
    plan = make_plan(preset, models=specs)
    assert [(spec.name, seed) for spec, seed in plan.model_runs] == [
        ("resnet-adversarial-l2", 0),
        ("node", 0),
        ("node", 1),
        ("node", 2),
    ]
    asked = make_plan(preset, models=specs, seeds=2)
    assert [len(asked.seeds_of(spec)) for spec in specs] == [2, 2]
    row = dataclasses.replace(plan, fewer={"node": 9})
    assert list(row.seeds_of(specs[1])) == [0, 1, 2]
