"""The sandwich, the critical-difference diagram, the Pareto frontier: drawn as the records say."""

from __future__ import annotations

import dataclasses
import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import stubs
import synthetic
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from robustode.bench.records.headline import Headline
from robustode.bench.records.record import Record
from robustode.bench.report.figures import draw_all
from robustode.bench.report.html.model_details import _no_answer
from robustode.bench.report.leaderboard.leaderboard import leaderboard
from robustode.bench.report.leaderboard.ranking import Outcomes, alike, p_values
from robustode.bench.report.plots.bound_bars import draw_bound_bars
from robustode.bench.report.plots.bound_curves import draw_bound_curves
from robustode.bench.report.plots.bounds import Bounds, bounds
from robustode.bench.report.plots.critical_difference import _levels, draw_critical
from robustode.bench.report.plots.robustness_throughput import frontier
from robustode.bench.report.rendering import Render, render_here, render_nothing
from robustode.bench.report.statistics import summarise
from robustode.bench.report.style import INK, RC, styles

HEADLINE = Headline(reported={"linf": 0.1, "l2": 0.5}, rank="linf")


def certificate(model: str, seed: int = 0, samples: int = 60) -> Record:
    what = synthetic.cell(
        model, seed, kind="certificate", threat="lipschitz", family="certificate", samples=samples
    )
    radius = np.linspace(0, 0.6, samples).astype(np.float32)
    return Record(cell=what, outcomes={"radius": radius}, measures={"pixels": 64.0})


def made(models: tuple[str, ...] = ("node", "resnet"), seeds: tuple[int, ...] = (0, 1)) -> list[Record]:
    records = synthetic.records(models=models, seeds=seeds, samples=40, threats=("pgd-linf", "pgd-l2"))
    return records + [certificate(models[0], seed) for seed in seeds]


def collected(records: list[Record]) -> dict[str, dict[str, Bounds]]:
    table = summarise(records)
    accuracy = table[table["statistic"] == "accuracy"].assign(label=lambda t: t["model"])
    names = {r.cell.model for r in records}
    return bounds(accuracy, {name: [r for r in records if r.cell.model == name] for name in names})


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_certified_is_below_attacked_between_the_strengths_too(pairs: list[tuple[float, float]]) -> None:
    radii = np.sort([min(pair) for pair in pairs])
    distances = np.array([max(pair) for pair in pairs])
    eps = np.array([0.0, 0.1, 0.25, 0.7])
    one = Bounds(eps=eps, attacked=np.array([(distances > e).mean() for e in eps]), radii=radii)
    fine = np.concatenate([np.linspace(0, 1, 101), radii, eps])
    assert np.allclose(one.certified(fine), [(radii > e).mean() for e in fine])
    assert (one.certified(fine) <= one.upper(fine) + 1e-12).all()


def test_bounds_are_those_of_the_summary() -> None:
    records = made()
    found = collected(records)
    table = summarise(records)
    assert set(found) == {"linf", "l2"}
    for norm, models in found.items():
        assert set(models) == {"node", "resnet"}
        assert models["resnet"].radii is None
        for model, one in models.items():
            rows = table[(table["model"] == model) & (table["norm"] == norm)]
            worst = rows[(rows["threat"] == "worst-case") & (rows["statistic"] == "accuracy")]
            assert one.upper(worst["strength"].to_numpy()) == pytest.approx(worst["value"].to_numpy())
            proven = rows[rows["statistic"] == "certified_accuracy"]
            assert one.certified(proven["strength"].to_numpy()) == pytest.approx(proven["value"].to_numpy())
            assert (len(proven) > 0) == (model == "node")


def test_both_bounds_at_one_strength() -> None:
    one = Bounds(
        eps=np.array([0.0, 0.5, 1.0]), attacked=np.array([0.9, 0.6, 0.2]), radii=np.array([0.1, 0.4])
    )
    assert [one.at(eps) for eps in (0.0, 0.2, 0.5, 0.99, 2.0)] == [
        (1.0, 0.9),
        (0.5, 0.9),
        (0.0, 0.6),
        (0.0, 0.6),
        (0.0, 0.2),
    ]


