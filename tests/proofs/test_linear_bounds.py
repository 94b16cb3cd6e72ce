"""Linear lower bounds of margins: exact where they can be, and below every margin that is found."""

from __future__ import annotations

import numpy as np
import pytest
import robustode
import torch
from hypothesis import given
from hypothesis import strategies as st
from robustode.bench.proofs.linear import enclosing_lines, margins
from robustode.bench.proofs.linear.column_network import column_network
from robustode.bench.proofs.linear.least_value import least_in_ball
from robustode.bench.proofs.linear.margins import LinearBounds
from robustode.models import MatrixField, NoCertificate, PixelNetwork, Solver
from robustode.models.ode.solver import FIXED_GRID
from torch import Tensor, nn

SHAPE, CLASSES = (1, 3, 4), 3


class Layer(MatrixField):
    """A field of every part, or without what `without` names."""

    def __init__(self, width: int, scale: float, without: str) -> None:
        super().__init__()
        matrices = torch.randn(3, width, width) * scale / width**0.5
        self.A, self.B, self.C = (nn.Parameter(matrix) for matrix in matrices)
        self.b = nn.Parameter(torch.randn(width, 1) * scale)
        self.without = without

    def tanh_field(self) -> robustode.TanhField:
        A = None if "A" in self.without else self.A * (0 if "tanh" in self.without else 1)
        return robustode.TanhField(A=A, B=self.B, b=self.b, C=None if "C" in self.without else self.C)


def network(seed: int, method: str = "heun2", scale: float = 1.0, without: str = "") -> PixelNetwork:
    """A random network of two layers of two steps, in float64."""
    torch.manual_seed(seed)
    layers = [Layer(3, scale, without) for _ in range(2)]
    flow = robustode.ODEBlock(layers, final_time=1.0, solver=Solver(method=method, steps=4))
    return PixelNetwork(SHAPE, CLASSES, flow, width=3).double().eval()


def bounds_of(
    model: PixelNetwork, images: Tensor, labels: Tensor, norm: str, strength: float, iterations: int = 4
) -> np.ndarray:
    """The lower bound of every margin, (N, classes)."""
    prover = LinearBounds(column_network(model, SHAPE), norm=norm, strength=strength, iterations=iterations)
    pairs = zip(images.flatten(1).numpy(), labels.tolist(), strict=True)
    return np.stack([prover.margins(image, label) for image, label in pairs])


def margins_of(model: PixelNetwork, images: Tensor, labels: Tensor) -> Tensor:
    """logit[label] - logit[k], (N, classes); infinite for the label."""
    logits = model(images)
    found = logits.gather(1, labels[:, None]) - logits
    return found.scatter(1, labels[:, None], torch.inf)


def perturbed(model: PixelNetwork, image: Tensor, label: Tensor, norm: str, strength: float) -> Tensor:
    """Images of ball and box: uniform ones, corners, and where steps along gradients of each margin lead."""
    count = 60
    images, labels = image.expand(count, *SHAPE).clone(), label.expand(count)
    kinds = torch.arange(count) % CLASSES
    moved = torch.empty_like(images).uniform_(-strength, strength)
    moved[::2] = moved[::2].sign() * strength

    def inside(x: Tensor) -> Tensor:
        change = (x - images).clamp(-strength, strength)
        if norm == "l2":
            length = change.flatten(1).norm(dim=1).clamp_min(1e-300).view(-1, 1, 1, 1)
            change = change * (strength / length).clamp_max(1 - 1e-12)
        return (images + change).clamp(0, 1)

    x = inside(images + moved)
    for _ in range(15):
        x = x.detach().requires_grad_(True)
        chosen = torch.where(kinds == label, (kinds + 1) % CLASSES, kinds)
        with torch.enable_grad():
            total = margins_of(model, x, labels).gather(1, chosen[:, None]).sum()
            (slope,) = torch.autograd.grad(total, x)
        x = inside(x - strength / 4 * (slope.sign() if norm == "linf" else slope / slope.norm() * count**0.5))
    return x.detach()


def worst_found(
    model: PixelNetwork, images: Tensor, labels: Tensor, norm: str, strength: float
) -> np.ndarray:
    """The least margin to every class among `perturbed` images, (N, classes)."""
    worst = []
    for image, label in zip(images, labels, strict=True):
        x = perturbed(model, image, label, norm, strength)
        worst.append(margins_of(model, x, label.expand(len(x))).amin(0))
    return torch.stack(worst).detach().numpy()


@pytest.mark.parametrize("method", FIXED_GRID)
@pytest.mark.parametrize("without", ["", "C", "A C"])
def test_the_bound_of_a_point_is_its_margin(method, without):
    model, images, labels = (
        network(0, method, without=without),
        torch.rand(3, *SHAPE).double(),
        torch.arange(3),
    )
    expected = margins_of(model, images, labels).detach().numpy()
    np.testing.assert_allclose(bounds_of(model, images, labels, "linf", 0.0), expected, atol=1e-7)


@given(
    seed=st.integers(0, 10**6),
    method=st.sampled_from(sorted(FIXED_GRID)),
    norm=st.sampled_from(["linf", "l2"]),
    strength=st.floats(1e-3, 1.0),
    scale=st.floats(0.1, 4.0),
    without=st.sampled_from(["", "C", "A C"]),
)
def test_no_image_of_the_ball_has_a_margin_below_the_bound(seed, method, norm, strength, scale, without):
    model, images = network(seed, method, scale, without), torch.rand(1, *SHAPE).double()
    labels = torch.randint(CLASSES, (1,))
    bound = bounds_of(model, images, labels, norm, strength)
    found = worst_found(model, images, labels, norm, strength)
    assert (bound <= found + 1e-9).all(), (bound, found)


