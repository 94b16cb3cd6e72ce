"""Figures: the same bytes again, one style per model, nothing hidden."""

from __future__ import annotations

import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import synthetic
from matplotlib.colors import to_rgb
from robustode.bench.records.headline import Headline
from robustode.bench.records.record import Record
from robustode.bench.report.figures import Picture, draw_all, draw_curves, labelled
from robustode.bench.report.leaderboard.leaderboard import leaderboard
from robustode.bench.report.plots.accuracy_heatmap import WIDEST_LINE, _wrapped, draw_heatmap
from robustode.bench.report.plots.robustness_throughput import draw_tradeoff
from robustode.bench.report.rendering import Render, render_here, render_nothing
from robustode.bench.report.statistics import current, summarise
from robustode.bench.report.style import INK, RC, styles


def draw(
    records: list[Record], headline: Headline = synthetic.HEADLINE, render: Render = render_here
) -> list[Picture]:
    used, _ = current(records)
    summary = summarise(used)
    return draw_all(used, summary, leaderboard(used, headline, summary), headline, render=render)()


def test_core_models_have_fixed_and_distinct_looks() -> None:
    looks = styles(synthetic.CORE)
    for part in ("color", "marker", "dash"):
        # Two solid lines are told apart by colour and marker.
        distinct = {getattr(look, part) for look in looks.values()}
        assert len(distinct) == (3 if part == "dash" else 4)
    alone = {name: styles([name])[name] for name in synthetic.CORE}
    assert looks == alone == {n: styles([*synthetic.CORE, *synthetic.MORE])[n] for n in synthetic.CORE}


def test_looks_are_distinct_for_many_models_and_independent_of_order() -> None:
    names = [*synthetic.CORE, *synthetic.MORE, *(f"model-{i}" for i in range(20))]
    looks = styles(names)
    assert looks == styles(name for name in reversed(names))
    assert len({(s.color, s.marker, s.dash) for s in looks.values()}) == len(names)
    few = styles([*synthetic.CORE, *synthetic.MORE])
    assert len({s.color for s in few.values()}) == len(few)


def test_a_model_keeps_its_look_unless_its_slot_is_contested() -> None:
    names = [f"model-{i}" for i in range(40)]
    for a, b in itertools.pairwise(names):
        alone, both = styles([a]), styles([a, b])
        assert both[a] == alone[a] or both[b] == styles([b])[b]


def test_every_figure_is_drawn_and_byte_identical() -> None:
    records = synthetic.records(models=("node", "resnet"), seeds=(0, 1), samples=40)
    first = draw(records)
    with mpl.rc_context({"axes.unicode_minus": False, "savefig.transparent": True, "font.size": 20}):
        assert draw(records) == first, "whatever the user's own settings are"
    assert [p.name for p in first] == [
        "digits-accuracy",
        "digits-heatmap",
        "digits-critical",
        "digits-tradeoff",
        "digits-examples-node",
        "digits-examples-resnet",
    ]
    for picture in first:
        assert picture.alt
        assert picture.png.startswith(b"\x89PNG")
        assert b"<svg" in picture.svg
        assert b"<dc:date>" not in picture.svg
        assert b"Software" not in picture.png


@pytest.mark.parametrize(
    ("kinds", "stems"),
    [
        ({"training"}, set()),
        ({"throughput"}, set()),
        ({"training", "accuracy"}, {"accuracy", "heatmap", "examples-node"}),
    ],
)
def test_missing_pieces_leave_figures_out(kinds: set[str], stems: set[str]) -> None:
    records = [r for r in synthetic.records(models=("node",), samples=20) if r.cell.kind in kinds]
    assert {p.name.removeprefix("digits-") for p in draw(records)} == stems


def test_clean_alone_still_has_a_tradeoff_and_a_heatmap() -> None:
    records = synthetic.records(models=("node",), threats=(), samples=20)
    assert [p.name for p in draw(records, Headline())] == [
        "digits-heatmap",
        "digits-tradeoff",
        "digits-examples-node",
    ]


def test_every_number_of_the_heatmap_can_be_read_and_no_heading_is_wide() -> None:
    records = synthetic.records(models=["a", "b"])
    summary = summarise(records)
    board = labelled(leaderboard(records, synthetic.HEADLINE, summary))
    table = summary[summary["statistic"] == "accuracy"].merge(board[["model", "label"]], on="model")
    spread = table.assign(value=np.linspace(0, 1, len(table)))
    with mpl.rc_context(RC):
        ax = draw_heatmap(spread, board, synthetic.HEADLINE).axes[0]
    numbers = [text for text in ax.texts if text.get_text() not in ("n/a", "–")]
    colours = ax.collections[0].get_facecolors()
    columns = len(ax.get_xticks())
    assert len(numbers) >= 8
    inks = set()
    for text in numbers:
        x, y = (int(place) for place in text.get_position())
        behind, ink = (luminance(colour) for colour in (colours[y * columns + x], text.get_color()))
        contrast = (max(behind, ink) + 0.05) / (min(behind, ink) + 0.05)
        assert contrast >= 3.8, "on the worst grey the better of ink and white has 3.9"
        inks.add(text.get_color())
    assert inks == {INK, "white"}
    lines = [line for tick in ax.get_xticklabels() for line in tick.get_text().split("\n")]
    assert max(map(len, lines)) <= WIDEST_LINE


