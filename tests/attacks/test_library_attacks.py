"""Attacks of other libraries as threats: found by name, held to the budget, checked, refused in one line."""

from __future__ import annotations

import sys
import types

import pytest
import stubs
import torch
from robustode._errors import AttackFailure, BudgetViolation, InvalidArgument
from robustode.attacks import BUDGET_TOLERANCE, THREATS, violation
from robustode.attacks.libraries import lookup
from robustode.attacks.libraries.library_attack import LibraryAttack, make_threat
from robustode.bench.config.plan import make_plan
from robustode.bench.config.preset import load_preset
from robustode.bench.evaluation.accuracy import evaluate_cell
from test_gradient import linear_problem, middle
from torch import nn

SMALL = {"steps": 10, "n_queries": 60, "num_steps": 40}
FROM_TORCHATTACKS = {
    "MIFGSM": {"alpha": 0.02},
    "PGDL2": {},
    "APGD-l2": {},
    "DeepFool": {},
    "Square": {},
    "DIFGSM": {"alpha": 0.02, "decay": 0.0},
}


@pytest.fixture(autouse=True)
def _nothing_found_before(monkeypatch):
    monkeypatch.setattr(lookup, "_found", {})


def attack_linear_model(name: str, parameters: dict) -> float:
    """The share of samples that a threat breaks on a linear model, of which the optimum breaks half."""
    model, images, labels, clean, weight = linear_problem(40)
    threat = THREATS.get(name)
    sizes = {key: value for key, value in SMALL.items() if key in threat.parameters}
    threat = threat.configure(**{**sizes, **parameters})
    eps = float(middle(clean) / (weight.abs().sum() if threat.norm == "linf" else weight.norm()))
    seeds = list(range(40))
    state = torch.random.get_rng_state()
    found, again = (threat(model, images, labels, eps, seeds) for _ in range(2))
    assert torch.equal(found, again), "one seed, one answer"
    assert torch.equal(state, torch.random.get_rng_state())
    assert float(violation(found, images, eps, threat.norm).max()) <= BUDGET_TOLERANCE
    broken = model(found).argmax(1) != labels
    reachable = clean < eps * (weight.abs().sum() if threat.norm == "linf" else weight.norm()) * (1 + 1e-5)
    assert not bool((broken & ~reachable).any())
    return float(broken[reachable].double().mean())


@pytest.mark.parametrize(("name", "parameters"), FROM_TORCHATTACKS.items())
def test_an_attack_of_torchattacks_is_a_threat(torchattacks, name, parameters):
    assert attack_linear_model(f"torchattacks:{name}", parameters) > (0.4 if name == "Square" else 0.7)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("ddn", {"steps": 40, "init_norm": 0.1, "levels": None}), ("pgd_linf", {"steps": 40}), ("fmn-l2", {})],
)
def test_an_attack_of_adv_lib_is_a_threat(adv_lib, name, parameters):
    assert attack_linear_model(f"adv_lib:{name}", parameters) > 0.6


def test_every_attack_of_torchattacks_has_a_name_a_norm_and_parameters(torchattacks):
    names = lookup.installed_attacks()["torchattacks"]
    assert set(torchattacks.__all__) - set(names) == {"VANILA", "MultiAttack", "LGV"}
    for name in names:
        threat = THREATS.get(f"torchattacks:{name}")
        assert threat.norm == (None if name == "GN" else "l2" if threat.norm == "l2" else "linf")
        assert not {"model", "eps", "norm", "seed", "n_classes"} & set(threat.parameters)
        assert threat.configure(**threat.parameters).parameters == threat.parameters
        assert threat.version > 1
    assert THREATS.get("torchattacks:APGD-l2").norm == THREATS.get("torchattacks:CW").norm == "l2"
    assert len(THREATS) == len(THREATS.names()), "they are no members of the registry"
    assert not [name for name in THREATS.names() if ":" in name]


def test_noise_of_a_library_is_noise(torchattacks):
    threat = THREATS.get("torchattacks:GN")
    assert (threat.family, threat.norm, threat.stochastic) == ("noise", None, True)
    model, images, labels, *_ = linear_problem(50)
    found = threat(model, images, labels, 0.1, list(range(50)))
    assert 0.05 < float((found - images).std()) < 0.12
    assert not torch.equal(found, threat(model, images, labels, 0.1, list(range(1, 51))))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchattacks:MIFGM", "unknown attack of torchattacks 'MIFGM': did you mean .*MIFGSM"),
        ("torchattack:PGD", "unknown library of attacks 'torchattack': did you mean torchattacks"),
        ("torchattacks:MultiAttack", "MultiAttack is no threat by itself: made of other attacks"),
        ("torchattacks:PGD-l2", "PGD has linf alone"),
        ("torchattacks:", "unknown attack of torchattacks ''"),
    ],
)
def test_a_wrong_name_is_one_line(torchattacks, name, message):
    with pytest.raises(InvalidArgument, match=message):
        THREATS.get(name)