def test_that_test_sees_an_error_in_a_line(monkeypatch):
    def wrong(*arguments):
        *_, sign, _, offsets = arguments
        right(*arguments)
        offsets += 0.05 * sign

    right = enclosing_lines.set_lower_lines.py_func
    monkeypatch.setattr(enclosing_lines, "set_lower_lines", wrong)
    monkeypatch.setattr(margins.loops, "set_lines", enclosing_lines.set_lines.py_func)
    for name in ("enclose_tile", "enclose", "linear_bound"):
        monkeypatch.setattr(margins.loops, name, getattr(margins.loops, name).py_func)
    model, images, labels = network(0), torch.rand(1, *SHAPE).double(), torch.tensor([0])
    bound = bounds_of(model, images, labels, "linf", 0.01, iterations=0)
    assert (bound > worst_found(model, images, labels, "linf", 0.01)).any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_linear_network_gets_its_least_margin(norm):
    model, images, labels = (
        network(3, without="tanh"),
        torch.rand(4, *SHAPE).double(),
        torch.tensor([0, 1, 2, 0]),
    )
    strength = 0.3 if norm == "linf" else 0.9
    found = bounds_of(model, images, labels, norm, strength)
    x = images.clone().requires_grad_(True)
    for k in range(CLASSES):
        margin = margins_of(model, x, labels)[:, k]
        (slopes,) = torch.autograd.grad(margin.sum(), x)
        for i in range(4):
            if k != labels[i]:
                low, high = (-images[i]).clamp_min(-strength), (1 - images[i]).clamp_max(strength)
                least = (slopes[i] * torch.where(slopes[i] > 0, low, high)).sum()
                if norm == "l2":
                    change = least_in_the_ball(slopes[i].flatten(), low.flatten(), high.flatten(), strength)
                    least = (slopes[i].flatten() * change).sum()
                assert found[i, k] == pytest.approx(float((margin[i] + least).detach()), abs=1e-6)


def least_in_the_ball(g: Tensor, low: Tensor, high: Tensor, radius: float) -> Tensor:
    """The v of least g . v in ball and box, by bisection on the multiplier of the ball."""
    small, large = 1e-9, 1e9
    for _ in range(200):
        mu = (small * large) ** 0.5
        inside = (-g / mu).clamp(low, high).norm() <= radius
        small, large = (small, mu) if inside else (mu, large)
    return (-g / large).clamp(low, high)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_small_ball_is_bounded_to_second_order(norm):
    model, images, labels = network(1), torch.rand(2, *SHAPE).double(), torch.tensor([0, 1])
    gaps = []
    for strength in (1e-2, 1e-3):
        bound = bounds_of(model, images, labels, norm, strength)
        found = worst_found(model, images, labels, norm, strength)
        kinds = np.isfinite(bound)
        gaps.append(np.abs(found[kinds] - bound[kinds]).max())
    assert gaps[1] < gaps[0] / 20


def test_optimised_tangents_prove_more_and_never_less():
    model, images, labels = network(2, scale=1.5), torch.rand(6, *SHAPE).double(), torch.arange(6) % CLASSES
    plain, better = (bounds_of(model, images, labels, "linf", 0.15, iterations=count) for count in (0, 10))
    assert (better >= plain).all()
    assert (better > plain + 1e-3).any()


@given(
    low=st.floats(-30, 30),
    wide=st.one_of(st.just(0.0), st.floats(1e-12, 1e-6), st.floats(0, 40)),
    at=st.floats(-40, 40),
)
def test_lines_enclose_tanh(low, wide, at):
    ends = [np.full((1, 1), value) for value in (low, low + wide, at)]
    lower, upper = np.empty((2, 1, 1)), np.empty((2, 1, 1))
    enclosing_lines.set_lines(*ends, lower, upper, np.empty((1, 1)), np.empty((1, 1)))
    x = np.concatenate(
        [np.linspace(low, low + wide, 2001), np.clip(np.linspace(-3, 3, 2001), low, low + wide)]
    )
    assert (lower[0] * x + lower[1] <= np.tanh(x)).all()
    assert (upper[0] * x + upper[1] >= np.tanh(x)).all()
    assert (lower[0] >= 0).all()


def test_the_least_value_in_ball_and_box_is_a_bound_and_is_attained():
    generator = np.random.default_rng(0)
    for _ in range(20):
        g, image = generator.normal(size=12), generator.random(12)
        radius = generator.uniform(0.05, 2)
        value, v = least_in_ball(g, -image, 1 - image, radius)
        best = least_in_the_ball(*(torch.from_numpy(a) for a in (g, -image, 1 - image)), radius).numpy()
        assert value <= g @ best + 1e-9
        assert value == pytest.approx(g @ best, abs=1e-6)
        assert value == pytest.approx(g @ v, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: nn.Sequential(model), "not a PixelNetwork"),
        (lambda model: model.stem.register_forward_hook(lambda *_: None) and model, "not a PixelNetwork"),
        (lambda model: setattr(model.flow, "solver", Solver(method="dopri5")) or model, "adaptive"),
        (lambda model: setattr(model.flow, "layers", nn.ModuleList([nn.Tanh()])) or model, "do not state"),
        (lambda model: setattr(model, "head", nn.Sequential(model.head)) or model, "something else"),
    ],
)
def test_a_network_that_is_not_understood_says_why(change, reason):
    with pytest.raises(NoCertificate, match=reason):
        column_network(change(network(0)), SHAPE)
