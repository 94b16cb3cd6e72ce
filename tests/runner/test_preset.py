"""Presets: the shipped ones parse and plan; every mistake is one line that names the key."""

from __future__ import annotations

import pytest
import stubs
from hypothesis import given
from hypothesis import strategies as st
from robustode._errors import InvalidArgument, UnknownName
from robustode.attacks import THREATS
from robustode.bench.config.plan import make_plan
from robustode.bench.config.preset import Preset, load_preset, parse_preset, preset_names


def test_the_shipped_presets():
    assert {"quick", "standard"} <= set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_a_shipped_preset_parses_and_plans(name):
    preset = load_preset(name)
    assert preset.name == name
    assert preset.title
    assert preset.cost
    plan = make_plan(preset)
    assert plan.specs
    assert plan.headline().rank in plan.headline().reported
    assert (preset.throughput is not None) == (name in ("quick", "standard")), (
        "others speak of accuracy alone"
    )
    for grid in preset.threats:
        assert grid.strengths == sorted(grid.strengths)
        compared = THREATS.get(grid.name).protocol == "pixel" and grid.name != "clean"
        adds = grid.name == "apgd-t-l2"  # to strengths that no one reports
        assert (grid.reported is not None) == (compared and not adds)


def test_quick_needs_no_download_and_uses_every_test_sample():
    preset = load_preset("quick")
    assert preset.dataset == "digits"
    assert preset.models == ["resnet", "node", "h-node", "ch-node"]
    assert all(grid.samples is None for grid in preset.threats)


def test_a_file_is_named_after_itself(tmp_path):
    preset = load_preset(str(stubs.preset_file(tmp_path)))
    assert preset.name == "tiny"
    assert preset.recipe.name == "plain"
    assert preset.threats[1].draws == 2
    assert preset.threats[0].draws == 1


def change(old: str, new: str, text: str = stubs.PRESET) -> str:
    assert old in text
    return text.replace(old, new, 1)


