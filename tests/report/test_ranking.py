"""McNemar's exact test, the ranks that follow from it, and the p-values stored with the leaderboard's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import synthetic
from hypothesis import given
from hypothesis import strategies as st
from robustode.bench.records.headline import Headline
from robustode.bench.records.record import Record
from robustode.bench.report.leaderboard.columns import CLEAN, AccuracyColumn, reported_column
from robustode.bench.report.leaderboard.leaderboard import leaderboard
from robustode.bench.report.leaderboard.ranking import (
    ALPHA,
    Outcomes,
    alike,
    discordant,
    mcnemar,
    p_value,
    p_values,
    ranks,
)
from robustode.bench.report.leaderboard.row_outcomes import outcomes
from scipy.stats import binomtest
from test_stats import outcome

LINF = Headline(reported={"linf": 0.1}, rank="linf")
counts = st.integers(0, 60)


def kept(bits: Any, index: str = "") -> Outcomes:
    """Of one seed from (samples,) or (draws, samples), of several from (seeds, draws, samples)."""
    bits = np.asarray(bits, bool)
    return Outcomes(correct=bits.reshape((1,) * (3 - bits.ndim) + bits.shape), index=index)


def first_of(n: int, samples: int = 20) -> Outcomes:
    return kept(np.arange(samples) < n)


@given(counts, counts)
def test_mcnemar_is_the_two_sided_binomial_test(b: int, c: int) -> None:
    expected = binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected, abs=1e-12)
    assert mcnemar(c, b) == mcnemar(b, c)


def test_mcnemar_by_hand() -> None:
    assert np.allclose(mcnemar([5, 6, 10, 8, 0], [0, 0, 0, 2, 0]), [1 / 16, 1 / 32, 2 / 1024, 112 / 1024, 1])


@pytest.mark.parametrize("n", [1, 5, 6, 20, 51])
def test_equal_models_are_told_apart_in_less_than_five_percent_of_cases(n: int) -> None:
    wrong = sum(math.comb(n, k) for k in range(n + 1) if mcnemar(k, n - k) < ALPHA) / 2**n
    assert wrong < ALPHA
    assert (wrong > 0) == (n > 5)


@given(st.integers(0, 180), st.integers(0, 180))
def test_means_are_rounded_to_the_largest_p_value(thrice_b: int, thrice_c: int) -> None:
    b, c = thrice_b / 3, thrice_c / 3
    around = [mcnemar(x, y) for x in (math.floor(b), math.ceil(b)) for y in (math.floor(c), math.ceil(c))]
    assert mcnemar(b, c) >= max(around) - 1e-12


def test_a_sum_of_thirds_is_a_whole_number() -> None:
    thirds = 18 * (1 / 3)
    assert mcnemar(thirds + 1e-12, 1e-12) == mcnemar(6, 0)


def test_only_the_samples_that_one_gets_right_decide() -> None:
    nested = kept(np.arange(100) < 60), kept(np.arange(100) < 50)
    crossed = kept(np.arange(100) < 60), kept(np.arange(100) >= 50)
    assert [float(each[0, 0]) for each in discordant(*nested)] == [10, 0]
    assert [float(each[0, 0]) for each in discordant(*crossed)] == [50, 40]
    assert p_value(*nested) < ALPHA < p_value(*crossed)  # 60 against 50 of 100, both times


@given(st.integers(1, 5), st.integers(1, 4), st.lists(st.booleans(), min_size=16, max_size=16))
def test_repeating_a_seed_or_a_draw_changes_nothing(seeds: int, draws: int, bits: list[bool]) -> None:
    a, b = np.array(bits[:8]), np.array(bits[8:])
    many = [kept(np.tile(each, (seeds, draws, 1))) for each in (a, b)]
    assert p_value(*many) == p_value(kept(a), kept(b))


def test_every_seed_meets_every_seed_and_the_least_telling_pair_decides() -> None:
    order = np.arange(100)
    one = kept([[order < 80], [order < 70]])
    other = kept([[order < 60], [order < 63], [order < 50]])
    only_one, only_other = discordant(one, other)
    assert only_one.tolist() == [[20, 17, 30], [10, 7, 20]]
    assert only_other.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert p_value(one, other) == p_value(other, one) == pytest.approx(2 / 2**7)


def test_seeds_that_overlap_are_not_told_apart_however_many_samples() -> None:
    order = np.arange(10_000)
    one = kept([[order < 9000], [order < 7000]])
    other = kept([[order < 8000], [order < 6000]])
    assert p_value(kept(order < 9000), kept(order < 8000)) < 1e-9
    assert p_value(one, other) == 1.0


def test_draws_are_paired_draw_by_draw() -> None:
    a, b = kept([[1, 0], [0, 1]]), kept([[0, 1], [0, 1]])
    assert [each.tolist() for each in discordant(a, b)] == [[[0.5]], [[0.5]]]


def test_the_common_samples_and_draws_count() -> None:
    long = kept(np.ones((3, 40)))
    assert [float(each[0, 0]) for each in discordant(long, first_of(12))] == [8, 0]
    assert math.isnan(p_value(long, kept(np.zeros((1, 40)), index="other samples")))
    assert math.isnan(p_value(None, long))
    assert math.isnan(p_value(long, kept(np.zeros((1, 0)))))


def test_ranks_are_held_against_the_row_that_opened_them() -> None:
    rows = [first_of(n) for n in (20, 15, 14, 9, 8, 2)]
    numbers, opener, above = ranks([1, 0.75, 0.7, 0.45, 0.4, 0.1], [0] * 6, rows)
    # 20 against 15 leaves five on one side (p = 1/16), against 14 six (p = 1/32).
    assert numbers == [1, 1, 3, 3, 5, 6]
    assert opener[1:] == pytest.approx([1 / 16, 1 / 32, 1 / 16, 1 / 32, 1 / 32])
    assert math.isnan(opener[0])
    assert math.isnan(above[0])
    assert above[1:] == pytest.approx([1 / 16, 1, 1 / 16, 1, 1 / 32])


def test_being_indistinguishable_is_not_transitive() -> None:
    rows = [first_of(n) for n in (20, 16, 12)]
    p = p_values(rows)
    assert p[0, 1] >= ALPHA
    assert p[1, 2] >= ALPHA
    assert p[0, 2] < ALPHA
    assert ranks([1, 0.8, 0.6], [0] * 3, rows)[0] == [1, 1, 3]
    assert alike(p) == [(0, 1), (1, 2)]


def test_rows_below_open_a_rank_however_alike() -> None:
    rows = [first_of(10), first_of(10), first_of(15), None, None]
    numbers, opener, _ = ranks([0.5, 0.5, 0.75, np.nan, np.nan], [0, 1, 1, 1, 1], rows)
    assert numbers == [1, 2, 2, 4, 4]
    assert np.isnan(opener[1])


def test_rows_that_cannot_be_paired_share_a_rank_when_equal_alone() -> None:
    rows = [kept(np.ones(9), index="a"), kept(np.ones(9), index="b"), kept(np.ones(8), index="c")]
    assert ranks([1.0, 1.0, 0.99], [0] * 3, rows)[0] == [1, 1, 3]


@given(st.lists(st.integers(0, 24), min_size=1, max_size=9))
def test_p_values_are_symmetric_and_runs_hold_no_pair_that_differs(sizes: list[int]) -> None:
    p = p_values([first_of(n, 24) for n in sorted(sizes, reverse=True)])
    assert (p == p.T).all()
    assert (np.diag(p) == 1).all()
    runs = alike(p)
    for first, last in runs:
        assert (p[first : last + 1, first : last + 1] >= ALPHA).all()
    joined = {(i, j) for a, b in runs for i in range(a, b + 1) for j in range(i)}
    # Nested sets are on a line, so here every pair that is alike is joined.
    assert joined >= {(i, j) for i in range(len(p)) for j in range(i) if p[i, j] >= ALPHA}


def attacked(name: str, survivors: Any, seed: int = 0, **changes: Any) -> list[Record]:
    survivors = np.asarray(survivors, bool)
    return [
        outcome(name, "clean", 0.0, np.ones(survivors.size), seed, **changes),
        outcome(name, "pgd-linf", 0.1, survivors, seed, **changes),
    ]


def test_per_sample_outcomes_decide_and_not_percentages() -> None:
    order = np.arange(100)
    records = [
        *attacked("best", order < 60),
        *attacked("nested", order < 50),
        *attacked("crossed", order >= 49),
    ]
    board = leaderboard(records, LINF)
    # 51 of 100 shares the rank of 60, although 50 of 100 does not: other samples stand behind it.
    assert board["model"].tolist() == ["best", "crossed", "nested"]
    assert board["rank"].tolist() == board["rank@linf@0.1"].tolist() == [1, 1, 3]
    assert board["p_leader"].tolist()[1:] == pytest.approx([binomtest(40, 89).pvalue, 2 / 1024])
    assert board["p_above"].tolist()[2] == pytest.approx(binomtest(49, 99).pvalue)
    assert board["rank@clean"].tolist() == [1, 1, 1]


def test_models_with_one_seed_and_with_three_are_compared() -> None:
    order = np.arange(60)
    records = attacked("one", order < 40)
    for seed in range(3):
        records += attacked("three", order < 30 - seed, seed)
    board = leaderboard(records, LINF).set_index("model")
    assert board.loc["three", "linf@0.1_spread"] == pytest.approx(1 / 60)
    assert np.isnan(board.loc["one", "linf@0.1_spread"])
    assert board.loc["three", "p_leader"] == pytest.approx(float(mcnemar(10, 0)))
    assert board["rank"].tolist() == [1, 2]


def test_other_test_samples_are_not_paired() -> None:
    records = attacked("a", np.ones(10)) + attacked("b", np.arange(10) < 9, index_sha256="2" * 64)
    board = leaderboard(records, LINF)
    assert board["rank"].tolist() == [1, 2]
    assert board["p_leader"].isna().all()


def test_incomplete_rows_rank_below_and_have_no_rank_where_they_have_no_value() -> None:
    records = synthetic.records(models=("ch-node", "resnet"), threats=("pgd-linf",))
    failed = [
        synthetic.failed(r) if (r.cell.model, r.cell.strength) == ("ch-node", 0.1) else r for r in records
    ]
    board = leaderboard(failed, LINF)
    assert board["model"].tolist() == ["resnet", "ch-node"]
    assert board["rank"].tolist() == [1, 2]
    assert board["rank@linf@0.1"].isna().tolist() == [False, True]
    assert board["rank@clean"].tolist() == [1, 2]


def test_outcomes_are_the_leaderboards_values() -> None:
    records = synthetic.records(models=("node", "resnet"), seeds=(0, 1), samples=80)
    board = leaderboard(records, synthetic.HEADLINE).set_index(["dataset", "model", "recipe"])
    columns = [CLEAN, *(reported_column(k, s) for k, s in synthetic.HEADLINE.reported.items())]
    found = outcomes(records, columns)
    assert set(found) == set(columns)
    for column, rows in found.items():
        assert set(rows) == set(board.index)
        for row, each in rows.items():
            assert each.correct.shape == (2, 3 if column.kind == "noise" else 1, 80)
            assert each.correct.mean() == pytest.approx(board.loc[row, column.name])


def test_certified_outcomes_are_those_of_the_samples_that_were_attacked() -> None:
    records = attacked("a", np.ones(6))
    what = synthetic.cell("a", kind="certificate", threat="lipschitz", family="certificate", samples=9)
    radius = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8], np.float32)
    records.append(Record(cell=what, outcomes={"radius": radius}, measures={"pixels": 4.0}))
    column = AccuracyColumn(kind="certified", of="linf", strength=1.0)
    (each,) = outcomes(records, [column])[column].values()
    assert each.correct.tolist() == [[[0, 0, 0, 1, 1, 1]]]  # more than 1 x sqrt(4)
