"""CH-NODE as published: gamma follows the optimiser, and the Euler network does not do what the flow does."""

from __future__ import annotations

import math

import pytest
import stubs
import torch
from hypothesis import given
from hypothesis import strategies as st
from robustode._errors import NonFinite
from robustode.bench.config.preset import Recipe
from robustode.bench.training.train import build_model, train, training_step
from robustode.models import MODELS
from robustode.models.ch_node_euler import EPSILON, ScheduledNetwork
from torch import nn
from torch.nn import functional as F

SPEC = MODELS.get("ch-node-euler")
seeds = st.integers(0, 2**31)


def build(seed: int = 0, **overrides) -> ScheduledNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SPEC.build((1, 8, 8), 10, **SPEC.resolve(overrides)).eval()


def sigma(model: nn.Module) -> float:
    return max(float(torch.linalg.svdvals(layer.K.detach().double())[0]) for layer in model.flow.layers)


def stretch(map_, seed: int, size: float) -> float:
    """Largest observed |map(x) - map(y)| / |x - y| over 200 pairs at distance `size`."""
    generator = torch.Generator().manual_seed(seed)
    x, step = (torch.randn(8, 200, dtype=torch.float64, generator=generator) for _ in range(2))
    step = size * step / step.norm(dim=0)
    with torch.no_grad():
        return float(((map_(x + step) - map_(x)).norm(dim=0) / size).max())


def few_steps(model: nn.Module, count: int, lr: float = 0.04) -> list[float]:
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(16) % 10
    return [float(training_step(model, images, labels, optimiser, 10)) for _ in range(count)]


# --- gamma --------------------------------------------------------------------------------------


def test_gamma_is_0_before_training_and_part_of_the_weights():
    model = build()
    assert float(model.state_dict()["flow.gamma"]) == 0
    assert "flow.gamma" not in dict(model.named_parameters())
    assert model.flow.bounds()["rho"] < 0, "with gamma 0 nothing contracts"


@given(seeds, st.floats(0.02, 1.0), st.floats(0.1, 3.0))
def test_gamma_after_a_step_is_the_papers_formula(seed, kappa, gain):
    model = build(seed, kappa=kappa, gain=gain).double()
    model.after_step()
    c1 = kappa**2
    c2 = c1 + sigma(model) ** 2
    a = (c2 - c1) / (c2 + c1)
    assert float(model.flow.gamma) == pytest.approx(1 / math.sqrt(1 - a**2 - EPSILON), rel=1e-6)
    known = model.flow.bounds()
    assert (known["c1"], known["c2"]) == pytest.approx((c1, c2))
    assert float(model.flow.gamma) > a / math.sqrt(1 - a**2), "the threshold of Theorem 1"
    assert known["rho"] > 0


def test_the_largest_of_all_layers_sets_gamma():
    model = build(layers=4).double()
    with torch.no_grad():
        for layer, size in zip(model.flow.layers, (0.5, 2.0, 1.0, 0.1), strict=True):
            layer.K.copy_(size * torch.eye(8))
    model.after_step()
    c1, c2 = 0.02**2, 0.02**2 + 4
    assert float(model.flow.gamma) == pytest.approx(
        (4 * c1 * c2 / (c1 + c2) ** 2 - EPSILON) ** -0.5, rel=1e-6
    )


@pytest.mark.parametrize(("ratio", "known"), [(3.99e6, True), (4.01e6, False), (1e9, False)])
def test_gamma_is_a_number_until_c2_is_4e6_times_c1(ratio, known):
    model = build(kappa=0.02).double()
    with torch.no_grad():
        for layer in model.flow.layers:
            layer.K.copy_(0.02 * math.sqrt(ratio - 1) * torch.eye(8))
    model.after_step()
    assert math.isfinite(model.flow.gamma) == known
    assert math.isnan(model.flow.gamma) != known


def test_no_gradient_flows_through_gamma():
    model = build()
    model.after_step()
    assert not model.flow.gamma.requires_grad
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model(images).sum().backward()
    assert model.flow.gamma.grad is None
    assert all(layer.K.grad is not None for layer in model.flow.layers)


def test_a_copy_has_the_gamma_it_was_saved_with():
    model, other = build(), build(1)
    model.after_step()
    other.load_state_dict(model.state_dict())
    assert float(other.flow.gamma) == float(model.flow.gamma) > 1
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(other(images), model(images))


# --- the network --------------------------------------------------------------------------------


def test_a_layer_is_one_euler_step_of_the_contractive_field():
    model = build(layers=3).double()
    model.after_step()
    flow = model.flow
    x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    J = torch.kron(torch.tensor([[0.0, -1.0], [1.0, 0.0]]), torch.eye(4)).double()
    wanted = x
    for layer in flow.layers:
        gradient = layer.K @ torch.tanh(layer.K.T @ wanted + layer.b) + 0.02**2 * wanted
        wanted = wanted + 0.5 * (J - flow.gamma * torch.eye(8)) @ gradient
    torch.testing.assert_close(flow(x), wanted, rtol=1e-6, atol=0)
    assert flow.nfe == 3
    assert flow.final_time == 1.5


