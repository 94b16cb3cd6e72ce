"""Rendering with other processes' help: the same bytes, whatever becomes of the helpers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import matplotlib as mpl
import pytest
import synthetic
from matplotlib.figure import Figure
from robustode.bench import rendering, report
from robustode.bench.rendering import Drawn, Figures, Words, helped, render_here, render_nothing
from robustode.bench.report import write_report
from robustode.bench.style import RC
from test_report import contents, small


@pytest.fixture(autouse=True)
def house_style():
    with mpl.rc_context(RC):
        yield


@pytest.fixture
def started(monkeypatch) -> list[subprocess.Popen[bytes]]:
    """The helpers, as they are started."""
    begin, processes = rendering._start, []
    monkeypatch.setattr(rendering, "_start", lambda: processes.append(begin()) or processes[-1])
    return processes


def figures(count: int) -> Figures:
    for n in range(count):
        figure = Figure(figsize=(2, 1.5), layout="constrained")
        ax = figure.subplots()
        ax.plot([0, n + 1], [n, 0], marker="o", label="a line")
        ax.fill_between([0, 1], [0, n], alpha=0.2)
        ax.set(title=f"{n} ℓ∞", xlabel="σ")
        figure.legend(loc="outside upper center")
        yield {"name": str(n)}, figure


def with_helpers(count: int, asked: Figures) -> list[tuple[Words, Drawn]]:
    with helped(count) as render:
        return render(asked)


def test_helpers_give_the_same_bytes_in_the_same_order(started):
    alone = render_here(figures(6))
    assert [words["name"] for words, _ in alone] == list("012345")
    assert len({svg for _, (svg, _) in alone}) == len({png for _, (_, png) in alone}) == 6
    assert with_helpers(2, figures(6)) == alone
    assert len(started) == 2
    assert all(process.returncode is not None for process in started), "left behind"


def test_a_helper_renders_every_figure_of_a_report_as_this_process_does(tmp_path: Path, monkeypatch, started):
    """Folders alike to the byte, and more than one figure rendered elsewhere."""
    folder = synthetic.write(tmp_path, small(seeds=(0, 1)))
    write_report(folder)
    alone = contents(folder / "report")
    assert not started
    monkeypatch.setattr(report, "MANY", 1)
    monkeypatch.setattr(rendering, "_cores", lambda: 2)
    here: list[Figure] = []
    # Nothing is taken back from the helper, so that each figure goes through it.
    monkeypatch.setattr(rendering, "_settled", lambda figure, asked: asked.result() or here.append(figure))
    write_report(folder)
    assert contents(folder / "report") == alone
    assert (len(started), here) == (1, [])


@pytest.mark.parametrize("program", ["raise SystemExit", "print('not a pickle', flush=True); input()"])
def test_what_a_helper_fails_at_is_rendered_here(program, monkeypatch, started):
    monkeypatch.setattr(rendering, "_PROGRAM", program)
    assert with_helpers(1, figures(3)) == render_here(figures(3))
    assert started[0].returncode is not None


def test_a_figure_that_cannot_be_drawn_says_so_itself(started):
    bad = Figure()
    bad.text(0.5, 0.5, r"$\frac{1}$")
    with pytest.raises(ValueError, match="Expected"):
        with_helpers(1, [({"name": "bad"}, bad), *figures(1)])
    assert started[0].returncode is not None


def test_on_one_core_nobody_is_asked_for_help(monkeypatch, started):
    for cores, count in ((1, 0), (2, 1), (64, rendering.MOST)):
        started.clear()
        monkeypatch.setattr(rendering, "_cores", lambda cores=cores: cores)
        with helped() as render:
            assert (render is render_here) == (cores == 1)
        assert len(started) == count


def test_nothing_is_rendered_for_who_wants_words_alone():
    assert render_nothing(figures(2)) == [({"name": "0"}, (b"", b"")), ({"name": "1"}, (b"", b""))]