def test_the_sandwich_has_a_panel_for_each_model_and_norm() -> None:
    found = collected(made())
    looks = styles(["node", "resnet"])
    with mpl.rc_context(RC):
        figure = draw_bound_curves(found, ["node", "resnet"], looks, HEADLINE)()
        alone = draw_bound_curves(found, ["node"], looks, HEADLINE)()
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title("left") for ax in shown] == ["node", "resnet", "node", "resnet"]
    texts = [[t.get_text() for t in ax.texts] for ax in shown]
    assert ["no certificate" in each for each in texts] == [False, True, False, True]
    one, at = found["linf"]["node"], np.array([0.1])
    assert texts[0] == [f"gap {100 * (one.upper(at) - one.certified(at))[0]:.0f}"]
    assert len({ax.get_position().y0 for ax in alone.axes}) == 1  # its norms side by side


def test_the_gap_has_a_bar_for_each_model_and_norm() -> None:
    found = collected(made())
    with mpl.rc_context(RC):
        figure = draw_bound_bars(found, ["node", "resnet"], styles(["node", "resnet"]), HEADLINE)()
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["node", "resnet"]
    for ax, (norm, eps) in zip(figure.axes, (("linf", 0.1), ("l2", 0.5)), strict=True):
        at = np.array([eps])
        node, resnet = found[norm]["node"], found[norm]["resnet"]
        low, high = 100 * node.certified(at)[0], 100 * node.upper(at)[0]
        widths = [bar.get_width() for bar in ax.patches]
        assert widths == pytest.approx([100, high, low, 100, 100 * resnet.upper(at)[0], 0])
        assert [t.get_text() for t in ax.texts] == [
            f"{low:.1f} – {high:.1f}",
            f"? – {100 * resnet.upper(at)[0]:.1f}",
        ]


def test_no_certificate_no_sandwich_and_no_gap() -> None:
    records = [r for r in made() if r.cell.kind != "certificate"]
    names = ["node", "resnet"]
    for draw in (draw_bound_curves, draw_bound_bars):
        assert draw(collected(records), names, styles(names), HEADLINE) is None
        assert draw({}, ["node"], styles(["node"]), HEADLINE) is None
    assert draw_bound_bars(collected(made()), ["node"], styles(["node"]), HEADLINE) is None, (
        "one bar shows nothing"
    )


def drawn(records: list[Record], render: Render = render_nothing) -> set[str]:
    summary = summarise(records)
    pictures = draw_all(records, summary, leaderboard(records, HEADLINE, summary), HEADLINE, render=render)
    return {picture.name for picture in pictures()}


def test_both_figures_are_drawn_from_records_alone() -> None:
    records = made(seeds=(0,))
    assert {"digits-sandwich", "digits-gap"} <= drawn(records, render_here)
    assert "digits-critical" not in drawn(records), "an attack breaks what is certified: node is flagged"
    assert "digits-critical" in drawn([r for r in records if r.cell.kind != "certificate"])


def survivors(*counts: int) -> tuple[dict[str, float], dict[str, Outcomes]]:
    rows = {f"model-{i}": np.arange(40) < count for i, count in enumerate(counts)}
    values = {name: float(kept.mean()) for name, kept in rows.items()}
    return values, {name: Outcomes(correct=kept[None, None]) for name, kept in rows.items()}


