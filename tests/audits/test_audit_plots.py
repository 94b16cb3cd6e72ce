"""The plots behind findings: small, well-formed, the same for the same arrays, whatever the numbers."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from robustode.bench.audits.audit_record import SeedResult
from robustode.bench.report.plots.audit_plot import HEIGHT, WIDTH, plot

NAME = "{http://www.w3.org/2000/svg}"


def finding(x: object, axes: tuple[str, str] = ("step", "loss"), **lines: object) -> SeedResult:
    arrays = {name: np.asarray(values, float) for name, values in {"x": x, **lines}.items()}
    return SeedResult(name="a", seed=0, verdict="pass", sentence="x", arrays=arrays, axes=axes)


def drawn(what: SeedResult) -> ElementTree.Element:
    return ElementTree.fromstring(plot(what))


def texts(svg: ElementTree.Element) -> list[str]:
    return [str(text.text) for text in svg.iter(f"{NAME}text")]


def lines(svg: ElementTree.Element) -> list[str]:
    return [str(path.get("d")) for group in svg.iter(f"{NAME}g") for path in group.iter(f"{NAME}path")]


def test_two_lines_with_axes_ticks_and_legend():
    svg = drawn(finding([0, 1, 2], before=[0.1, 0.2, 0.4], after=[0.3, 0.3, 0.1]))
    assert {"step", "loss", "before", "after", "0", "1", "2", "0.1", "0.4"} <= set(texts(svg))
    assert [line.count("L") for line in lines(svg)] == [2, 2]
    assert len(list(svg.iter(f"{NAME}circle"))) == 6
    assert svg.get("fill") == "currentColor"
    assert "prefers-color-scheme:dark" in str(svg.find(f"{NAME}style").text)


def test_one_line_has_no_legend_and_many_points_have_no_dots():
    svg = drawn(finding(np.arange(1000), only=np.linspace(0, 1, 1000)))
    assert "only" not in texts(svg)
    assert not list(svg.iter(f"{NAME}circle"))
    assert len(plot(finding(np.arange(1000), a=np.arange(1000), b=np.arange(1000)))) < 5000


def test_points_with_names_of_their_own():
    svg = drawn(finding([0, 1, 2], ("FGSM, PGD & more, APGD", "percent"), a=[1, 2, 3]))
    assert {"FGSM", "PGD & more", "APGD"} <= set(texts(svg))


def test_what_is_not_finite_is_a_gap():
    (line,) = lines(drawn(finding(range(5), a=[1, 2, np.nan, 1.79e308, 3])))
    assert (line.count("M"), line.count("L")) == (2, 1)


@pytest.mark.parametrize("arrays", [{}, {"x": [1]}, {"x": [1, 2]}, {"x": [1, 2], "a": [np.nan, np.inf]}])
def test_nothing_to_draw(arrays):
    one = finding(arrays.get("x", []), **{k: v for k, v in arrays.items() if k != "x"})
    assert plot(one) == b""


values = st.lists(st.floats(width=64), min_size=2, max_size=30)


@given(values, values)
def test_any_numbers_give_the_same_small_picture_twice_and_within_its_frame(first, second):
    count = min(len(first), len(second))
    what = finding(range(count), a=first[:count], b=second[:count])
    assert plot(what) == plot(what)
    if not plot(what):
        assert not np.isfinite([*first[:count], *second[:count]]).any() or max(map(abs, first)) >= 1e300
        return
    svg = drawn(what)
    for circle in svg.iter(f"{NAME}circle"):
        assert 0 <= float(str(circle.get("cx"))) <= WIDTH
        assert 0 <= float(str(circle.get("cy"))) <= HEIGHT
