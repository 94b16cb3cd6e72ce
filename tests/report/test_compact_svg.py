"""A figure as it is embedded: smaller, and the same picture within a tenth of a point."""

from __future__ import annotations

import re
from xml.etree.ElementTree import fromstring

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import rc_context
from matplotlib.figure import Figure
from robustode.bench.report.html.compact_svg import TOLERANCE, _path, compact_svg
from robustode.bench.report.style import RC

SVG = "{http://www.w3.org/2000/svg}"
points = st.tuples(st.floats(-500, 500), st.floats(-500, 500))


def made() -> bytes:
    import io

    rng = np.random.default_rng(0)
    with rc_context(RC):
        figure = Figure(figsize=(4, 3))
        axes = figure.subplots(1, 2)
        axes[0].plot(rng.random(50), label="a line")
        axes[0].fill_between(range(50), rng.random(50), alpha=0.2)
        axes[1].imshow(rng.random((4, 4)), cmap="gray")
        axes[1].set_title("a title")
        figure.legend()
        target = io.BytesIO()
        figure.savefig(target, format="svg", metadata={"Date": None})
    return target.getvalue()


def absolute(path: str) -> list[tuple[float, float]]:
    """The points of a relative path of m and l."""
    found, x, y = [], 0.0, 0.0
    numbers = list(map(float, re.findall(r"-?\d*\.?\d+", path)))
    for dx, dy in zip(numbers[::2], numbers[1::2], strict=True):
        x, y = x + dx, y + dy
        found.append((x, y))
    return found


def distance(point: tuple[float, float], line: list[tuple[float, float]]) -> float:
    p, corners = np.array(point), np.array(line)
    if len(corners) == 1:
        return float(np.linalg.norm(p - corners[0]))
    a, b = corners[:-1], corners[1:]
    d = b - a
    share = np.clip(((p - a) * d).sum(1) / np.maximum((d * d).sum(1), 1e-12), 0, 1)
    return float(np.linalg.norm(a + share[:, None] * d - p, axis=1).min())


@given(st.lists(points, min_size=1, max_size=40))
def test_a_line_stays_where_it_was(line: list[tuple[float, float]]) -> None:
    text = "M" + "L".join(f"{x:.6f} {y:.6f} " for x, y in line)
    found = absolute(_path(text, 10))
    rounding = 0.05 * 2**0.5
    assert distance(line[0], found[:1]) <= rounding + 1e-9
    assert distance(line[-1], found[-1:]) <= rounding + 1e-9
    assert all(distance(point, found) <= TOLERANCE / 10 + rounding + 1e-9 for point in line)


def test_points_on_a_straight_line_are_dropped() -> None:
    assert _path("M0 0L1 1L2 2L3 3L3 0z", 10) == "m0 0l3 3l0-3z"
    assert _path("M0 0L1 0L0.5 0", 10) == "m0 0l1 0l-.5 0", "a line that turns back keeps its end"


def test_a_figure_is_less_than_half_as_large_and_refers_to_nothing_that_is_gone() -> None:
    svg = made()
    small = compact_svg(svg)
    assert small == compact_svg(svg)
    assert len(small) < 0.5 * len(svg)
    root = fromstring(small)
    assert (root.get("viewBox"), root.get("width")) == tuple(
        fromstring(svg).get(name) for name in ("viewBox", "width")
    )
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    used = set(re.findall(r"(?:url\(#|href='#)([^)']+)", small.decode()))
    assert len(ids) == len(set(ids))
    assert used <= set(ids)
    classes = {element.get("class") for element in root.iter()} - {None}
    rules = root.find(f".//{SVG}style").text  # type: ignore[union-attr]
    assert classes <= set(re.findall(r"\.(c\d+)\{", str(rules)))
    letters = sum(element.tag == f"{SVG}use" for element in fromstring(svg).iter())
    assert letters > 20
    assert compact_svg(b"") == b""
