"""Preset to plan to cells: what is the same work, and what is not."""

from __future__ import annotations

import dataclasses

import pytest
import stubs
from robustode._errors import InvalidArgument
from robustode.attacks import THREATS
from robustode.bench.config.cells import (
    accuracy_cells,
    certificate_cells,
    dynamics_cell,
    throughput_cells,
    training_cell,
)
from robustode.bench.config.plan import Plan, make_plan
from robustode.bench.config.preset import load_preset
from robustode.bench.records.record import Cell
from robustode.models import MODELS


@pytest.fixture
def plan(tmp_path) -> Plan:
    return make_plan(load_preset(str(stubs.preset_file(tmp_path))))


def cells(plan: Plan, data) -> list[Cell]:
    training = training_cell(plan, plan.specs[0], 0, data)
    return [
        training,
        *accuracy_cells(plan, training, "c" * 64, "euler", data),
        *certificate_cells(plan, training, "c" * 64, "euler", data),
        dynamics_cell(plan, training, "c" * 64, "euler"),
        *throughput_cells(plan, training, "c" * 64, "euler", "cpu"),
    ]


def with_text(tmp_path, old: str, new: str) -> Plan:
    assert old in stubs.PRESET
    return make_plan(load_preset(str(stubs.preset_file(tmp_path, stubs.PRESET.replace(old, new)))))


def test_one_cell_for_each_piece_of_work(plan, digits):
    made = cells(plan, digits)
    assert len(made) == stubs.CELLS + stubs.FLOW_CELLS
    assert len({cell.key() for cell in made}) == len(made)
    assert [(c.kind, c.threat, c.strength, c.draws, c.samples, c.batch_size) for c in made] == [
        ("training", "training", 0.0, 1, 1167, 50),
        ("accuracy", "clean", 0.0, 1, 40, 20),
        ("accuracy", "gaussian", 0.1, 2, 40, 20),
        ("accuracy", "gaussian", 0.3, 2, 40, 20),
        ("accuracy", "pgd-linf", 0.05, 1, 40, 20),
        ("certificate", "lipschitz", 0.0, 1, 450, 20),
        ("dynamics", "trajectories", 0.0, 1, 8, 8),
        ("throughput", "inference", 0.0, 1, 4, 4),
        ("throughput", "training-step", 0.0, 1, 4, 4),
        ("throughput", "flow", 0.0, 1, 4, 4),
        ("throughput", "flow-gradient", 0.0, 1, 4, 4),
    ]
    assert [c.norm for c in made] == [None] * 4 + ["linf", "l2"] + [None] * 5
    assert made[0].checkpoint_sha256 is None
    assert all(c.checkpoint_sha256 == "c" * 64 for c in made[1:])
    assert dict(made[4].parameters) == {"steps": 3, "restarts": 1, "relative_step": 2.5}
    assert [c.device for c in made] == [None] * 7 + ["cpu"] * 4


def test_only_a_flow_is_timed_alone_and_at_the_largest_batch_size(tmp_path, digits):
    plan = with_text(tmp_path, "batch_sizes = [4]", "batch_sizes = [1, 64, 16]")
    training = training_cell(plan, plan.specs[0], 0, digits)
    model = [(what, size) for what in ("inference", "training-step") for size in (1, 64, 16)]
    flow = [("flow", 64), ("flow-gradient", 64)]
    for solver, expected in ((None, model), ("euler", model + flow)):
        made = throughput_cells(plan, training, "c" * 64, solver, "cpu")
        assert [(cell.threat, cell.batch_size) for cell in made] == expected
    untimed = dataclasses.replace(plan, preset=plan.preset.model_copy(update={"throughput": None}))
    assert throughput_cells(untimed, training, "c" * 64, "euler", "cpu") == []


def test_every_cell_carries_what_made_it(plan, digits):
    for cell in cells(plan, digits):
        assert cell.index_sha256 == digits.index_sha256
        assert cell.model == "resnet"
        assert dict(cell.hyperparameters) == MODELS.get("resnet").resolve()
        assert cell.recipe["weight_decay"] == 2e-4, "the model's own wish over the preset"
        assert cell.recipe["epochs"] == 2


def test_planning_twice_gives_the_same_keys(tmp_path, plan, digits):
    again = make_plan(load_preset(str(stubs.preset_file(tmp_path))))
    assert [c.key() for c in cells(plan, digits)] == [c.key() for c in cells(again, digits)]


def test_keys_are_pinned(plan, digits):
    """They change when a cell gains a field or its meaning changes, and every stored record is done again."""
    plan = make_plan(plan.preset, models=[stubs.spec("pinned", recipe={"weight_decay": 0.5})])
    plan.networks["pinned"] = None  # as for the models of the package
    assert [cell.key()[:12] for cell in cells(plan, digits)] == [
        "3604aee0f135",
        "1bdc22dd43a2",
        "891cc93d853e",
        "76a67d13923e",
        "47b2da7536ca",
        "099fb80e5ffa",
        "857136380ebf",
        "7fe491e6bb97",
        "04866a72647f",
        "ae84b9bbca52",
        "4e9d31a3c7e6",
    ]


