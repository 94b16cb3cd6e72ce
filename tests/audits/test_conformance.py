"""For every check a defective model that it catches, and for many of these a control that passes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial

import pytest
import stubs
import torch
from robustode import ODEBlock, Solver
from robustode.bench.audits.library import all_audits
from robustode.bench.conformance import run as conformance
from robustode.bench.conformance.checks import CHECKS, checks_for
from robustode.bench.conformance.result import Result
from robustode.bench.conformance.run import check_model, run_check
from robustode.models import MODELS, ModelSpec
from robustode.models.h_node import symplectic_matrix
from robustode.models.node import TanhLayer
from robustode.models.pixel_network import PixelNetwork
from torch import nn


class Base(nn.Module):
    """A sound classifier: flatten, one hidden layer, logits."""

    def __init__(self, shape, classes) -> None:
        super().__init__()
        channels, height, width = shape
        self.hidden = nn.Linear(channels * height * width, 8)
        self.head = nn.Linear(8, classes)

    def forward(self, images):
        return self.head(torch.tanh(self.hidden(images.flatten(1))))


class Softmax(Base):
    def forward(self, images):
        return super().forward(images).softmax(1)


class LogSoftmax(Base):
    def forward(self, images):
        return super().forward(images).log_softmax(1)


class Stochastic(Base):
    def forward(self, images):
        return super().forward(images + 0.1 * torch.randn_like(images))


class SlightlyStochastic(Base):
    """Scales all logits of a sample at random, by so little that no class changes."""

    def forward(self, images):
        return super().forward(images) * (1 + 1e-6 * torch.rand(len(images), 1))


class Dropout(Base):
    """Random in training only, as it should be."""

    def forward(self, images):
        return super().forward(nn.functional.dropout(images, 0.1, self.training))


class BatchStatistics(Base):
    def forward(self, images):
        return super().forward(images - images.mean(0))


class BatchScale(Base):
    """Scales all logits of a batch alike: no class changes, and no logits after normalisation."""

    def forward(self, images):
        return super().forward(images) / (1 + images.amax())


class AdaptiveBatchStatistics(nn.Module):
    """Batch statistics before an adaptive solver, which is coupled to the batch by itself."""

    def __init__(self, shape, classes) -> None:
        super().__init__()
        self.model = MODELS.get("node-dopri5").build(shape, classes, method="dopri5")

    def forward(self, images):
        return self.model(images - images.mean(0))


class SampleStatistics(Base):
    def forward(self, images):
        return super().forward(images - images.mean((1, 2, 3), keepdim=True))


class PlainTensor(Base):
    """A weight that is neither parameter nor buffer stays behind when the model is saved."""

    def __init__(self, shape, classes) -> None:
        super().__init__(shape, classes)
        self.scale = torch.randn(classes)

    def forward(self, images):
        return super().forward(images) * self.scale.to(images)


class Buffer(Base):
    def __init__(self, shape, classes) -> None:
        super().__init__(shape, classes)
        self.register_buffer("scale", torch.randn(classes))

    def forward(self, images):
        return super().forward(images) * self.scale


class DetachedInput(Base):
    def forward(self, images):
        return super().forward(images.detach())


class DetachedOutput(Base):
    def forward(self, images):
        return super().forward(images).detach()


class Rounded(Base):
    def forward(self, images):
        return super().forward((255 * images).round() / 255)


class TwoFunctions(Base):
    """Computes another function where gradients are recorded."""

    def forward(self, images):
        return super().forward(images.flip(3) if torch.is_grad_enabled() else images)


class Understated(nn.Module):
    """States a Lipschitz bound that is a thousand times too small."""

    def __init__(self, shape, classes) -> None:
        super().__init__()
        self.model = MODELS.get("ch-node").build(shape, classes)

    def forward(self, images):
        return self.model(images)

    def lipschitz_parts(self):
        parts = self.model.lipschitz_parts()
        return dataclasses.replace(parts, body={**parts.body, "flow": 1e-3 * parts.body["flow"]})


class Unused(Base):
    def __init__(self, shape, classes) -> None:
        super().__init__(shape, classes)
        self.extra = nn.Linear(2, 2)


class Blind(Base):
    """Depends on a parameter that no gradient reaches."""

    def __init__(self, shape, classes) -> None:
        super().__init__(shape, classes)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return super().forward(images) * self.scale.detach()


class UnusedFrozen(Unused):
    def __init__(self, shape, classes) -> None:
        super().__init__(shape, classes)
        self.extra.requires_grad_(False)


class NanGradient(Base):
    def forward(self, images):
        return super().forward(images) + (images - images).flatten(1).sum(1, keepdim=True).sqrt()


class SingleOnly(Base):
    def forward(self, images):
        return super().forward(images) + torch.zeros(1, dtype=torch.float32)

    def double(self):
        return self


class Casting(Base):
    def forward(self, images):
        return super().forward(images).float()


class IllConditioned(Base):
    def forward(self, images):
        z = super().forward(images)
        return (z + 1e6) - 1e6


class NanOnBlack(Base):
    def forward(self, images):
        return super().forward(images) / (images.flatten(1).amax(1, keepdim=True) > 0)


class FixedShape(nn.Sequential):
    def __init__(self, shape, classes) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, classes))


class TenClasses(Base):
    def __init__(self, shape, classes) -> None:
        super().__init__(shape, 10)


class Squeezed(Base):
    def forward(self, images):
        return super().forward(images).squeeze(0)


class InPlace(Base):
    def forward(self, images):
        return super().forward(images.sub_(0.5))


class Raising(Base):
    def forward(self, images):
        if images.requires_grad:
            raise ZeroDivisionError("not today")
        return super().forward(images)


class OtherField(TanhLayer):
    def forward(self, state):
        return 2 * super().forward(state)

    def tanh_field(self):
        return super().tanh_field()


def two_fields(shape, classes):
    flow = ODEBlock([OtherField(8)], final_time=1.0, solver=Solver(method="euler", steps=2))
    return PixelNetwork(shape, classes, flow, width=8, smoothing=0.0)


AUDITED = {audit.name for audit in all_audits() if audit.untrained}
DEFECTIVE: dict[str, tuple[Callable, str, str]] = {
    "softmax": (Softmax, "logits", "without a final softmax"),
    "stochastic": (Stochastic, "determinism", "no random numbers in eval mode"),
    "slightly stochastic": (SlightlyStochastic, "determinism", "no random numbers in eval mode"),
    "batch statistics": (BatchStatistics, "batch-independence", "no statistics over the batch"),
    "scale of the batch": (BatchScale, "batch-independence", "no statistics over the batch"),
    "adaptive": (AdaptiveBatchStatistics, "batch-independence", "a solver on a fixed grid"),
    "plain tensor": (PlainTensor, "state-round-trip", "keep every tensor as a parameter or a buffer"),
    "detached input": (DetachedInput, "gradients", "no gradient reaches the input"),
    "detached output": (DetachedOutput, "gradients", "do not detach or convert to numpy"),
    "rounded": (Rounded, "gradients", "do not detach, round or threshold"),
    "unused gradient": (
        Blind,
        "gradients",
        "no gradient reaches parameter scale, on which",
    ),
    "nan gradient": (NanGradient, "gradients", "the gradient of the input is NaN or infinite"),
    "ill-conditioned": (IllConditioned, "double-precision", "ill-conditioned"),
    "nan on black": (NanOnBlack, "finite", "NaN or infinite for 1 of 16 flat images"),
    "rounded, audited": (Rounded, "zero-gradients", "detach, round or threshold"),
    "two functions": (TwoFunctions, "gradient-fidelity", "with and without gradients"),
    "understated bound": (Understated, "lipschitz-bound", "the bound is wrong"),
    "one shape": (FixedShape, "shapes", r"for input (1, 28, 28) and 2 classes: .*use input_shape"),
    "ten classes": (TenClasses, "shapes", "for input (1, 8, 8) and 2 classes: .*use input_shape and num"),
    "squeezed": (Squeezed, "shapes", "the model returned shape (2,) for 1 images"),
    "in place": (InPlace, "finite", "the model changes its input in place: work on a copy"),
    "raises": (Raising, "gradients", "the model raised ZeroDivisionError: not today"),
    "two fields": (
        two_fields,
        "tanh-field",
        "differ by 0.5 of their size on states of .*: write the field once",
    ),
    "no module": (lambda shape, classes: "model", "finite", "the factory returned str"),
}
CONTROLS = {"softmax": LogSoftmax, "stochastic": Dropout, "batch statistics": SampleStatistics}
CONTROLS |= {"plain tensor": Buffer, "unused parameter": UnusedFrozen, "all": Base}


def results(spec: ModelSpec) -> dict[str, Result]:
    return {result.check: result for result in check_model(spec)}


def matches(pattern: str, text: str) -> bool:
    parts, position = pattern.split(".*"), 0
    for part in parts:
        position = text.find(part, position)
        if position < 0:
            return False
    return True


@pytest.mark.parametrize("name", DEFECTIVE)
def test_each_defective_model_is_caught_by_its_check_with_advice(name):
    build, check, advice = DEFECTIVE[name]
    result = run_check(stubs.spec("defective", build), check)
    assert not result.passed
    assert result.error is not None
    assert "\n" not in result.error
    assert matches(advice, result.error), result.error
    assert str(result).startswith(f"FAIL    {check}: ")


@pytest.mark.parametrize("name", CONTROLS)
def test_each_control_passes_everything(name):
    failed = [str(r) for r in check_model(stubs.spec("control", CONTROLS[name])) if not r.passed]
    assert failed == []


def test_a_forward_that_differs_from_its_matrices_is_named_before_what_follows_from_it():
    results = check_model(stubs.spec("defective", two_fields))
    assert next(result.check for result in results if not result.passed) == "tanh-field"


def test_a_model_without_matrices_is_not_said_to_state_the_right_ones():
    result = run_check(stubs.spec("plain"), "tanh-field")
    assert result.passed
    assert str(result) == "n/a     tanh-field: no layer of its flow states a tanh_field"
    found = run_check(MODELS.get("node"), "tanh-field")
    assert str(found) == "pass    tanh-field"


def test_every_check_catches_a_defective_model():
    assert {check for _, check, _ in DEFECTIVE.values()} == {*CHECKS, *AUDITED}


# --- claims -------------------------------------------------------------------------------------


class Flow(nn.Module):
    """A classifier whose flow is one layer on the pixels."""

    def __init__(self, shape, classes, layer: nn.Module, *, method: str = "heun2") -> None:
        super().__init__()
        channels, height, width = shape
        self.stem = nn.Conv2d(channels, 4, 1)
        self.flow = ODEBlock([layer], final_time=1.0, solver=Solver(method=method, steps=4))
        self.head = nn.Linear(4 * height * width, classes)

    def forward(self, images):
        features = self.stem(images).transpose(0, 1)
        final = self.flow(features.reshape(4, -1)).reshape(features.shape)
        return self.head(final.transpose(0, 1).flatten(1))


class Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.K = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("J", symplectic_matrix(4), persistent=False)

    def energy(self, x):
        return 0.5 * (self.K.T @ x).square().sum(0)


class Oscillator(Weights):
    """x' = J K K^T x: conserves 1/2 |K^T x|^2."""

    def forward(self, x):
        return self.J @ (self.K @ (self.K.T @ x))