MISTAKES = {
    "key": (
        change("batch_size = 20", "batch_sise = 20"),
        "unknown key 'batch_sise': did you mean batch_size",
    ),
    "key in table": (
        change("learning_rate", "learning_rat"),
        r"unknown key 'learning_rat': did you mean learning_rate.*\(in recipe\)",
    ),
    "key in list": (change("draws", "drows"), r"unknown key 'drows': did you mean draws.*\(in threats\.1\)"),
    "negative eps": (
        change("strengths = [0.05]", "strengths = [-0.05]"),
        r"threats\[2\]\.strengths\[0\] = -0",
    ),
    "infinite": (change("strengths = [0.05]", "strengths = [inf]"), r"threats\[2\]\.strengths\[0\] = inf"),
    "nan": (change("strengths = [0.05]", "strengths = [nan]"), r"strengths\[0\] = nan"),
    "no strengths": (change("strengths = [0.05]", "strengths = []"), r"threats\[2\]\.strengths = \[\]"),
    "zero epochs": (
        change("epochs = 2", "epochs = 0"),
        r"recipe\.epochs = 0: input should be greater than or equal to 1",
    ),
    "text epochs": (change("epochs = 2", 'epochs = "two"'), r"recipe\.epochs = 'two'"),
    "half epochs": (change("epochs = 2", "epochs = 2.5"), r"recipe\.epochs = 2\.5"),
    "decay": (change("epochs = 2", "epochs = 2\ndecay = 1.5"), r"recipe\.decay = 1\.5"),
    "dataset": (change('dataset = "digits"', "dataset = 3"), "dataset = 3: input should be a valid string"),
    "missing": (change('dataset = "digits"', ""), "key 'dataset' is missing"),
    "missing inside": (change("epochs = 2", ""), "key 'recipe.epochs' is missing"),
    "several": (
        change("batch_size", "batch_sise", change('dataset = "digits"', "", change("epochs = 2", ""))),
        r"^preset \S+: unknown key 'batch_sise'.*; keys 'dataset', 'recipe.epochs' are missing$",
    ),
    "of every kind": (
        change('name = "gaussian"', 'nam = "gaussian"', change("seconds = 0.001", 'seconds = "a"')),
        r"unknown key 'nam': .*; key 'threats\[1\]\.name' is missing; throughput\.seconds = 'a'",
    ),
    "zero samples": (change("samples = 40", "samples = 0"), r"threats\[0\]\.samples = 0"),
    "zero limit": (change("cell = 30", "cell = 0"), r"time_limit\.cell = 0"),
    "models": (change('models = ["resnet"]', "models = []"), r"models = \[\]"),
    "recipe name": (change("epochs = 2", 'epochs = 2\nname = "A B"'), "recipe name 'A B' is not allowed"),
    "toml": (stubs.PRESET + "\nx = = 3\n", "not valid TOML"),
    "two tables": (stubs.PRESET + "\n[recipe]\n", "not valid TOML"),
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(tmp_path, text, message):
    path = stubs.preset_file(tmp_path, text)
    with pytest.raises(InvalidArgument, match=message) as caught:
        load_preset(str(path))
    assert len(str(caught.value).splitlines()) == 1


PLAN_MISTAKES = {
    "dataset": (change('"digits"', '"digit"'), "unknown dataset 'digit': did you mean digits"),
    "model": (change('["resnet"]', '["resnets"]'), "unknown model 'resnets': did you mean resnet"),
    "threat": (change('"gaussian"', '"gausian"'), "unknown threat 'gausian': did you mean gaussian"),
    "parameter": (change("restarts = 1", "restart = 1"), "'restart': did you mean restarts"),
    "zero steps": (change("steps = 3", "steps = 0"), "steps must be at least 1, not 0"),
    "reported": (change("reported = 0.1", "reported = 0.2"), "reported = 0.2 is not among its strengths"),
    "rank": (
        change('rank = "linf"', 'rank = "l2"'),
        r"rank = 'l2' has no reported strength \(known: gaussian",
    ),
    "amount": (
        change('name = "gaussian"\nstrengths = [0.1, 0.3]', 'name = "salt-pepper"\nstrengths = [0.1, 1.3]'),
        "salt-pepper: amount must be at least 0 and at most 1, not 1.3",
    ),
    "clean strength": (
        change("strengths = [0.0]", "strengths = [0.1]"),
        "clean: strength must be at least 0",
    ),
    "twice": (
        stubs.PRESET + '\n[[threats]]\nname = "clean"\nstrengths = [0.0]\n',
        "threat clean is listed twice",
    ),
    "override of none": (
        stubs.PRESET + "\n[overrides.resnt]\nhyperparameters = {}\n",
        "unknown model 'resnt': did you mean resnet",
    ),
    "hyperparameter": (
        stubs.PRESET + "\n[overrides.resnet.hyperparameters]\nlayer = 2\n",
        "hyperparameter of resnet 'layer': did you mean layers",
    ),
    "recipe": (
        stubs.PRESET + "\n[overrides.resnet.recipe]\nepochs = -1\n",
        "recipe of resnet: epochs",
    ),
}


LEAST = """
dataset = "digits"
models = ["resnet"]
recipe = { epochs = 2 }
threats = [
    { name = "clean" }, { name = "pgd-linf", strengths = [0.1] }, { name = "fgsm-l2", strengths = [0.3, 1] }
]
"""


def test_what_is_obvious_may_be_left_out(tmp_path):
    preset = load_preset(str(stubs.preset_file(tmp_path, LEAST)))
    assert preset.threats[0].strengths == [0.0]
    assert (preset.title, preset.cost, preset.rank) == ("tiny", "", None)
    assert preset.time_limit.training > 600
    assert preset.time_limit.cell > 60
    headline = make_plan(preset).headline()
    assert (headline.rank, headline.reported) == ("linf", {"linf": 0.1}), "two strengths: none is obvious"
    partly = load_preset(str(stubs.preset_file(tmp_path, LEAST + "time_limit = { cell = 7 }\n")))
    assert partly.time_limit.cell == 7
    assert partly.time_limit.training == preset.time_limit.training


def test_what_ranks_is_an_attack_before_noise_and_must_report_something(tmp_path):
    noise = LEAST.replace('{ name = "pgd-linf"', '{ name = "uniform"')
    preset = load_preset(str(stubs.preset_file(tmp_path, noise)))
    assert make_plan(preset).headline().rank == "uniform"
    reported = noise.replace("[0.3, 1]", "[0.3, 1], reported = 1")
    assert make_plan(load_preset(str(stubs.preset_file(tmp_path, reported)))).headline().rank == "l2"
    none = noise.replace("[0.1]", "[0.1, 0.2]")
    with pytest.raises(InvalidArgument, match="no threat reports a strength"):
        make_plan(load_preset(str(stubs.preset_file(tmp_path, none))))


def test_what_is_named_twice_is_one(tmp_path):
    text = change("strengths = [0.1, 0.3]", "strengths = [0.1, 0.3, 0.10, 0.30000000000000004]")
    text = change("batch_sizes = [4]", "batch_sizes = [4, 8, 4]", text)
    text = change('rank = "linf"', 'rank = "linf"\naudits = ["finite", "finite"]', text)
    preset = load_preset(str(stubs.preset_file(tmp_path, text)))
    assert preset.threats[1].strengths == [0.1, 0.3]
    assert preset.throughput.batch_sizes == [4, 8]
    assert preset.audits == ["finite"]
    curve = change('name = "pgd-linf"\nstrengths = [0.05]', 'name = "curve-linf"\nstrengths = [0.05, 0.05]')
    curve = curve.replace("\n[threats.parameters]\nsteps = 3\nrestarts = 1", "")
    assert make_plan(load_preset(str(stubs.preset_file(tmp_path, curve)))).attacks[2].plan.strengths == [0.05]


def test_all_threats_that_cannot_be_run_are_named_at_once(tmp_path):
    text = change('"gaussian"', '"gausian"', change("restarts = 1", "restart = 1"))
    with pytest.raises(InvalidArgument, match=r"'gausian': did you mean gaussian.*; .*'restart'") as caught:
        make_plan(load_preset(str(stubs.preset_file(tmp_path, text))))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("text", "message"), PLAN_MISTAKES.values(), ids=PLAN_MISTAKES)