def luminance(colour: object) -> float:
    """Relative luminance of sRGB, as WCAG 2.2 defines it."""
    rgb = np.array(to_rgb(colour))
    return float(
        np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
    )


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("Clean", "Clean"),
        ("Worst case ℓ₂\nε = 1", "Worst case\nℓ₂\nε = 1"),
        ("FMN and AutoAttack ℓ∞\nε = 0.1", "FMN and\nAutoAttack ℓ∞\nε = 0.1"),
        ("darken\ns = 1", "darken\n\ns = 1"),
        ("Gaussian noise, paper-exact\nv = 1", "Gaussian\nnoise, paper-\nexact\nv = 1"),
        ("pgd-strong-targeted ℓ∞\nε = 1", "pgd-strong-\ntargeted ℓ∞\nε = 1"),
    ],
)
def test_a_threat_is_written_in_three_lines(name: str, lines: str) -> None:
    assert _wrapped(name) == lines


def test_datasets_have_their_own_figures_and_names_are_safe() -> None:
    records = synthetic.records(models=("../x y",), threats=("gaussian",), samples=20)
    records += synthetic.records(models=("node",), threats=("gaussian",), samples=20, dataset="mnist")
    names = [p.name for p in draw(records, render=render_nothing)]
    assert "digits-examples-..-x-y" in names
    assert "mnist-accuracy" in names
    assert all("/" not in name and not name.startswith(".") for name in names)


def test_a_failed_strength_is_a_gap_in_the_line() -> None:
    failures = {("node", "gaussian", 0.1): synthetic.FAILURE}
    records = synthetic.records(models=("node",), threats=("gaussian",), samples=20, failures=failures)
    summary = summarise(records)
    board = labelled(leaderboard(records, synthetic.HEADLINE, summary))
    # Another model supplies the strength that this one lacks.
    other = synthetic.records(models=("resnet",), threats=("gaussian",), samples=20)
    table = summarise([*records, *other]).assign(label=lambda t: t["model"])
    board = labelled(leaderboard([*records, *other], synthetic.HEADLINE))
    with mpl.rc_context(RC):
        figure = draw_curves(table[table["statistic"] == "accuracy"], board, styles(["node", "resnet"]))
    pieces = [np.asarray(line.get_xdata(), float).tolist() for line in figure.axes[0].lines]
    assert [0.0, 0.05] in pieces
    assert [0.2, 0.3] in pieces
    assert [0.0, 0.05, 0.1, 0.2, 0.3] in pieces


def test_between_two_strengths_no_more_is_certified_than_at_the_larger() -> None:
    records = synthetic.records(models=("node",), threats=("pgd-linf",), samples=20)
    table = summarise(records).assign(label=lambda t: t["model"])
    board = labelled(leaderboard(records, synthetic.HEADLINE))
    proven = pd.DataFrame({"label": "node", "norm": "linf", "strength": [0.05, 0.1], "value": [0.5, 0.25]})
    with mpl.rc_context(RC):
        figure = draw_curves(table[table["statistic"] == "accuracy"], board, styles(["node"]), proven)
    (line,) = [line for ax in figure.axes for line in ax.lines if line.get_linestyle() == ":"]
    assert line.get_drawstyle() == "steps-pre", "a straight line promises more than is proven"
    assert line.get_xdata().tolist() == [0.0, 0.05, 0.1]
    assert line.get_ydata().tolist()[1:] == [50.0, 25.0]


def test_direct_labels_do_not_overlap() -> None:
    models = [*synthetic.CORE, *synthetic.MORE]
    records = synthetic.records(models=models, samples=100)
    summary = summarise(records)
    board = labelled(leaderboard(records, synthetic.HEADLINE, summary))
    rates = summary[(summary["statistic"] == "throughput") & (summary["threat"] == "inference")]
    with mpl.rc_context(RC):
        figure = draw_tradeoff(
            rates.assign(label=rates["model"]), board, "linf@0.1", "accuracy (%)", styles(models), 12
        )()
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == len(models)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_many_models_stay_few_figures() -> None:
    models = [f"model-{i:02d}" for i in range(45)]
    records = synthetic.records(models=models, threats=("gaussian", "pgd-linf"), samples=20)
    pictures = draw(records, render=render_nothing)
    assert len(pictures) == 3 + 4


def test_of_few_models_each_has_its_examples() -> None:
    models = [f"model-{i:02d}" for i in range(11)]
    records = synthetic.records(models=models, threats=("gaussian",), samples=20)
    pictures = draw(records, render=render_nothing)
    assert sorted(p.title for p in pictures if p.kind == "examples") == [f"Examples: {m}" for m in models]
