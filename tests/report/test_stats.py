"""Intervals, worst cases, which records count, and the rank."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
import synthetic
from hypothesis import given
from hypothesis import strategies as st
from robustode._errors import RecordError
from robustode.bench.records.headline import Headline
from robustode.bench.records.record import Record
from robustode.bench.report.leaderboard.columns import board_columns
from robustode.bench.report.leaderboard.leaderboard import leaderboard
from robustode.bench.report.statistics import COLUMNS, current, summarise, wilson
from robustode.bench.report.worst_case import worst_case

HEADLINE = Headline(preset="quick", title="t", reported={"linf": 0.1}, rank="linf")


def outcome(model: str, threat: str, strength: float, correct: Any, seed: int = 0, **changes: Any) -> Record:
    correct = np.atleast_2d(np.asarray(correct, bool))
    norm = None if threat in ("clean", "gaussian") else "linf"
    family = {"clean": "clean", "gaussian": "noise"}.get(threat, "gradient")
    created = changes.pop("created", "2026-01-01T00:00:00Z")
    cell = synthetic.cell(
        model,
        seed,
        threat=threat,
        family=family,
        norm=norm,
        strength=strength,
        draws=correct.shape[0],
        samples=correct.shape[1],
        **changes,
    )
    return synthetic.record_of(cell, correct, environment={"created": created})


def value(table: pd.DataFrame, statistic: str = "accuracy", **where: Any) -> pd.Series:
    for name, wanted in (where | {"statistic": statistic}).items():
        table = table[table[name] == wanted]
    assert len(table) == 1
    return table.iloc[0]


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)],
)
def test_wilson_known_values(k: int, n: int, low: float, high: float) -> None:
    # The last two are Newcombe (1998), table I, method 3.
    assert np.allclose(wilson(k, n), (low, high), atol=6e-5)


def test_wilson_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for k, n in [(0, 1), (1, 1), (3, 7), (180, 200), (200, 200)]:
        expected = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
        assert np.allclose(wilson(k, n), (expected.low, expected.high), atol=1e-12)


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_wilson_holds_the_estimate_within_the_unit_interval(n: int, p: float) -> None:
    low, high = wilson(p * n, n)
    assert 0 <= low <= p * n / n <= high <= 1
    mirrored = wilson(n - p * n, n)
    assert np.allclose((low, high), (1 - mirrored[1], 1 - mirrored[0]), atol=1e-9)


@given(st.integers(1, 1000), st.floats(0.01, 0.99))
def test_wilson_narrows_with_more_samples(n: int, p: float) -> None:
    narrow, wide = wilson(p * 4 * n, 4 * n), wilson(p * n, n)
    assert narrow[1] - narrow[0] < wide[1] - wide[0]


def test_wilson_is_vectorised_and_undefined_without_samples() -> None:
    low, high = wilson([0, 5, 1], [10, 10, 0])
    assert low.shape == high.shape == (3,)
    assert np.isnan(low[2])
    assert np.isnan(high[2])


def test_worst_case_is_per_sample_over_attacks_and_draws() -> None:
    clean = np.array([[1, 1, 1, 1, 0]], bool)
    attack = np.array([[1, 0, 1, 1, 1], [1, 1, 0, 1, 1]], bool)
    assert worst_case([clean, attack]).tolist() == [True, False, False, True, False]
    assert worst_case([clean, attack[:, :3]]).tolist() == [True, False, False]


def test_worst_case_of_records_by_hand() -> None:
    records = [
        outcome("m", "clean", 0.0, [1, 1, 1, 1, 1, 0, 1, 1]),
        outcome("m", "fgsm-linf", 0.05, [0, 1, 1, 1, 1, 1, 1, 1]),
        outcome("m", "pgd-linf", 0.05, [1, 1, 1, 1, 1, 1, 1, 1]),
        outcome("m", "fgsm-linf", 0.1, [1, 1, 0, 1, 1, 1]),
        outcome("m", "pgd-linf", 0.1, [1, 1, 1, 0, 1, 1, 1, 1]),
    ]
    table = summarise(records)
    small = value(table, threat="worst-case", strength=0.05)
    large = value(table, threat="worst-case", strength=0.1)
    # Aligned on six samples; sample 5 is wrong when clean, sample 0 broke at the smaller radius.
    assert (small["value"], small["samples"]) == (4 / 6, 6)
    assert (large["value"], large["samples"]) == (2 / 6, 6)
    assert (large["low"], large["high"]) == tuple(map(float, wilson(2, 6)))
    # No single attack says so: each alone leaves five of its samples or more.
    assert value(table, threat="pgd-linf", strength=0.1)["value"] == 7 / 8


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=4, max_size=4))
def test_worst_case_falls_with_strength_and_is_below_every_attack(rows: list[list[bool]]) -> None:
    grid = (0.02, 0.05, 0.1)
    records = [outcome("m", "clean", 0.0, rows[0])]
    records += [outcome("m", "pgd-linf", s, row) for s, row in zip(grid, rows[1:], strict=True)]
    table = summarise(records)
    curve = [value(table, threat="worst-case", strength=s)["value"] for s in grid]
    alone = [value(table, threat="pgd-linf", strength=s)["value"] for s in grid]
    assert curve == sorted(curve, reverse=True)
    assert all(worst <= single for worst, single in zip(curve, alone, strict=True))
    assert curve[0] <= value(table, threat="clean")["value"]


def test_a_failed_attack_leaves_the_worst_case_blank_and_the_model_last() -> None:
    ones = np.ones(10, bool)
    weak = [outcome("weak", "clean", 0.0, ones), outcome("weak", "pgd-linf", 0.1, ones & (np.arange(10) < 2))]
    weak.append(outcome("weak", "fgsm-linf", 0.1, ones))
    strong = [outcome("crashes", "clean", 0.0, ones), outcome("crashes", "fgsm-linf", 0.1, ones)]
    strong.append(synthetic.failed(outcome("crashes", "pgd-linf", 0.1, ones)))
    board = leaderboard([*strong, *weak], HEADLINE).set_index("model")
    assert board.loc["weak", ["rank", "status", "linf@0.1"]].tolist() == [1, "ok", 0.2]
    assert board.loc["crashes", "rank"] == 2
    assert board.loc["crashes", "status"] == "failed: 1 cell"
    assert pd.isna(board.loc["crashes", "linf@0.1"])
    assert board.loc["crashes", "clean"] == 1.0
    table = summarise([*strong, *weak])
    assert table[(table["model"] == "crashes") & (table["threat"] == "worst-case")].empty


def test_a_seed_that_failed_blanks_the_mean_over_seeds() -> None:
    records = synthetic.records(models=("node", "resnet"), seeds=(0, 1), threats=("pgd-linf",))
    records = [
        synthetic.failed(r)
        if (r.cell.model, r.cell.training_seed, r.cell.threat, r.cell.strength)
        == ("node", 1, "pgd-linf", 0.1)
        else r
        for r in records
    ]
    board = leaderboard(records, HEADLINE).set_index("model")
    assert pd.isna(board.loc["node", "linf@0.1"])
    assert board.loc["resnet", "linf@0.1"] > 0
    assert value(summarise(records), model="node", threat="worst-case", strength=0.1)["seeds"] == 1


def test_a_missing_cell_is_incomplete_and_ranked_below() -> None:
    records = synthetic.records(models=("ch-node", "resnet"), threats=("pgd-linf",))
    records = [r for r in records if (r.cell.model, r.cell.strength) != ("ch-node", 0.2)]
    board = leaderboard(records, HEADLINE).set_index("model")
    assert board.loc["ch-node", "status"] == "incomplete"
    assert board.loc["ch-node", "linf@0.1"] > board.loc["resnet", "linf@0.1"]
    assert board.loc["ch-node", "rank"] == 2


def test_a_worst_case_needs_the_attacks_the_others_faced() -> None:
    full = synthetic.records(models=("node",), threats=("fgsm-linf", "pgd-linf"))
    spared = synthetic.records(models=("resnet",), threats=("fgsm-linf",))
    board = leaderboard([*full, *spared], HEADLINE).set_index("model")
    assert pd.isna(board.loc["resnet", "linf@0.1"])
    assert board.loc["resnet", "status"] == "incomplete"


def test_superseded_variants_are_not_mixed() -> None:
    old = [outcome("m", "clean", 0.0, np.zeros(10)), outcome("m", "gaussian", 0.3, np.ones(10))]
    new = [outcome("m", "clean", 0.0, np.ones(10), model_version="2", created="2026-02-01T00:00:00Z")]
    used, superseded = current([*new, *old])
    assert used == new
    assert superseded == 2
    table = summarise([*old, *new])
    assert table["threat"].tolist() == ["clean"]
    assert value(table)["value"] == 1.0


def test_superseded_checkpoints_are_not_mixed_and_seeds_stay_apart() -> None:
    old = [outcome("m", "gaussian", s, np.zeros(4), checkpoint_sha256="a" * 64) for s in (0.1, 0.2)]
    new = [
        outcome("m", "gaussian", 0.1, np.ones(4), checkpoint_sha256="b" * 64, created="2026-02-01T00:00:00Z")
    ]
    other = [outcome("m", "gaussian", 0.1, np.zeros(4), seed=1)]
    used, superseded = current([*old, *new, *other])
    assert (used, superseded) == ([*new, *other], 2)
    row = value(summarise(used), strength=0.1)
    assert (row["value"], row["seeds"]) == (0.5, 2)


def test_a_repeated_question_counts_once() -> None:
    few = outcome("m", "clean", 0.0, np.zeros(4))
    many = outcome("m", "clean", 0.0, np.ones(9), created="2026-02-01T00:00:00Z")
    used, superseded = current([many, few])
    assert (used, superseded) == ([many], 1)


def test_recipes_and_datasets_stay_apart() -> None:
    records = [
        outcome("m", "clean", 0.0, np.ones(9)),
        outcome("m", "clean", 0.0, np.zeros(9), recipe={"name": "adversarial"}),
        outcome("m", "clean", 0.0, np.ones(9), dataset="mnist"),
    ]
    board = leaderboard(records, Headline())
    keys = list(zip(board["dataset"], board["recipe"], board["rank"], strict=True))
    assert keys == [("digits", "quick", 1), ("digits", "adversarial", 2), ("mnist", "quick", 1)]
    assert current(records)[1] == 0


def test_summary_has_its_columns_units_and_spread() -> None:
    records = synthetic.records(models=("node",), seeds=(0, 1, 2), samples=50)
    table = summarise(records)
    assert tuple(table.columns) == COLUMNS
    accuracies = [r.accuracy for r in records if r.cell.threat == "gaussian" and r.cell.strength == 0.3]
    row = value(table, threat="gaussian", strength=0.3)
    assert row["value"] == pytest.approx(np.mean(accuracies))
    assert row["samples"] == 50  # not draws x seeds x 50
    spread = value(table, "accuracy_spread", threat="gaussian", strength=0.3)
    assert spread["value"] == pytest.approx(np.std(accuracies, ddof=1))
    rate = value(table, "throughput", threat="inference", strength=64.0)
    latency = value(table, "latency_median", threat="inference", strength=64.0)
    assert rate["protocol"] == "cpu: Intel Xeon"
    assert rate["value"] * latency["value"] == pytest.approx(64)
    assert rate["low"] < rate["value"] < rate["high"]
    assert set(table["statistic"]) >= {"latency_p95", "peak_memory", "nfe", "parameters", "training_seconds"}


def test_devices_never_share_a_column() -> None:
    board = leaderboard(synthetic.records(devices=("cpu: A", "cuda: B")), synthetic.HEADLINE)
    names = {name for name in board if "inference@" in name or "training-step@" in name}
    assert names == {f"{t}@{d}" for t in ("inference", "training-step") for d in ("cpu: A", "cuda: B")}
    assert (board["inference@cuda: B"] > board["inference@cpu: A"]).all()


def test_only_failed_records() -> None:
    records = [synthetic.failed(r) for r in synthetic.records(models=("node",), threats=("pgd-linf",))]
    board = leaderboard(records, synthetic.HEADLINE)
    assert summarise(records).empty
    assert board["status"].tolist() == [f"failed: {len(records)} cells"]
    assert board.filter(like="linf@").isna().all(axis=None)


def test_headline_is_read_back_and_guessed(tmp_path: Any) -> None:
    synthetic.HEADLINE.write(tmp_path)
    assert Headline.read(tmp_path) == synthetic.HEADLINE
    guess = Headline.guess(synthetic.records(models=("node",)))
    assert guess.reported["gaussian"] == 0.1
    assert guess.rank == "linf"
    (tmp_path / "plan.json").write_text('{"schema_version": 99}')
    with pytest.raises(RecordError, match="99"):
        Headline.read(tmp_path)
    board = leaderboard(synthetic.records(models=("node",), threats=("gaussian",)), guess)
    assert board_columns(board).ranking.name == "gaussian@0.1"


def test_order_of_records_does_not_matter() -> None:
    records = synthetic.records(models=("node", "resnet"), seeds=(0, 1))
    backwards = [dataclasses.replace(r) for r in reversed(records)]
    pd.testing.assert_frame_equal(summarise(records), summarise(backwards))