def test_k_and_b_are_drawn_from_the_standard_normal_distribution():
    model = build(layers=100)
    K = torch.cat([layer.K.detach().flatten() for layer in model.flow.layers])
    b = torch.cat([layer.b.detach().flatten() for layer in model.flow.layers])
    for drawn in (K, b):
        assert abs(float(drawn.mean())) < 4 / math.sqrt(drawn.numel())
        assert float(drawn.std()) == pytest.approx(1, rel=4 / math.sqrt(2 * drawn.numel()))


@pytest.mark.parametrize("seed", range(3))
def test_the_euler_network_parts_states_although_its_flow_brings_them_closer(seed):
    model = build(seed, kappa=0.02).double()
    model.after_step()
    assert model.flow.bounds()["rho"] > 0
    assert model.flow.lipschitz_bounds()["exact_flow"] < 1
    observed = stretch(model.flow, seed, 1e-3)
    assert 1 < observed <= model.flow.lipschitz_bounds()["solver"]


# --- training -----------------------------------------------------------------------------------


def test_gamma_is_that_of_the_weights_after_the_step(few, tmp_path):
    model = build_model(SPEC.build, few, {"kappa": 0.3, "gain": 0.5}, 0)
    recipe = Recipe(epochs=2, batch_size=50, learning_rate=0.01, select="last")
    path = tmp_path / "m.safetensors"
    train(model, few, recipe, seed=0, path=path, facts={"cell": {}}, device=stubs.CPU)
    gamma = float(model.flow.gamma)
    model.after_step()
    assert gamma == float(model.flow.gamma) > 1


def test_training_fails_when_gamma_stops_being_a_number(few, tmp_path):
    model = build_model(SPEC.build, few, {"kappa": 1e-4}, 0)
    model(few.train.images[:2])  # gamma is still 0
    recipe = Recipe(epochs=1, batch_size=50, learning_rate=0.01)
    seen: list[int] = []
    with pytest.raises(NonFinite, match="logits are NaN or infinite for 50 of 50 samples"):
        train(
            model, few, recipe, seed=0, path=tmp_path / "m.safetensors",
            facts={"cell": {}}, device=stubs.CPU, on_batch=seen.append,
        )  # fmt: skip
    assert seen == [0, 50], "the first step sets gamma, the second one meets it"
    assert math.isnan(model.flow.gamma)


class Counts(stubs.Linear):
    """Writes down what training asks of it, and its bias at that time."""

    def __init__(self) -> None:
        super().__init__((1, 8, 8), 10)
        nn.init.zeros_(self.head.bias)
        self.asked: list[tuple[str, bool]] = []

    def note(self, what: str) -> None:
        self.asked.append((what, bool(self.head.bias.any())))

    def after_step(self) -> None:
        self.note("after_step")


class Judges(Counts):
    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.note("loss")
        return 2 * F.cross_entropy(logits, labels)

    def penalty(self) -> torch.Tensor:
        self.note("penalty")
        return torch.tensor(3.0)


def test_after_step_is_called_once_after_each_step():
    model = Counts()
    losses = few_steps(model, 5)
    assert model.asked == [("after_step", True)] * 5
    assert losses[-1] < losses[0]


def test_the_models_own_loss_and_penalty_are_used():
    model = Judges()
    one = [("loss", False), ("penalty", False), ("after_step", True)]
    plain = Counts()
    plain.load_state_dict(model.state_dict())
    (loss,) = few_steps(model, 1)
    assert model.asked == one
    (cross_entropy,) = few_steps(plain, 1)
    assert loss == pytest.approx(2 * cross_entropy + 3)


def test_a_model_without_them_is_trained_on_cross_entropy():
    model = stubs.Linear((1, 8, 8), 10)
    images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    wanted = float(F.cross_entropy(model(images), torch.arange(16) % 10).detach())
    assert few_steps(model, 1) == [pytest.approx(wanted)]


def test_a_training_step_moves_gamma_with_k():
    model = build(kappa=0.5, gain=0.5)
    gammas = []
    for _ in range(3):
        few_steps(model, 1)
        c1, c2 = model.flow.curvatures()
        assert c2 == pytest.approx(c1 + sigma(model) ** 2)
        wanted = (1 - ((c2 - c1) / (c2 + c1)) ** 2 - EPSILON) ** -0.5
        assert float(model.flow.gamma) == pytest.approx(wanted, rel=1e-6)
        gammas.append(float(model.flow.gamma))
    assert len(set(gammas)) == 3