def test_a_library_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "foolbox", None)
    monkeypatch.delitem(sys.modules, "robustode.attacks.libraries.foolbox_library", raising=False)
    with pytest.raises(InvalidArgument, match=r"foolbox cannot be imported .*: pip install 'foolbox"):
        THREATS.get("foolbox:LinfPGD")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"steps": 2.5}, "steps must be a whole number, not 2.5"),
        ({"steps": True}, "steps must be a whole number, not True"),
        ({"decay": "much"}, "decay must be a number, not 'much'"),
        ({"decay": float("nan")}, "decay must be finite, not nan"),
        ({"random_start": 1}, "random_start must be True or False, not 1"),
        ({"eps": 0.1}, "unknown parameter of threat torchattacks:DIFGSM 'eps'"),
    ],
)
def test_parameters_are_of_the_kind_of_their_defaults(torchattacks, parameters, message):
    threat = THREATS.get("torchattacks:DIFGSM")
    assert threat.configure(decay=0.0, steps=3).parameters["decay"] == 0
    with pytest.raises(InvalidArgument, match=message):
        threat.configure(**parameters)


def library(run, *, bounded: bool = True):
    return make_threat(
        "foolbox:Its", LibraryAttack(run=run, norms=("linf",), bounded=bounded), "linf", version="3"
    )


def test_what_a_library_returns_is_not_trusted():
    model, images, labels, *_ = linear_problem(4)
    far = (images + 0.2).clamp(0, 1)
    with pytest.raises(BudgetViolation, match=r"foolbox:Its left its budget of 0\.1 .* by 0\.1"):
        library(lambda m, x, y, call: far)(model, images, labels, 0.1, 0)
    closest = library(lambda m, x, y, call: far, bounded=False)
    assert torch.equal(closest(model, images, labels, 0.1, 0), images), "what lies too far does not count"
    moved = closest(model, images, labels, 0.25, 0) != images
    assert bool(moved.any())
    with pytest.raises(AttackFailure, match=r"returned \(2, 1, 4, 4\), not images of shape \(4, 1, 4, 4\)"):
        library(lambda m, x, y, call: x[:2])(model, images, labels, 0.1, 0)
    with pytest.raises(AttackFailure, match="returned NoneType"):
        library(lambda m, x, y, call: None)(model, images, labels, 0.1, 0)


def test_an_error_inside_a_library_names_the_attack():
    model, images, labels, *_ = linear_problem(4)

    def broken(m, x, y, call):
        raise RuntimeError("weight of size [3, 1] expected input to have 3 channels\nand more")

    with pytest.raises(
        AttackFailure, match=r"threat foolbox:Its raised RuntimeError: .* have 3 channels"
    ) as e:
        library(broken)(model, images, labels, 0.1, 0)
    assert len(str(e.value).splitlines()) == 1


def test_a_step_that_divides_by_a_gradient_of_zero_leaves_the_image(torchattacks):
    model = stubs.two_class(torch.zeros(1, 2, 2), 1.0)
    images = torch.full((2, 1, 2, 2), 0.5)
    found = THREATS.get("torchattacks:MIFGSM")(model, images, torch.ones(2, dtype=torch.long), 0.1, 0)
    assert torch.equal(found, images)


def test_the_harness_evaluates_one_as_its_own(torchattacks):
    model, images, labels, clean, weight = linear_problem(40)
    threat, eps = THREATS.get("torchattacks:MIFGSM"), float(middle(clean) / weight.abs().sum())
    threat = threat.configure(alpha=0.02)
    cell = stubs.cell_for(threat, eps, 40, norm="linf")
    kept = []
    record = evaluate_cell(
        cell, model, stubs.split_of(images, labels), threat, num_classes=2, device=stubs.CPU,
        environment={}, keep=kept.append,
    )  # fmt: skip
    assert (record.status, record.cell.threat) == ("ok", "torchattacks:MIFGSM")
    assert record.accuracy == pytest.approx(0.5, abs=0.05)
    assert len(kept[0].label) == round(40 * (1 - record.accuracy))
    assert record.measures["largest_norm"] <= eps + BUDGET_TOLERANCE
    assert stubs.stored_again(record).cell == cell