def test_a_raised_version_is_other_work(plan, digits):
    spec = dataclasses.replace(plan.specs[0], version=plan.specs[0].version + 1)
    raised = dataclasses.replace(plan, specs=(spec,))
    old, new = cells(plan, digits), cells(raised, digits)
    assert not {c.key() for c in old} & {c.key() for c in new}
    assert old[0].variant() != new[0].variant()
    attack = plan.attacks[2]
    threat = dataclasses.replace(attack.threat, version=2)
    raised = dataclasses.replace(
        plan, attacks=(*plan.attacks[:2], dataclasses.replace(attack, threat=threat))
    )
    changed = [a.key() != b.key() for a, b in zip(cells(plan, digits), cells(raised, digits), strict=True)]
    assert changed == [False] * 4 + [True] + [False] * 6


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("epochs = 2", "epochs = 3", [True] * 11),
        ("steps = 3", "steps = 4", [False] * 4 + [True] + [False] * 6),
        ("draws = 2", "draws = 3", [False] * 2 + [True] * 2 + [False] * 7),
        ("seconds = 0.001", "seconds = 0.002", [False] * 7 + [True] * 4),
        ('title = "tiny"', 'title = "other"', [False] * 11),
        ("reported = 0.1", "reported = 0.3", [False] * 11),
        ("cell = 30", "cell = 40", [False] * 11),
    ],
)
def test_what_changes_which_work(tmp_path, plan, digits, old, new, changed):
    other = with_text(tmp_path, old, new)
    pairs = zip(cells(plan, digits), cells(other, digits), strict=True)
    assert [a.key() != b.key() for a, b in pairs] == changed


def test_overrides_reach_their_model_alone(tmp_path, digits):
    text = stubs.PRESET.replace('["resnet"]', '["resnet", "node"]') + (
        "\n[overrides.node]\nhyperparameters = { steps = 16 }\nrecipe = { learning_rate = 0.5 }\n"
    )
    plan = make_plan(load_preset(str(stubs.preset_file(tmp_path, text))))
    resnet, node = plan.specs
    assert plan.hyperparameters(node)["steps"] == 16
    assert plan.recipe(node).learning_rate == 0.5
    assert plan.recipe(node).weight_decay == 2e-4
    assert plan.recipe(resnet).learning_rate == 0.02


def test_samples_are_at_most_those_there_are(tmp_path, few):
    plan = with_text(tmp_path, "samples = 40", "samples = 100000")
    training = training_cell(plan, plan.specs[0], 0, few)
    assert {c.samples for c in accuracy_cells(plan, training, "", None, few)} == {40}


def test_all_means_every_registered_model(tmp_path):
    assert [s.name for s in with_text(tmp_path, '["resnet"]', '["all"]').specs] == MODELS.names()


def test_a_threat_that_replays_stored_examples_is_no_attack_of_a_preset(tmp_path):
    with pytest.raises(InvalidArgument, match="transfer-linf is no attack: `transfer = true` replays"):
        with_text(tmp_path, 'name = "pgd-linf"', 'name = "transfer-linf"')


def test_arguments_go_over_the_preset(plan):
    specs = [stubs.spec("other")]
    changed = make_plan(plan.preset, models=specs, seeds=3)
    assert changed.specs == tuple(specs)
    assert changed.seeds == (0, 1, 2)
    assert make_plan(plan.preset).seeds == (0,)
    named = make_plan(plan.preset, models=specs, seeds=(4, 2))
    assert [(spec.name, seed) for spec, seed in named.model_runs] == [
        (spec.name, seed) for seed in (2, 4) for spec in named.specs
    ]
    with pytest.raises(InvalidArgument, match="whole numbers from 0"):
        make_plan(plan.preset, seeds=())
    for seeds in (0, -1):
        with pytest.raises(InvalidArgument, match=f"--seeds must be at least 1, not {seeds}"):
            make_plan(plan.preset, seeds=seeds)


def test_seeds_are_different_work(plan, digits):
    spec = plan.specs[0]
    assert training_cell(plan, spec, 0, digits).key() != training_cell(plan, spec, 1, digits).key()
    assert training_cell(plan, spec, 0, digits).variant() == training_cell(plan, spec, 1, digits).variant()


def test_the_headline_reports_attacks_by_norm_and_noise_by_name(plan):
    headline = plan.headline()
    assert dict(headline.reported) == {"gaussian": 0.1, "linf": 0.05}
    assert headline.rank == "linf"
    assert (headline.preset, headline.title) == ("tiny", "tiny")


def test_queries_count_the_harness_too(plan):
    by_name = {attack.threat.name: attack.queries for attack in plan.attacks}
    assert by_name == {"clean": (1, 0), "gaussian": (1, 0), "pgd-linf": (4 + 2, 3)}


def test_a_deterministic_threat_is_drawn_once(tmp_path, digits):
    plan = with_text(tmp_path, "reported = 0.05", "reported = 0.05\ndraws = 5")
    assert not THREATS.get("pgd-linf").stochastic
    assert cells(plan, digits)[4].draws == 1


def test_two_models_of_one_name_are_refused(plan):
    with pytest.raises(InvalidArgument, match="two models are called 'stub'"):
        make_plan(plan.preset, models=[stubs.spec("stub"), stubs.spec("stub")])


def test_a_hyperparameter_that_cannot_be_recorded_is_refused(plan):
    for value in (lambda: None, object()):
        spec = dataclasses.replace(stubs.spec("stub"), build=lambda shape, classes, *, choice=value: None)
        with pytest.raises(InvalidArgument, match="stub: hyperparameter 'choice' cannot be recorded"):
            make_plan(plan.preset, models=[spec])


def test_one_norm_is_reported_at_one_strength(tmp_path):
    more = '\n[[threats]]\nname = "fgsm-linf"\nstrengths = [{0}]\n{1}\n\n[time_limit]'
    with pytest.raises(InvalidArgument, match=r"in linf .*strengths"):
        with_text(tmp_path, "\n[time_limit]", more.format(0.1, "reported = 0.1"))
    plan = with_text(tmp_path, "\n[time_limit]", more.format(0.1, ""))
    assert plan.attacks[-1].plan.reported is None
    assert plan.headline().reported["linf"] == 0.05
