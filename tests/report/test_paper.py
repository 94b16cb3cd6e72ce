"""Figures and a table for a paper: chosen models, threats, figures, columns, size, style."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic
from matplotlib.figure import Figure
from robustode.bench.cli.main import main
from robustode.bench.records.latest import current
from robustode.bench.report.canvas import grid, panels
from robustode.bench.report.leaderboard.columns import board_columns
from robustode.bench.report.leaderboard.leaderboard import leaderboard
from robustode.bench.report.leaderboard.shown_fields import best, fields, single_best
from robustode.bench.report.plots.robustness_throughput import draw_tradeoff
from robustode.bench.report.statistics import summarise
from robustode.bench.report.style import styles


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    made = synthetic.records(
        models=("node", "ch-node", "resnet"), samples=30, threats=("gaussian", "pgd-linf", "pgd-l2")
    )
    return synthetic.write(tmp_path_factory.mktemp("paper"), made)


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def report(results: Path, *options: str) -> int:
    return main(["report", "--out", str(results), *options])


def test_chosen_figures_of_chosen_models_and_threats_in_chosen_formats(results, capsys) -> None:
    assert report(results, "--models", "node,ch-node", "--threats", "l2", "--figures", "accuracy",
                  "--width", "3.4in", "--format", "pdf,svg,png", "--dpi", "100") == 0  # fmt: skip
    written = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    stems = ["digits-accuracy.pdf", "digits-accuracy.svg", "digits-accuracy.png"]
    assert written == [*stems, "leaderboard.tex"]
    assert not (results / "report").exists(), "the report is another thing"
    svg = (results / "paper" / "digits-accuracy.svg").read_text()
    words = " ".join(re.findall(r">([^<>]+)</text>", svg))
    assert "ch-node" in words, "text stays text"
    assert "resnet" not in words
    assert "PGD ℓ₂" in words
    assert "Gaussian" not in words
    png = (results / "paper" / "digits-accuracy.png").read_bytes()
    assert int.from_bytes(png[16:20], "big") == 340
    pdf = (results / "paper" / "digits-accuracy.pdf").read_bytes()
    assert b"/FontFile2" in pdf, "TrueType, which drawing programs edit"
    assert b"CreationDate" not in pdf
    before = contents(results / "paper")
    assert report(results, "--models", "node,ch-node", "--threats", "l2", "--figures", "accuracy",
                  "--width", "3.4in", "--format", "pdf,svg,png", "--dpi", "100") == 0  # fmt: skip
    assert contents(results / "paper") == before


def test_a_style_file_is_applied_over_ours(results, tmp_path) -> None:
    style = tmp_path / "mine.mplstyle"
    style.write_text("font.size: 6  # small\naxes.edgecolor: 123456\nsavefig.bbox: tight\n")
    assert report(results, "--figures", "accuracy", "--format", "svg,png", "--style", str(style),
                  "--width", "80mm", "--dpi", "254") == 0  # fmt: skip
    assert "#123456" in (results / "paper" / "digits-accuracy.svg").read_text()
    png = (results / "paper" / "digits-accuracy.png").read_bytes()
    assert int.from_bytes(png[16:20], "big") == 800, "as wide as asked, whatever the style says"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "nodes"], "unknown model 'nodes': did you mean node"),
        (["--threats", "pgd-l3"], "unknown threat 'pgd-l3'"),
        (["--figures", "acuracy"], "unknown figure 'acuracy': did you mean accuracy"),
        (["--figures", "accuracy,energy"], "no figure energy"),
        (["--format", "bmp"], "unknown format 'bmp'"),
        (["--columns", "linf@7"], "unknown column 'linf@7'"),
        (["--dpi", "0"], "--dpi must be from 30 to 2400, not 0"),
        (["--models", ""], "--models names none"),
        (["--style", "nowhere.mplstyle"], "--style nowhere.mplstyle cannot be read"),
    ],
)
def test_a_wrong_option_is_one_line_and_nothing_is_written(results, capsys, options, message) -> None:
    before = contents(results)
    assert report(results, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert contents(results) == before


def test_a_length_without_a_unit_is_refused(results, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        report(results, "--width", "3.4")
    assert "'3.4' is no length" in capsys.readouterr().err


@pytest.mark.parametrize(("line", "what"), [("lines.widht: 2", "'lines.widht'"), ("font.size: big", "style")])
def test_a_wrong_style_is_one_line(results, tmp_path, capsys, line, what) -> None:
    style = tmp_path / "wrong.mplstyle"
    style.write_text(f"font.size: 7\n{line}\n")
    assert report(results, "--figures", "accuracy", "--style", str(style)) == 2
    error = capsys.readouterr().err
    assert what in error
    assert error.count("\n") == 1


def test_a_file_that_somebody_changed_is_not_overwritten(results, capsys) -> None:
    options = ["--figures", "heatmap", "--format", "svg"]
    assert report(results, *options) == 0
    figure = results / "paper" / "digits-heatmap.svg"
    figure.write_text("edited by hand")
    assert report(results, *options) == 2
    assert "is not as robustode wrote it" in capsys.readouterr().err
    assert figure.read_text() == "edited by hand"
    figure.unlink()


def test_a_table_of_chosen_columns_with_intervals_fits_a_page(results) -> None:
    assert report(results, "--columns", "seeds,clean,linf@0.1", "--intervals", "--figures", "heatmap") == 0
    table = (results / "paper" / "leaderboard.tex").read_text()
    assert r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%" in table
    head = next(line for line in table.splitlines() if line.startswith("Model &"))
    assert head == r"Model & Seeds & Clean & Worst case $\ell_\infty$ \\"
    rows = table.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(rows) == 2 * 3
    assert re.fullmatch(r" &  & (\{\\scriptsize \[\d+\.\d, \d+\.\d\]\} ?&? ?){2}\\\\", rows[1])
    assert table.count("{") == table.count("}")


def shown_board(busy: str = "") -> pd.DataFrame:
    made = synthetic.records(models=("node", "ch-node"), samples=30, threats=("pgd-linf",))
    board = leaderboard(current(made)[0], synthetic.HEADLINE).assign(status="ok", audit_flags="")
    if busy:
        board["busy"] = ["", busy] if board["model"].iloc[1] == "node" else [busy, ""]
    return board


def test_what_is_shared_busy_or_nothing_is_not_bold() -> None:
    board = shown_board()
    clean = next(f for f in fields(board) if f.name == "clean")
    board["clean"] = [0.5, 0.9]
    assert single_best(board, clean) == {1}
    wide = pd.concat([board, board.tail(1)], ignore_index=True)
    wide.attrs = board.attrs
    assert len(best(wide, clean)) == 2
    assert single_best(wide, clean) == set(), "shared"
    board["clean"] = [0.0001, 0.0004]
    assert single_best(board, clean) == set(), "0.0 beside 0.0"
    rate = next(f for f in fields(board) if f.kind == "rate")
    board[rate.name] = [10.0, 20.0]
    assert single_best(board, rate) == {1}
    board["busy"] = ["", rate.name]
    assert single_best(board, rate) == set(), "busy"


def test_a_timing_on_a_busy_machine_is_marked_in_its_figure() -> None:
    device = "cpu: Intel Xeon"
    board = shown_board(f"inference@{device}").assign(label=lambda rows: rows["model"])
    made = synthetic.records(models=("node", "ch-node"), samples=30, threats=("pgd-linf",))
    rates = summarise(made).assign(label=lambda rows: rows["model"])
    rates = rates[(rates["statistic"] == "throughput") & (rates["threat"] == "inference")]
    by = board_columns(board).ranking.name
    draw = draw_tradeoff(rates, board, by, "y", styles(["node", "ch-node"]), 5)
    texts = [text.get_text() for text in draw().findobj(lambda a: hasattr(a, "get_text"))]
    assert "node*" in texts
    assert "ch-node*" not in texts
    assert any("other work took more than 10% of the machine" in text for text in texts)
    draw = draw_tradeoff(rates, board.drop(columns="busy"), by, "y", styles(["node", "ch-node"]), 5)
    texts = [text.get_text() for text in draw().findobj(lambda a: hasattr(a, "get_text"))]
    assert not any("*" in text for text in texts)


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
@pytest.mark.parametrize("count", range(1, 14))
def test_no_panel_stands_alone_and_every_column_ends_with_a_labelled_one(count, columns) -> None:
    figure = Figure()
    axes = figure.subplots(-(-count // columns), columns, squeeze=False)
    found = panels(axes, count)
    assert len(found) == count
    assert sum(ax.get_visible() for ax in axes.flat) == count
    spans = [panel.ax.get_subplotspec() for panel in found]
    rows = [span.rowspan.start for span in spans]
    for row in set(rows):
        width = sum(len(span.colspan) for span in spans if span.rowspan.start == row)
        assert width >= 2 or columns == 1 or count == 1, "alone in a wider line"
    for column in range(columns):
        below = [p for p, span in zip(found, spans, strict=True) if column in span.colspan]
        assert [panel.bottom for panel in below] == [False] * (len(below) - 1) + [True] * bool(below)
    assert [panel.left for panel in found] == [rows.index(row) == i for i, row in enumerate(rows)]


def test_fewer_panels_stand_side_by_side_where_a_figure_is_narrow() -> None:
    assert [grid(3, 3.1, 0.5, width).columns for width in (None, 7.0, 3.4, 1.6)] == [3, 3, 2, 1]
    assert grid(3, 3.1, 0.5, None).width == pytest.approx(9.8)
    assert np.isclose(grid(3, 3.1, 0.5, 7.0).panel, 6.5 / 3)