class Leaking(Oscillator):
    """The same with a little friction."""

    def forward(self, x):
        return super().forward(x) - 1e-3 * x


class Silent(Oscillator):
    """Conserves an energy but does not say which."""

    energy = None


class Falling(Weights):
    """x' = -K K^T x - x: any two states come closer."""

    def forward(self, x):
        return -self.K @ (self.K.T @ x) - x


class BarelyExpanding(Weights):
    """Contracts everywhere but near the origin."""

    def forward(self, x):
        return -x + 1.05 * torch.tanh(x) + 0 * self.K.sum()


class Careless(Base):
    """No flow at all."""


class Uneven(Base):
    """Works harder on images that are not black."""

    def forward(self, images):
        stubs.Still(4 + int(images.mean() > 0.25))(images)
        return super().forward(images)


class Even(Base):
    def forward(self, images):
        stubs.Still(4)(images)
        return super().forward(images)


def claiming(claim: str, build: Callable) -> ModelSpec:
    return stubs.spec("claimer", build, claims=frozenset({claim}))


def flow(layer: Callable[[], nn.Module], **options) -> Callable:
    return lambda shape, classes: Flow(shape, classes, layer(), **options)


LIARS = {
    "contractive: conserves": ("contractive", flow(Oscillator), "two states can drift apart at rate"),
    "contractive: near 0": ("contractive", flow(BarelyExpanding), "two states can drift apart at rate"),
    "contractive: no flow": ("contractive", Careless, "model.flow is not a robustode.ODEBlock: expose it"),
    "hamiltonian: leaks": ("hamiltonian", flow(Leaking), "the energy changes along the field"),
    "hamiltonian: silent": ("hamiltonian", flow(Silent), "through a method energy(state)"),
    "hamiltonian: falls": ("hamiltonian", flow(Falling), "the energy changes along the field"),
    "hamiltonian: no flow": ("hamiltonian", Careless, "model.flow is not a robustode.ODEBlock"),
    "fixed_step: uneven": ("fixed_step", Uneven, "depends on the input: [4, 5]"),
    "fixed_step: uncounted": ("fixed_step", Careless, "no field evaluation is seen"),
}