def test_what_cannot_be_run_is_refused_before_anything_is_done(tmp_path, text, message):
    preset = load_preset(str(stubs.preset_file(tmp_path, text)))
    with pytest.raises(InvalidArgument, match=message) as caught:
        make_plan(preset)
    assert len(str(caught.value).splitlines()) == 1


def test_an_unknown_preset_gets_a_suggestion():
    with pytest.raises(UnknownName, match="unknown preset 'quik': did you mean quick"):
        load_preset("quik")


def test_a_missing_or_unreadable_file_is_one_line(tmp_path):
    with pytest.raises(InvalidArgument, match=r"none\.toml: cannot be read: No such file"):
        load_preset(str(tmp_path / "none.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidArgument, match="cannot be read: it is not UTF-8 text"):
        load_preset(str(tmp_path / "binary.toml"))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(InvalidArgument, match="cannot be read"):
        load_preset(str(tmp_path / "folder.toml"))


def test_a_file_name_that_is_no_name_is_refused(tmp_path):
    path = tmp_path / "My Preset.toml"
    path.write_text(stubs.PRESET, encoding="utf-8")
    with pytest.raises(InvalidArgument, match="preset name 'my preset' is not allowed"):
        load_preset(str(path))


values = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=3), st.just([])
)


@given(key=st.sampled_from(sorted(Preset.model_fields)), value=values)
def test_any_value_anywhere_is_accepted_or_named_in_one_line(key, value):
    body = {**load_preset("quick").model_dump(), key: value}
    try:
        preset = parse_preset(body, origin="it")
    except InvalidArgument as error:
        message = str(error)
    else:
        assert isinstance(preset, Preset)
        return
    assert len(message.splitlines()) == 1
    assert key in message