def test_a_preset_names_one_with_parameters(torchattacks, tmp_path):
    text = stubs.PRESET.replace('name = "pgd-linf"', 'name = "torchattacks:MIFGSM"')
    text = text.replace("steps = 3\nrestarts = 1", "steps = 3\ndecay = 0.5")
    plan = make_plan(load_preset(str(stubs.preset_file(tmp_path, text))))
    (attack,) = [a for a in plan.attacks if ":" in a.threat.name]
    assert attack.threat.parameters == {"alpha": 2 / 255, "steps": 3, "decay": 0.5}
    assert plan.headline().reported["linf"] == 0.05
    with pytest.raises(InvalidArgument, match="'decai': did you mean decay"):
        make_plan(load_preset(str(stubs.preset_file(tmp_path, text.replace("decay", "decai")))))


@pytest.fixture
def fake_foolbox(monkeypatch):
    """As much of foolbox 3's interface as is used; the real one is not installed where this was written."""
    foolbox, attacks, base = (types.ModuleType(name) for name in ("foolbox", "foolbox.attacks", "base"))
    distances = types.SimpleNamespace(
        linf=types.SimpleNamespace(p=torch.inf), l2=types.SimpleNamespace(p=2), l1=types.SimpleNamespace(p=1)
    )

    class Attack:
        pass

    class FixedEpsilonAttack(Attack):
        def __call__(self, model, inputs, criterion, *, epsilons):
            assert not model.module.training
            raw = inputs + 2 * epsilons
            return raw, (inputs + epsilons).clamp(0, 1), None

    class LinfSteps(FixedEpsilonAttack):
        distance = distances.linf

        def __init__(self, *, rel_stepsize: float = 0.1, steps: int = 40, abs_stepsize: float | None = None):
            self.steps = steps

    class L1Steps(LinfSteps):
        distance = distances.l1

    class Closest(Attack):
        def __init__(self, *, distance=None):
            self.chosen = distance

        @property
        def distance(self):
            if self.chosen is None:
                raise ValueError("unknown distance")
            return self.chosen

        def __call__(self, model, inputs, criterion, *, epsilons):
            assert self.distance.p == 2
            return inputs + 0.01, inputs, None

    for kind in (LinfSteps, L1Steps, Closest):
        kind.__module__ = "foolbox.attacks.it"
        setattr(attacks, kind.__name__, kind)

    def wrap(module: nn.Module, *, bounds, device):
        assert bounds == (0, 1)
        return types.SimpleNamespace(module=module)

    base.Attack, base.FixedEpsilonAttack, base.__name__ = Attack, FixedEpsilonAttack, "foolbox.attacks.base"
    attacks.base, foolbox.attacks, foolbox.distances, foolbox.PyTorchModel = base, attacks, distances, wrap
    monkeypatch.setitem(sys.modules, "foolbox", foolbox)
    monkeypatch.delitem(sys.modules, "robustode.attacks.libraries.foolbox_library", raising=False)
    monkeypatch.setattr(lookup.metadata, "version", lambda package: "3.3.4")
    yield foolbox
    sys.modules.pop("robustode.attacks.libraries.foolbox_library", None)


def test_an_attack_of_foolbox_is_a_threat(fake_foolbox):
    model, images, labels, *_ = linear_problem(6)
    threat = THREATS.get("foolbox:LinfSteps")
    assert (threat.norm, threat.version, threat.reference) == ("linf", 30304, "foolbox 3.3.4")
    assert threat.parameters == {"rel_stepsize": 0.1, "steps": 40, "abs_stepsize": None}
    found = threat.configure(steps=3)(model, images, labels, 0.05, 0)
    moved = (found != images).flatten(1).any(1)
    assert bool(moved.any())
    torch.testing.assert_close(found[moved], (images + 0.05)[moved])
    closest = THREATS.get("foolbox:Closest")
    assert (closest.norm, dict(closest.parameters)) == ("l2", {})
    assert float(violation(closest(model, images, labels, 0.05, 0), images, 0.05, "l2").max()) <= 1e-6
    with pytest.raises(InvalidArgument, match="its budget is neither in L-infinity nor in L2"):
        THREATS.get("foolbox:L1Steps")