@pytest.mark.parametrize("name", LIARS)
def test_each_false_claim_is_caught_with_advice(name):
    claim, build, advice = LIARS[name]
    result = run_check(claiming(claim, build), f"claim:{claim}")
    assert not result.passed
    assert matches(advice, result.error or ""), result.error


@pytest.mark.parametrize(
    ("claim", "build"),
    [
        ("contractive", flow(Falling)),
        ("hamiltonian", flow(Oscillator)),
        ("fixed_step", flow(Oscillator)),
        ("fixed_step", Even),
    ],
)
def test_each_true_claim_passes(claim, build):
    failed = [str(r) for r in check_model(claiming(claim, build)) if not r.passed]
    assert failed == []


def test_a_state_too_wide_to_enumerate_can_claim_to_contract():
    ch_node = MODELS.get("ch-node")
    build = partial(ch_node.build, **ch_node.resolve({"width": 12}))
    result = run_check(claiming("contractive", build), "claim:contractive")
    assert result.passed, result.error


def test_a_check_of_a_claim_leaves_the_weights_alone():
    kept = []

    def build(shape, classes):
        kept.append(Flow(shape, classes, Falling()))
        kept.append({k: v.clone() for k, v in kept[-1].state_dict().items()})
        return kept[-2]

    spec = claiming("contractive", build)
    checks_for(spec)["claim:contractive"](spec)
    model, state = kept[0], kept[1]
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name].to(value)), name
    assert all(p.requires_grad for p in model.parameters())


