"""Every registered threat: its promises, one by one."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
import stubs
import torch
from robustode._errors import InvalidArgument, UnknownName
from robustode.attacks import BUDGET_TOLERANCE, THREATS, Threat, register_threat, violation
from robustode.bench.runtime.checked_model import CheckedModel

SMALL = {"steps": 4, "queries": 30, "directions": 3}
MINIMAL = {"steps": 30, "rounds": 3}
"""What the longer attacks are cut to: every promise here is kept at any length, if an example is found."""


def cut(threat: Threat) -> Threat:
    sizes = MINIMAL if threat.minimal else SMALL
    return threat.configure(**{name: value for name, value in sizes.items() if name in threat.parameters})


ALL = [cut(threat) for threat in THREATS]
STRONG = [threat for threat in ALL if threat.max_strength > 0]
STRENGTHS = {"linf": 0.1, "l2": 0.5, None: 0.2}
every = pytest.mark.parametrize("threat", ALL, ids=lambda t: t.name)
every_strong = pytest.mark.parametrize("threat", STRONG, ids=lambda t: t.name)


def problem(count: int = 6, classes: int = 3):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 1, 4, 4, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = stubs.Linear((1, 4, 4), classes)
    return model, images, model(images).argmax(1)


def test_the_registry_holds_the_threats_of_the_presets():
    expected = {"clean", "gaussian", "salt-pepper", "uniform", "spsa-linf"}
    for name in ("fgsm", "pgd", "autoattack", "apgd-ce", "apgd-t", "fab-t", "square"):
        expected |= {f"{name}-linf", f"{name}-l2"}
    assert expected <= set(THREATS.names())


@every
def test_strength_zero_is_the_identity(threat):
    model, images, labels = problem()
    result = threat(model, images, labels, 0.0, 0)
    torch.testing.assert_close(result, images.clamp(*threat.box))  # a box of its own still clips
    assert threat.box != (0.0, 1.0) or torch.equal(result, images)
    assert result.data_ptr() != images.data_ptr()


@every_strong
def test_images_change_within_budget_box_and_shape(threat):
    model, images, labels = problem()
    before, strength = images.clone(), STRENGTHS[threat.norm]
    result = threat(model, images, labels, strength, 0)
    assert torch.equal(images, before), "the caller's images were written to"
    assert result.shape == images.shape
    assert result.dtype == images.dtype
    assert not result.requires_grad
    assert not torch.equal(result, images)
    assert float(violation(result, images, strength, threat.norm, threat.box).max()) <= BUDGET_TOLERANCE


@every_strong
def test_a_seed_repeats_and_another_one_differs_when_stochastic(threat):
    model, images, labels = problem()
    first, again, other = (threat(model, images, labels, STRENGTHS[threat.norm], s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    if threat.stochastic:
        assert not torch.equal(first, other)


@every_strong
def test_global_generators_modes_flags_and_gradients_are_left_alone(threat):
    model, images, labels = problem()
    model.train()
    model.inner = torch.nn.Dropout(0.5).eval()  # a mode of its own, to be found again
    model.head.weight.requires_grad_(False)
    random.seed(3)
    states = torch.get_rng_state(), copy.deepcopy(np.random.get_state()), random.getstate()
    threat(model, images, labels, STRENGTHS[threat.norm], 0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert str(np.random.get_state()) == str(states[1])
    assert random.getstate() == states[2]
    assert (model.training, model.inner.training) == (True, False)
    assert [p.requires_grad for p in model.parameters()] == [False, True]
    assert all(p.grad is None for p in model.parameters())
    assert images.grad is None


@pytest.mark.parametrize(
    "threat", [t for t in ALL if t.family in ("gradient", "search")], ids=lambda t: t.name
)
@pytest.mark.parametrize("mode", [True, False])
def test_they_are_left_alone_also_when_the_model_raises(threat, mode):
    _, images, labels = problem()

    def stop(logits, _images):
        torch.rand(3)
        raise RuntimeError("no logits today")

    model = stubs.Faulty((1, 4, 4), 3, stop).train(mode)
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="no logits today"):
        threat(model, images, labels, STRENGTHS[threat.norm], 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training is mode
    assert all(p.requires_grad for p in model.parameters())


@every
def test_queries_are_exactly_as_declared(threat):
    """At a strength so small that no sample breaks, so that no restart is spared, on ten classes."""
    model, images, labels = problem(classes=10)
    queried = CheckedModel(model.eval(), 10)
    strength = min(1e-6, threat.max_strength)
    threat(queried, images, labels, strength, 0)
    forwards, backwards = threat.queries(threat.parameters)
    assert (queried.forwards, queried.backwards) == (forwards * 6, backwards * 6)
    assert threat.needs_gradient == (backwards > 0)


@every
@pytest.mark.parametrize("strength", [-0.1, math.nan, math.inf, -math.inf])
def test_a_strength_without_meaning_is_refused(threat, strength):
    with pytest.raises(InvalidArgument, match=f"threat {threat.name}: .* must be at least 0"):
        threat(None, torch.zeros(1, 1, 2, 2), torch.zeros(1), strength, 0)


def test_an_amount_above_one_is_refused():
    with pytest.raises(
        InvalidArgument, match=r"salt-pepper: amount must be at least 0 and at most 1, not 1\.5"
    ):
        THREATS.get("salt-pepper").check_strength(1.5)
    assert THREATS.get("salt-pepper").check_strength(1.0) == 1.0


@pytest.mark.parametrize("name", ["fgsm-linf", "curve-linf"])
def test_a_radius_in_other_units_is_refused(name):
    message = r"eps must be at least 0 and at most 1, not 8 \(pixels lie in \[0, 1\]: 8/255 is 0\.0314\)"
    with pytest.raises(InvalidArgument, match=message):
        THREATS.get(name).check_strength(8)
    assert THREATS.get(name).check_strength(1.0) == 1.0
    assert THREATS.get(name.replace("linf", "l2")).check_strength(8.0) == 8.0


def test_parameters_are_the_defaults_of_the_signature():
    assert dict(THREATS.get("pgd-linf").parameters) == {"steps": 20, "restarts": 2, "relative_step": 2.5}
    assert dict(THREATS.get("gaussian").parameters) == {}


def test_configure_changes_a_copy():
    threat = THREATS.get("pgd-linf")
    changed = threat.configure(steps=7)
    assert changed.parameters["steps"] == 7
    assert threat.parameters["steps"] == 20
    assert changed.queries(changed.parameters) == (8 * 2, 7 * 2)


def test_an_unknown_parameter_gets_a_suggestion():
    with pytest.raises(UnknownName, match="parameter of threat pgd-linf 'step': did you mean steps"):
        THREATS.get("pgd-linf").configure(step=3)


@pytest.mark.parametrize("value", [0, -1, True, "20", None, math.nan, [3]])
def test_a_parameter_without_meaning_is_refused(value):
    with pytest.raises(InvalidArgument, match=r"steps must be (a whole number|at least 1), not"):
        THREATS.get("pgd-linf").configure(steps=value)


@pytest.mark.usefixtures("registries")
def test_a_new_threat_joins_by_decoration():
    @register_threat("shift", family="noise", norm="linf", parameters={"sign": 1})
    def shift(model, images, labels, strength, seed, *, sign=-1, times=1):
        return (images + sign * times * strength).clamp(0, 1)

    threat = THREATS.get("shift")
    assert isinstance(threat, Threat)
    assert dict(threat.parameters) == {"sign": 1, "times": 1}
    moved = threat(None, torch.zeros(1, 1, 1, 1), torch.zeros(1), 0.25, 0)
    assert moved.item() == 0.25
    with pytest.raises(InvalidArgument, match="already registered"):
        register_threat("shift", family="noise")(shift)


def test_an_unsafe_name_is_refused():
    with pytest.raises(InvalidArgument):
        Threat(name="../x", family="noise", craft=lambda *a: None)
