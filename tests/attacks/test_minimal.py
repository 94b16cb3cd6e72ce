"""The contract of minimal-norm attacks: what is returned, what is counted, what is left alone."""

from __future__ import annotations

import dataclasses

import optima
import pytest
import stubs
import torch
from robustode._errors import InvalidArgument, UnknownName
from robustode.attacks import BUDGET_TOLERANCE, THREATS, closest, distance, violation
from robustode.attacks.core.minimum_norm_search import MinimumNormSearch
from robustode.attacks.core.queried_model import QueriedModel
from robustode.attacks.core.seeds import sample_seeds
from robustode.bench.evaluation.accuracy import evaluate_cell
from robustode.bench.runtime.checked_model import CheckedModel
from torch import nn

NAMES = ("fmn-linf", "fmn-l2", "ddn-l2", "cw-l2", "alma-l2")
STEPS = {"alma-l2": 100}
every = pytest.mark.parametrize("name", NAMES)


def quick(name: str, **parameters):
    return THREATS.get(name).configure(
        **{"steps": STEPS.get(name, 20), **({"rounds": 3} if name == "cw-l2" else {}), **parameters}
    )


class Rowwise(nn.Module):
    """Three classes through tanh, by sums over each row: no matrix product that depends on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", optima.linear_layer(12, 3, 4).weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return ((images.flatten(1) - 0.5).mul(2).tanh()[:, None] * self.weight).sum(-1)


def problem(count: int = 8):
    model, images = Rowwise(), optima.images_of("edge", count, 12, 5)
    return model, images, model(images).argmax(1)


def test_the_registry_knows_which_threats_are_minimal():
    assert {threat.name for threat in THREATS if threat.minimal} == set(NAMES)
    assert {THREATS.get(name).family for name in NAMES} == {"gradient"}
    assert [THREATS.get(name).norm for name in NAMES] == ["linf", "l2", "l2", "l2", "l2"]


@every
def test_what_is_crafted_breaks_the_samples_whose_closest_image_is_near_enough(name):
    model, images, labels = problem()
    threat = quick(name)
    distances = closest(threat, model, images, labels, 3)[1]
    assert bool(distances.isfinite().all())
    strength = float(distances.sort().values[3:5].mean())  # between two samples
    crafted = threat(model, images, labels, strength, 3)
    near = distances <= strength
    assert 0 < int(near.sum()) < len(images)
    assert torch.equal(model(crafted).argmax(1) != labels, near)
    assert torch.equal(crafted[~near], images[~near])
    assert float(violation(crafted, images, strength, threat.norm).max()) <= BUDGET_TOLERANCE


@every
def test_distances_belong_to_the_images_and_these_are_misclassified(name):
    model, images, labels = problem()
    found, distances = closest(quick(name), model, images, labels, 0)
    assert distances.dtype == torch.float64
    assert torch.equal(distances, distance(found, images, THREATS.get(name).norm))
    assert bool((model(found).argmax(1) != labels).all())
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1


@every
def test_a_misclassified_image_has_distance_zero(name):
    model, images, labels = problem()
    labels = torch.where(torch.arange(len(labels)) % 2 == 0, labels, (labels + 1) % 3)
    found, distances = closest(quick(name), model, images, labels, 0)
    assert bool((distances[1::2] == 0).all())
    assert torch.equal(found[1::2], images[1::2])
    assert bool((distances[::2] > 0).all())


@every
def test_a_flat_model_is_never_broken_and_leaves_the_images(name):
    """Neither 0/0 nor a made-up success, wherever the noise that replaces the gradient leads."""
    model = stubs.two_class(torch.zeros(1, 2, 2), 1.0)
    images = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2).contiguous()
    asked = []
    handle = model.register_forward_hook(lambda _, inputs, __: asked.append(inputs[0].detach()))
    found, distances = closest(quick(name), model, images, torch.ones(3, dtype=torch.long), 0)
    handle.remove()
    assert bool(distances.isinf().all())
    assert torch.equal(found, images)
    assert all(bool(x.isfinite().all() and (x >= 0).all() and (x <= 1).all()) for x in asked)


@every
def test_a_plateau_is_left_at_random(name):
    """The gradient is exactly zero until a pixel exceeds 0.6: FMN, DDN and CW alone would stand still."""

    class Plateau(nn.Module):
        def forward(self, images):
            x = images.flatten(1).amax(1, keepdim=True)
            return torch.cat([0.1 - (x - 0.6).relu(), torch.zeros_like(x)], 1)

    images, labels = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.long)
    distances = closest(quick(name, restarts=4), Plateau(), images, labels, 0)[1]
    assert bool(distances.isfinite().all())
    assert float(distances.min()) >= 0.2 - 1e-6


@every
def test_a_sample_does_not_depend_on_its_batch(name):
    model, images, labels = problem()
    threat, seeds = quick(name, restarts=3), sample_seeds(1, range(8))
    found, distances = closest(threat, model, images, labels, seeds)
    order = torch.tensor([5, 2, 7])
    again, others = closest(threat, model, images[order], labels[order], [seeds[i] for i in order])
    assert torch.equal(again, found[order])
    assert torch.equal(others, distances[order])
    alone, one = closest(threat, model, images[4:5], labels[4:5], seeds[4:5])
    assert torch.equal(alone, found[4:5])
    assert torch.equal(one, distances[4:5])


@every
def test_a_seed_repeats_and_more_runs_never_hurt(name):
    model, images, labels = problem()
    distances = [closest(quick(name, restarts=r), model, images, labels, 5)[1] for r in (1, 3, 3)]
    assert torch.equal(distances[1], distances[2])
    assert bool((distances[1] <= distances[0] * 1.01).all())  # bisection stops at another place


@every
@pytest.mark.parametrize("restarts", [1, 2])
def test_queries_are_counted_exactly_whatever_is_found(name, restarts):
    model, images, labels = problem()
    labels = labels.clone()
    labels[0] = (labels[0] + 1) % 3
    threat = quick(name, restarts=restarts, refine=4)
    queried = CheckedModel(model, 3)
    closest(threat, queried, images, labels, 0)
    forwards, backwards = threat.queries(threat.parameters)
    runs, steps = restarts * threat.parameters.get("rounds", 1), threat.parameters["steps"]
    assert (forwards, backwards) == ((steps + 1) * runs + 5, steps * runs)
    assert (queried.forwards, queried.backwards) == (8 * forwards, 8 * backwards)


def test_a_prediction_that_does_not_repeat_is_not_returned():
    """The last query has the last word."""
    model, images, labels = problem()
    search = MinimumNormSearch(model, images, labels, "l2", 0)
    assert bool(search.query(1 - images).any())
    search._model = QueriedModel(lambda x: nn.functional.one_hot(labels, 3).float())
    found, distances = search.result()
    assert torch.equal(found, images)
    assert bool(distances.isinf().all())


def test_refining_stops_at_the_boundary_on_the_far_side():
    layer = optima.linear_layer(12, 2, 4)
    model, images = nn.Sequential(nn.Flatten(), layer), optima.images_of("inside", 6, 12, 5)
    labels = model(images).argmax(1)
    far = model(1 - images).argmax(1) != labels
    for norm in ("linf", "l2"):
        search = MinimumNormSearch(model, images, labels, norm, 0)
        search.query(1 - images)
        before = search.distance.clone()
        search.refine(12)
        z = model(search.best)
        assert bool((z.argmax(1) != labels)[far].all())
        assert float((z[:, 0] - z[:, 1]).abs()[far].max()) < 0.02
        assert bool((search.distance <= before)[far].all())


@every
def test_a_cell_agrees_with_the_distances(name):
    model, images, labels = problem()
    threat = quick(name)
    distances = closest(threat, model, images, labels, sample_seeds(0, range(8)))[1]
    strength = float(distances.median())
    cell = stubs.cell_for(threat, strength, 8)
    cell = dataclasses.replace(cell, parameters=dict(threat.parameters))
    record = evaluate_cell(
        cell, model, stubs.split_of(images, labels), threat, num_classes=3, device=stubs.CPU, environment={}
    )
    assert record.status == "ok"
    assert record.outcomes["correct"][0].tolist() == (distances > strength).tolist()


def test_other_threats_find_no_closest_image():
    with pytest.raises(InvalidArgument, match=r"pgd-l2 finds no closest image: choose one of .*fmn-l2"):
        closest("pgd-l2", None, torch.zeros(1, 1, 2, 2), torch.zeros(1), 0)
    with pytest.raises(UnknownName, match="fmn-l3"):
        closest("fmn-l3", None, torch.zeros(1, 1, 2, 2), torch.zeros(1), 0)