def test_claims_are_checked_only_where_they_are_made():
    assert set(checks_for(stubs.spec("plain", Base))) == {*CHECKS, *AUDITED}
    assert "claim:hamiltonian" not in checks_for(claiming("contractive", Base))


# --- exemptions, limits -------------------------------------------------------------------------


def test_an_expected_failure_passes_with_its_reason():
    spec = stubs.spec("honest", BatchStatistics, expected_failures={"batch-independence": "by design"})
    result = run_check(spec, "batch-independence")
    assert result.passed
    assert result.error is not None
    assert str(result).startswith("exempt  batch-independence: by design [")


def test_an_exemption_that_was_not_needed_is_said():
    result = run_check(stubs.spec("modest", Base, expected_failures={"logits": "who knows"}), "logits")
    assert result.passed
    assert str(result) == "pass    logits (its exemption was not needed here)"


def test_an_exemption_from_no_check_is_a_failure():
    expected = {"batch_independance": "a slip of the pen"}
    result = results(stubs.spec("typo", Base, expected_failures=expected))["batch-independance"]
    assert not result.passed
    assert str(result).startswith("FAIL")
    assert "did you mean batch-independence" in str(result)


def test_a_check_that_hangs_is_stopped(monkeypatch):
    monkeypatch.setattr(conformance, "LIMIT", 0.2)

    class Slow(Base):
        def forward(self, images):
            time.sleep(60)

    first, rest = check_model(stubs.spec("slow", Slow))
    assert str(first).startswith("FAIL    shapes: took longer than what was left of 0.2 s for all checks")
    assert "forward pass faster" in str(first)
    assert str(rest).startswith("unasked gradients, state-round-trip, ")
    assert str(rest).endswith(": no time was left")
    assert set(rest.check.split(", ")) == {*CHECKS, *AUDITED} - {"shapes"}


def test_checking_keeps_the_callers_generator():
    state = torch.get_rng_state()
    list(check_model(stubs.spec("control", Base)))
    assert torch.equal(torch.get_rng_state(), state)


def test_an_adaptive_flow_cannot_claim_fixed_steps():
    def build(shape, classes):
        return Flow(shape, classes, Pushed(), method="dopri5")

    class Pushed(Weights):
        def forward(self, x):
            return 30 * torch.sin(5 * x) + 0 * self.K.sum()

    result = run_check(claiming("fixed_step", build), "claim:fixed_step")
    assert not result.passed
    assert "depends on the input" in (result.error or "")


@pytest.mark.parametrize("name", ["double-precision", "double_precision"])
def test_an_expected_failure_may_have_the_former_name_of_its_check(name):
    found = results(stubs.spec("single", IllConditioned, expected_failures={name: "float32 alone"}))
    assert found["double-precision"].exempt == "float32 alone"
    assert found["double-precision"].error
    assert "double_precision" not in found
