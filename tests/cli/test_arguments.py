"""The arguments of the Python interface and the values of presets: strict, and each wrong one is named."""

from __future__ import annotations

import numpy as np
import pytest
import robustode
import stubs
import torch
from robustode._arguments import Count, Real, check_value
from robustode._errors import InvalidArgument
from robustode.attacks import THREATS
from robustode.bench.config.preset import Recipe, parse_preset
from torch import nn

NUMBERS = [np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), 3]
NOT_NUMBERS = [True, False, np.bool_(True), "3", None, [3], torch.tensor([3, 3])]


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize(("kind", "like"), [(Count, int), (Real, float)])
def test_numbers_of_numpy_and_torch_are_numbers(value, kind, like):
    found = check_value("samples", value, kind)
    assert (found, type(found)) == (3, like)


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=repr)
@pytest.mark.parametrize("kind", [Count, Real])
def test_booleans_and_texts_are_none(value, kind):
    with pytest.raises(InvalidArgument, match=r"^samples must be a (whole )?number, not \S+") as caught:
        check_value("samples", value, kind)
    assert "\n" not in str(caught.value)


def test_evaluate_takes_what_a_sweep_counts_with():
    module = stubs.Linear((1, 8, 8), 10)
    nn.init.zeros_(module.head.weight)
    asked = {"threats": [("gaussian", np.float32(0.5))], "samples": np.int64(4), "draws": np.int32(2)}
    with pytest.warns(robustode.UntrainedModelWarning):
        frame = robustode.evaluate(module, **asked, batch_size=np.uint8(3), seed=np.int64(1))
    assert frame["samples"].tolist() == [4]


def never(logits, images):
    raise AssertionError("asked")


WRONG = {
    "samples": [True, "20", 20.0, 0],
    "draws": [False, 1.5],
    "batch_size": ["all", -1],
    "seed": ["0", True],
    "progress": ["yes", 1],
    "name": [3],
    "dataset": [None],
    "data_root": [3],
    "device": [0],
    "expected_failures": ["determinism", [3]],
    "threats": [3, [("gaussian", "0.1")], [("gaussian", True)]],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG for value in WRONG[name]])
def test_a_wrong_argument_of_evaluate_is_named(name, value):
    what = "threat gaussian: sigma" if isinstance(value, list) and name == "threats" else name
    with pytest.raises(InvalidArgument, match=rf"^{what}(\[0\])? must be "):
        robustode.evaluate(stubs.Faulty((1, 8, 8), 10, never), **{name: value})


def test_a_module_that_is_not_initialised_yet_is_refused():
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
    with pytest.raises(InvalidArgument, match=r"module is not initialised yet \(1\.weight has no shape\)"):
        robustode.evaluate(lazy)
    normed = nn.Sequential(nn.Linear(2, 2), nn.LazyBatchNorm1d(affine=False))
    with pytest.raises(InvalidArgument, match=r"1\.running_mean has no shape"):
        robustode.evaluate(normed)


def field(layers=None, final_time=1.0, solver=None):
    layers = [nn.Linear(2, 2)] if layers is None else layers
    return robustode.ODEBlock(layers, final_time=final_time, solver=solver or robustode.Solver())


CALLS = {
    "seed must be a whole number, not '0'": lambda: robustode.load_model("none", "node", seed="0"),
    "folder must be text or a Path, not 3": lambda: robustode.load_model(3, "node"),
    "name must be text, not 3": lambda: robustode.load_data(3),
    "steps must be a whole number or 'contractive', not True": lambda: robustode.Solver(steps=True),
    "rtol must be greater than 0, not -1": lambda: robustode.Solver(rtol=-1),
    "final_time must be a number, not '1'": lambda: field(final_time="1"),
    "final_time must be greater than 0, not 0": lambda: field(final_time=0),
    "solver must be a Solver, not 'dopri5'": lambda: field(solver="dopri5"),
    r"layers\[0\] must be a Module, not 3": lambda: field([3]),
    "version must be a whole number, not '2'": lambda: robustode.ModelSpec(
        name="x", build=stubs.linear, version="2"
    ),
    "claims must be a list or set, not 'fixed_step'": lambda: robustode.ModelSpec(
        name="x", build=stubs.linear, claims="fixed_step"
    ),
    "stochastic must be True or False, not 'yes'": lambda: robustode.Threat(
        name="x", family="noise", craft=never, stochastic="yes"
    ),
    r"box\[1\] must be a number, not '1'": lambda: robustode.Threat(
        name="x", family="noise", craft=never, box=(0.0, "1")
    ),
    "steps must be a whole number, not True": lambda: THREATS.get("pgd-linf").configure(steps=True),
    "hyperparameter 'layers' must be a whole number, not True": lambda: annotated().resolve({"layers": True}),
    "hyperparameter 'bare' must be a number, not True": lambda: annotated().resolve({"bare": True}),
}


def annotated():
    def build(shape, classes, *, layers: int = 2, bare=0.5):
        return stubs.linear(shape, classes)

    return stubs.spec("x", build)


@pytest.mark.parametrize(("message", "call"), CALLS.items(), ids=CALLS)
def test_every_wrong_argument_is_an_invalid_argument_that_names_it(message, call):
    with pytest.raises(InvalidArgument, match=message):
        call()


def test_what_was_meant_stays():
    assert robustode.Solver(steps=np.int64(4), rtol=np.float32(0.5)).steps == 4
    assert field(nn.ModuleList([nn.Linear(2, 2)]), np.float32(2)).final_time == 2.0
    assert annotated().resolve({"layers": np.int64(3), "bare": 1}) == {"layers": 3, "bare": 1}
    assert THREATS.get("pgd-linf").configure(steps=np.int64(3)).parameters["steps"] == 3


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("epochs", True),
        ("epochs", "2"),
        ("learning_rate", "0.1"),
        ("learning_rate", True),
        ("batch_size", 2.0),
    ],
)
def test_a_preset_takes_no_boolean_or_text_for_a_number(where, value):
    body = {"name": "it", "recipe": {"epochs": 2, where: value}}
    with pytest.raises(InvalidArgument, match=f"recipe.{where} = {value!r}|is missing") as caught:
        parse_preset({**PRESET, **body}, origin="it")
    assert where in str(caught.value)


PRESET = {
    "title": "t",
    "cost": "c",
    "dataset": "digits",
    "models": ["resnet"],
    "rank": "clean",
    "threats": [{"name": "clean", "strengths": [0.0], "reported": 0.0}],
    "time_limit": {"training": 1, "cell": 1},
}


def test_a_preset_takes_numbers_of_numpy():
    recipe = Recipe(epochs=np.int64(2), learning_rate=np.float32(0.5))
    assert (recipe.epochs, type(recipe.epochs), recipe.learning_rate) == (2, int, 0.5)
    made = parse_preset({**PRESET, "name": "it", "recipe": {"epochs": 2}}, origin="it")
    assert type(made.time_limit.cell) is float
