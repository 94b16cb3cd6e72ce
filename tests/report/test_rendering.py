"""Rendering in other processes: the same bytes, whatever becomes of them."""

from __future__ import annotations

import multiprocessing.spawn
import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import synthetic
from matplotlib.figure import Figure
from robustode.bench.report import rendering, report
from robustode.bench.report.rendering import (
    Drawn,
    Figures,
    Rendered,
    Words,
    render_here,
    render_nothing,
    rendering_in_processes,
)
from robustode.bench.report.report import write_report
from robustode.bench.report.style import house_style
from test_report import contents, small

RESULTS = Path(__file__).parents[2] / "results"
KINDS = {
    "accuracy", "contraction", "critical", "energy", "examples", "gap", "heatmap", "rate", "sandwich",
    "sensitivity", "tradeoff",
}  # fmt: skip
"""First words of the figures of the published folders."""


@pytest.fixture(autouse=True)
def _style() -> Iterator[None]:
    with house_style():
        yield


@pytest.fixture
def started(monkeypatch) -> list[rendering.Worker]:
    """The processes, as they are started."""
    begin, workers = rendering._start, []
    monkeypatch.setattr(rendering, "_start", lambda count: workers.extend(begin(count)) or workers[:])
    return workers


@pytest.fixture
def here(monkeypatch) -> list[Figure]:
    """The figures that this process renders itself; none is taken back from a worker."""
    both, figures = rendering._both, []
    monkeypatch.setattr(rendering, "_both", lambda figure: figures.append(figure) or both(figure))
    monkeypatch.setattr("concurrent.futures.Future.cancel", lambda _: False)
    return figures


def figures(count: int) -> Figures:
    return [({"name": str(n)}, partial(drawing, n)) for n in range(count)]


def drawing(n: int) -> Figure:
    figure = Figure(figsize=(2, 1.5), layout="constrained")
    ax = figure.subplots()
    ax.plot([0, n + 1], [n, 0], marker="o", label="a line")
    ax.fill_between([0, 1], [0, n], alpha=0.2)
    ax.set(title=f"{n} ℓ∞", xlabel="σ")
    figure.legend(loc="outside upper center")
    return figure


def with_workers(count: int, asked: Figures) -> list[tuple[Words, Drawn]]:
    with rendering_in_processes(count) as render:
        return render(asked)()


def test_workers_give_the_same_bytes_in_the_same_order(started):
    alone = render_here(figures(6))()
    assert [words["name"] for words, _ in alone] == list("012345")
    assert len({svg for _, (svg, _) in alone}) == len({png for _, (_, png) in alone}) == 6
    assert with_workers(2, figures(6)) == alone
    assert len(started) == 2
    assert all(worker.process.exitcode is not None for worker in started), "left behind"


def test_a_report_of_many_records_is_rendered_elsewhere_alike(tmp_path: Path, monkeypatch, started, here):
    folder = synthetic.write(tmp_path, small())
    write_report(folder)
    alone, count = contents(folder / "report"), len(here)
    assert not started
    assert count >= 4
    monkeypatch.setattr(report, "MANY", 1)
    monkeypatch.setattr(rendering, "count_cores", lambda: 2)
    write_report(folder)
    assert contents(folder / "report") == alone
    assert (len(started), len(here)) == (1, count)


def test_every_kind_of_figure_can_be_sent():
    """What cannot be sent is rendered here, which takes longer and looks the same."""
    names = []

    def send(figures: Figures) -> Rendered:
        made = [(words, pickle.dumps(draw())) for words, draw in figures]
        names.extend(words["name"] for words, _ in made)
        return lambda: [(words, (b"", b"")) for words, _ in made]

    for folder in (RESULTS / "digits", RESULTS / "sweep"):
        report._make(folder, send)
    kinds = {name.split("-", 1)[1].split("-")[0] for name in names}
    assert kinds == KINDS


def prints(_, figure: Figure) -> Drawn:
    print("noise", flush=True)
    return rendering._both(figure)


def ends(*_: object) -> Drawn:
    raise SystemExit


def unsendable(_, figure: Figure):
    return lambda: figure


@pytest.mark.parametrize(("draw", "rendered"), [(prints, 0), (ends, 3), (unsendable, 3)])
def test_what_a_worker_fails_at_is_rendered_here(draw, rendered, monkeypatch, started, here):
    monkeypatch.setattr(rendering, "_draw", draw)
    drawn = with_workers(1, figures(3))
    assert len(here) == rendered
    assert drawn == render_here(figures(3))()
    assert started[0].process.exitcode is not None


def test_a_worker_that_ends_at_once_changes_nothing(monkeypatch, started, here):
    monkeypatch.setattr(rendering, "_warm_up", ends)
    assert with_workers(1, figures(2)) == render_here(figures(2))()
    assert len(here) == 4


@pytest.mark.parametrize("interpreter", [None, b"", b"/nowhere/python"])
def test_without_an_interpreter_to_start_everything_is_rendered_here(interpreter, monkeypatch, here):
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", interpreter)
    with rendering_in_processes(2) as render:
        assert (render is render_here) == (not interpreter)
        render(figures(2))()
    assert len(here) == 2


def test_a_figure_that_cannot_be_sent_is_rendered_here(started, here):
    figure = drawing(0)
    figure.axes[0].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    drawn = with_workers(1, [({"name": "0"}, lambda: figure)])
    assert here == [figure]
    assert drawn[0][1][0].startswith(b"<?xml")


@pytest.mark.parametrize(
    ("text", "error"), [(r"$\frac{1}$", "Expected"), ("\u4e2d", "Glyph 20013")], ids=["error", "warning"]
)
def test_a_figure_says_here_what_is_wrong_with_it(text, error, started):
    bad = Figure()
    bad.text(0.5, 0.5, text)
    with pytest.raises((ValueError, UserWarning), match=error):
        with_workers(1, [({"name": "bad"}, lambda: bad), *figures(1)])
    assert started[0].process.exitcode is not None


def test_on_one_core_nobody_is_asked_for_help(monkeypatch, started):
    for cores, count in ((1, 0), (2, 1), (64, rendering.MOST)):
        started.clear()
        monkeypatch.setattr(rendering, "count_cores", lambda cores=cores: cores)
        with rendering_in_processes() as render:
            assert (render is render_here) == (cores == 1)
        assert len(started) == count


def test_nothing_is_drawn_for_who_wants_words_alone():
    asked = [(words, pytest.fail) for words, _ in figures(2)]
    assert render_nothing(asked)() == [({"name": "0"}, (b"", b"")), ({"name": "1"}, (b"", b""))]