def test_bars_join_what_cannot_be_told_apart_and_labels_do_not_overlap() -> None:
    values, found = survivors(39, 36, 35, 31, 20, 19, 18, 17, 5)
    runs = alike(p_values(list(found.values())))
    assert runs == [(0, 2), (1, 3), (4, 7)]
    with mpl.rc_context(RC):
        figure = draw_critical(values, found, "accuracy (%)", styles(values))()
        figure.canvas.draw()
        ax = figure.axes[0]
        bars = [line for line in ax.lines if line.get_linewidth() > 3]
        ends = [tuple(np.sort(np.asarray(bar.get_xdata(), float))) for bar in bars]
        boxes = [text.get_window_extent() for text in [*ax.texts, *figure.texts, ax.xaxis.label]]
        edge = figure.bbox
    assert {to_hex(str(bar.get_color())) for bar in bars} == {INK.lower()}
    shares = [100 * value for value in values.values()]
    for (low, high), (first, last) in zip(ends, runs, strict=True):
        assert low <= shares[last] < shares[first] <= high
        others = [x for i, x in enumerate(shares) if not first <= i <= last]
        assert not [x for x in others if low <= x <= high]
    assert [t.get_text() for t in ax.texts][::2] == list(values)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(edge.x0 <= box.x0 and box.x1 <= edge.x1 and edge.y0 <= box.y0 for box in boxes)


def test_what_cannot_be_compared_is_not_drawn() -> None:
    values, found = survivors(30, 20)
    one = dict(itertools.islice(found.items(), 1))
    assert draw_critical(values, one, "", styles(values)) is None
    assert draw_critical(values, {}, "", styles(values)) is None


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6)), max_size=10))
def test_bars_on_one_line_do_not_touch(spans: list[tuple[int, int]]) -> None:
    runs = sorted((first, first + length) for first, length in spans)
    levels = _levels(runs)
    for (a, i), (b, j) in itertools.combinations(zip(runs, levels, strict=True), 2):
        assert i != j or a[1] < b[0] or b[1] < a[0]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_frontier_is_what_no_other_beats(points: list[tuple[int, int]]) -> None:
    table = pd.DataFrame(points, columns=["value", "y"])
    edge = frontier(table)
    found = list(zip(edge["value"], edge["y"], strict=True))
    best = {(v, y) for v, y in points if not any((a >= v and b >= y) and (a > v or b > y) for a, b in points)}
    assert set(found) == best
    assert found == sorted(best)


def test_samples_without_an_answer_have_a_colour_of_their_own() -> None:
    records = made()
    silent = synthetic.without_answers(records, ("node", "resnet"))
    table = summarise(silent).assign(label=lambda t: t["model"])
    shares = table[table["statistic"] == "no_answer"]
    assert 0 < shares["value"].min() <= shares["value"].max() < 1
    accuracy = table[table["statistic"] == "accuracy"]
    by_name = {name: [r for r in silent if r.cell.model == name] for name in ("node", "resnet")}
    found = bounds(accuracy, by_name, shares)
    for by_label in found.values():
        for one in by_label.values():
            assert one.no_answer is not None
            assert (one.no_answer + one.attacked <= 1 + 1e-12).all()
            assert one.unanswered(float(one.eps[-1])) == one.no_answer[-1]
    names = ["node", "resnet"]
    for draw_one in (draw_bound_bars, draw_bound_curves):
        figure = draw_one(found, names, styles(names), HEADLINE)()
        assert "no answer" in [text.get_text() for text in figure.legends[0].get_texts()]
        plain = draw_one(collected(records), names, styles(names), HEADLINE)()
        assert "no answer" not in [text.get_text() for text in plain.legends[0].get_texts()]
    lines = _no_answer(by_name["node"])
    assert lines
    assert all("no answer for" in line for line in lines)
    assert _no_answer([r for r in records if r.cell.model == "node"]) == []


def test_samples_that_were_left_out_are_counted_on_the_sheet() -> None:
    kinds = {"trajectories": (2.0, 1.0), "inference": (1.0,), "training-step": (None,)}
    records = [
        Record(
            cell=dataclasses.replace(stubs.cell_for("clean", 0.0, 8), kind="throughput", threat=what),
            measures={} if count is None else {"left_out": count},
        )
        for what, counts in kinds.items()
        for count in counts
    ]
    assert _no_answer(records) == [
        "inference: 1 sample without an answer left out",
        "trajectories: 2 samples without an answer left out",
    ]
