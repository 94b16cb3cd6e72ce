"""What the page is made of: curves, citations, commands, the leaderboard's cells, audits."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from robustode import __version__
from robustode.bench.audits.audit_record import SeedResult
from robustode.bench.audits.sheet import Sheet
from robustode.bench.records.headline import Headline
from robustode.bench.records.latest import entry
from robustode.bench.records.record import Record
from robustode.bench.report import report as report_module
from robustode.bench.report.figures import labelled
from robustode.bench.report.html import page as page_module
from robustode.bench.report.html.audit_lines import audit_badge, audit_lines
from robustode.bench.report.html.chart_data import chart_data, on_dark
from robustode.bench.report.html.citation import bibtex, linked, own_bibtex
from robustode.bench.report.html.leaderboard_table import evidence, flags, grid
from robustode.bench.report.html.model_details import certificates
from robustode.bench.report.html.reproduce_command import command
from robustode.bench.report.html.template import embedded, script
from robustode.bench.report.leaderboard.leaderboard import leaderboard
from robustode.bench.report.report import write_report
from robustode.bench.report.statistics import COLUMNS, summarise
from robustode.bench.report.style import _COLOURS, _CORE, luminance

AUDITS = (
    SeedResult(name="masking", title="Gradient masking", seed=0, verdict="flag", value=0.031, threshold=0.01,
            sentence="Square finds 3.1 points more.", arrays={"x": np.arange(3.0), "y": np.arange(3.0)}),
    SeedResult(name="batch", seed=0, verdict="pass", sentence="Alone as in a batch."),
    SeedResult(name="adjoint", seed=0, verdict="not applicable", sentence=""),
)  # fmt: skip
EXPLAINED = (dataclasses.replace(AUDITS[0], exempt="it says why"), *AUDITS[1:])


def anchors(board: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    keys = board[["dataset", "model", "recipe"]].itertuples(index=False, name=None)
    return {key: "-".join(key) for key in keys}


# --- curves -------------------------------------------------------------------------------------


def test_curves_are_those_of_the_summary():
    failures = {("node", "pgd-linf", 0.05): synthetic.FAILURE}
    made = synthetic.records(
        ("node", "resnet"), samples=40, threats=("gaussian", "pgd-linf"), failures=failures
    )
    summary, board = summarise(made), labelled(leaderboard(made, synthetic.HEADLINE))
    (data,) = chart_data(summary, board, anchors(board))
    assert data["name"] == "digits"
    assert [panel["title"] for panel in data["panels"]] == ["Worst case ℓ∞", "PGD ℓ∞", "Gaussian noise"]
    assert [panel["x"] for panel in data["panels"]] == [[0, 0.02, 0.05, 0.1, 0.2]] * 2 + [
        [0, 0.05, 0.1, 0.2, 0.3]
    ]
    assert [row["label"] for row in data["rows"]] == list(board["label"])
    for row in data["rows"]:
        values, low, high, samples, seeds = row["curves"]["1"]
        assert (samples, seeds) == (40, 1) or row["label"] == "node"
        for x, value, bottom, top in zip(data["panels"][1]["x"], values, low, high, strict=True):
            threat = ("clean" if x == 0 else "pgd-linf", x)
            found = summary[(summary["model"] == row["label"]) & (summary["statistic"] == "accuracy")]
            found = found[(found["threat"] == threat[0]) & (found["strength"] == threat[1])]
            if found.empty:
                assert (row["label"], x, value) == ("node", 0.05, None), "a failed cell is a gap"
            else:
                (expected,) = found[["value", "low", "high"]].to_numpy()
                assert [value, bottom, top] == pytest.approx(100 * expected, abs=0.0051)


def test_curves_say_what_share_has_no_answer():
    made = synthetic.records(("node", "resnet"), samples=40, threats=("gaussian", "pgd-linf"))
    silent = synthetic.without_answers(made, ("node",))
    board = labelled(leaderboard(made, synthetic.HEADLINE))
    summary = summarise(silent)
    (data,) = chart_data(summary, board, anchors(board))
    (before,) = chart_data(summarise(made), board, anchors(board))
    assert data["panels"] == before["panels"]
    shares = summary[summary["statistic"] == "no_answer"]
    assert set(shares["threat"]) == {"pgd-linf", "gaussian", "worst-case"}
    for row, old in zip(data["rows"], before["rows"], strict=True):
        for number, curve in row["curves"].items():
            assert curve[:5] == old["curves"][number]
            if row["label"] == "resnet":
                assert len(curve) == 5
                continue
            threat = ("worst-case", "pgd-linf", "gaussian")[int(number)]
            for x, share, value in zip(data["panels"][int(number)]["x"], curve[5], curve[0], strict=True):
                at = shares[(shares["threat"] == ("clean" if x == 0 else threat)) & (shares["strength"] == x)]
                assert share == pytest.approx(100 * at["value"].sum(), abs=0.0051)
                assert 0 <= share <= 100 - value + 0.01


def test_an_attack_asked_at_one_strength_has_no_curve_and_the_worst_case_has_one():
    made = [
        r
        for r in synthetic.records(("node",), samples=20, threats=("gaussian", "pgd-linf"))
        if r.cell.threat not in ("gaussian", "pgd-linf") or r.cell.strength == 0.1
    ]
    board = labelled(leaderboard(made, synthetic.HEADLINE))
    (data,) = chart_data(summarise(made), board, anchors(board))
    assert [(panel["title"], panel["x"]) for panel in data["panels"]] == [
        ("Worst case ℓ∞", [0, 0.1]),
        ("Gaussian noise", [0, 0.1]),
    ]


def test_a_value_that_a_training_seed_lacks_is_a_gap():
    made = synthetic.records(("node",), seeds=(0, 1), samples=20, threats=("gaussian",))
    lost = [r for r in made if (r.cell.training_seed, r.cell.threat, r.cell.strength) != (1, "gaussian", 0.2)]
    board = labelled(leaderboard(lost, synthetic.HEADLINE))
    (data,) = chart_data(summarise(lost), board, anchors(board))
    values, *_, samples, seeds = data["rows"][0]["curves"]["0"]
    assert [value is None for value in values] == [False, False, False, True, False]
    assert (samples, seeds) == ([20, 20, 20, 0, 20], [2, 2, 2, 0, 2]) or (samples, seeds) == (20, 2)


@pytest.mark.parametrize("colour", [*_COLOURS, *(look[0] for look in _CORE.values())])
def test_colours_stand_out_from_the_dark_background(colour):
    background = luminance(to_rgb("#1b1f23"))
    assert (luminance(to_rgb(on_dark(colour))) + 0.05) / (background + 0.05) >= 3.99


def test_luminance_of_black_and_white():
    assert luminance([0, 0, 0]) == 0
    assert luminance([1, 1, 1]) == pytest.approx(1)


# --- citations ------------------------------------------------------------------------------------


def test_bibtex_says_what_the_reference_says_and_no_more():
    entry = bibtex(
        "ch-node", "Zakwan, Xu, Ferrari-Trecate, IEEE Control Systems Letters 2022, arXiv 2203.11805"
    )
    assert entry.startswith("@misc{ch-node,\n")
    assert "author        = {Zakwan and Xu and Ferrari-Trecate}" in entry
    assert "year          = {2022}" in entry
    assert "eprint        = {2203.11805}" in entry
    assert "url           = {https://arxiv.org/abs/2203.11805}" in entry
    assert "title" not in entry


@pytest.mark.parametrize(
    ("reference", "authors", "year", "eprint"),
    [
        ("Chen et al., NeurIPS 2018", "Chen and others", "2018", None),
        ("A. Author, m, ICLR 2021, https://arxiv.org/abs/2106.00001", "A. Author", "2021", "2106.00001"),
        ("van der Schaft, Springer 2017, doi 10.1007/978-3-319-49992-5.", "van der Schaft", "2017", None),
        ("A whole sentence about nothing in particular", None, None, None),
        ("arXiv 2203.11805", None, None, "2203.11805"),
        ("He, Zhang, Ren, Sun, CVPR 2016", "He and Zhang and Ren and Sun", "2016", None),
        ("Haber, Ruthotto, Inverse Problems 34, 2017", "Haber and Ruthotto", "2017", None),
    ],
)  # fmt: skip
def test_fields_of_a_reference(reference, authors, year, eprint):
    entry = bibtex("m", reference)
    for name, value in (("author", authors), ("year", year), ("eprint", eprint)):
        found = re.search(rf"^  {name} += {{(.*)}},$", entry, re.MULTILINE)
        assert (found.group(1) if found else None) == value


def test_several_papers_are_several_entries():
    both = bibtex("resnet", "He, CVPR 2016; Haber, arXiv 1705.03341")
    assert re.findall(r"@misc{(.*?),", both) == ["resnet-1", "resnet-2"]
    assert bibtex("m", "") == ""


@given(st.text(max_size=200))
def test_braces_of_an_entry_balance_whatever_the_reference_is(reference):
    entry = bibtex("m", reference)
    bare = entry.replace(r"\{", "").replace(r"\}", "")
    assert bare.count("{") == bare.count("}")


def test_identifiers_in_a_reference_are_links():
    found = linked("Xu, arXiv 2203.11805; doi 10.1007/978-3. See https://example.org/a.")
    assert [piece for piece in found if piece[1]] == [
        ("arXiv 2203.11805", "https://arxiv.org/abs/2203.11805"),
        ("10.1007/978-3", "https://doi.org/10.1007/978-3"),
        ("https://example.org/a", "https://example.org/a"),
    ]
    assert linked("javascript:alert(1) http://plain") == [("javascript:alert(1) http://plain", "")]


@given(st.text(max_size=80) | st.from_regex(r"[a ,.;]*(arXiv 1234\.56789|10\.1234/x|https://a)[ ,.;b]*"))
def test_a_linked_reference_loses_no_letter(reference):
    assert "".join(text for text, _ in linked(reference)) == reference


def test_own_entry_is_the_citation_file():
    entry = own_bibtex()
    assert f"version       = {{{__version__}}}" in entry
    assert "author        = {{The robustode developers}}" in entry
    assert re.search(r"year +  ?= {20\d\d}", entry)


# --- the command ----------------------------------------------------------------------------------


def of(model: str = "node", seeds: tuple[int, ...] = (0,), **changes: object) -> list[Record]:
    return synthetic.records((model,), seeds=seeds, samples=10, threats=("gaussian",), **changes)  # type: ignore[arg-type]


def test_the_command_names_preset_model_and_seeds():
    line, note = command(Headline(preset="quick"), of(seeds=(0, 1, 2)))
    assert line == "robustode run --preset quick --models node --seeds 3 --out again"
    assert "cpu: Intel Xeon" in note


def test_the_command_says_what_it_cannot_know():
    assert command(Headline(), of())[0] == ""
    line, note = command(Headline(preset="mine"), of(seeds=(2,)))
    assert line == "robustode run --preset mine.toml --models node --seed 2 --out again"
    assert "mine.toml" in note
    assert "seeds 2" in note
    card = {"summary": "x' = tanh(x)", "file": "my_node.py:build", "given": {"file": "my.safetensors"}}
    given = [dataclasses.replace(r, card=card) if r.card else r for r in of()]
    line, note = command(Headline(preset="quick"), given)
    assert (
        line == "robustode run --preset quick --models my_node.py:build --weights my.safetensors --out again"
    )
    assert "my_node.py" in note
    assert "checkpoint" in note
    made = [dataclasses.replace(r, card={"summary": "my_node.py:build"}) if r.card else r for r in of()]
    line, note = command(Headline(preset="quick"), made)
    assert line == "robustode run --preset quick --models my_node.py:build --seeds 1 --out again"
    assert "my_node.py" in note


# --- the leaderboard's cells ------------------------------------------------------------------------


def table(made: list[Record], audits: dict[str, Sheet] | None = None, **columns: object) -> dict[str, object]:
    summary, headline = summarise(made), Headline(reported={"gaussian": 0.2, "linf": 0.1}, rank="linf")
    rows = {entry(record.cell) for record in made}
    sheets = {row: (audits or {}).get(row[1], Sheet(results=[])) for row in rows}
    board = labelled(leaderboard(made, headline, summary, sheets)).assign(**columns)
    badges = {key: audit_badge((audits or {}).get(key[1])) for key in anchors(board)}
    return grid("digits", board, evidence(summary), anchors(board), badges)


def cell_of(found: dict, row: int, name: str) -> dict:
    at = [c["name"] for c in found["columns"]].index(name)
    return found["lines"][row]["cells"][at]


def test_every_accuracy_says_how_many_samples_and_seeds_are_behind_it():
    made = synthetic.records(("node", "resnet"), seeds=(0, 1), samples=30, threats=("gaussian", "pgd-linf"))
    found = table(made)
    fractions = [c["name"] for c in found["columns"] if c["ranks"]]
    assert fractions == ["clean", "gaussian@0.2", "linf@0.1"]
    for name in fractions:
        assert cell_of(found, 0, name)["tip"].startswith("30 samples, 2 seeds")
    assert cell_of(found, 0, "parameters")["tip"] == ""


def test_a_spread_column_is_shown_and_the_first_rank_is_the_headlines():
    made = synthetic.records(("node", "resnet"), samples=30, threats=("pgd-linf",))
    found = table(made, **{"clean_spread": 0.0123, "rank@clean": [1, 1]})
    assert cell_of(found, 0, "clean")["tip"].endswith("standard deviation over seeds 1.2")
    assert found["rank"] == "linf@0.1"
    assert found["ranks"]["clean"] == [1, 1]


def test_flags_that_any_row_carries():
    failures = {("node", "pgd-linf", 0.1): synthetic.FAILURE}
    made = synthetic.records(
        ("node", "resnet"), samples=30, threats=("gaussian", "pgd-linf"), failures=failures
    )
    found = table(made)
    assert {line["label"]: line["flags"] for line in found["lines"]} == {
        "node": ["incomplete"],
        "resnet": ["expected"],
    }
    assert [name for name, _ in flags([found])] == ["expected", "incomplete"]


# --- audits -----------------------------------------------------------------------------------------


def test_what_audits_come_to():
    assert audit_badge(None) is None
    assert audit_badge(Sheet(results=())) is None
    flagged = audit_badge(Sheet(results=AUDITS))
    assert (flagged.flagged, flagged.incomplete) == (True, False)
    assert (flagged.text, flagged.tip) == ("1 passed, 1 flagged", "flagged: masking")
    assert flagged.status == "flagged: masking"
    passed = audit_badge(Sheet(results=AUDITS[1:]))
    assert (passed.flagged, passed.text, passed.tip, passed.status) == (False, "1 passed", "2 checks", "")
    explained = audit_badge(Sheet(results=EXPLAINED[:1]))
    assert (explained.flagged, explained.text) == (False, "1 explained")
    assert explained.tip == "explained: masking (it says why)"
    few = audit_badge(Sheet(results=AUDITS, done=["masking"], missing=["finite"]))
    assert few.incomplete
    assert few.tip.endswith("not asked: finite")
    assert few.text == "1 of 2 model checks, 1 passed, 1 flagged"
    assert few.status == "flagged: masking", "the text below the name is short"
    failed = dataclasses.replace(AUDITS[1], verdict="failed")
    assert audit_badge(Sheet(results=[failed])).flagged, "a check that cannot be run counts against"
    assert not audit_badge(Sheet(results=AUDITS[2:])).flagged


def test_lines_of_audits():
    flag, passed, other = audit_lines(Sheet(results=AUDITS))
    assert (flag.value, flag.threshold, flag.counts_against) == ("0.031", "0.01", True)
    assert flag.plot.startswith("data:image/svg+xml,")
    assert (passed.title, passed.value, passed.plot) == ("batch", "", "")
    assert (other.verdict, other.counts_against) == ("not applicable", False)
    explained = audit_lines(Sheet(results=EXPLAINED))[0]
    assert (explained.verdict, explained.explanation) == ("explained flag", "it says why")
    assert not explained.counts_against


def test_a_flagged_row_is_below_the_others_and_says_why():
    made = synthetic.records(("node", "resnet"), samples=30, threats=("gaussian", "pgd-linf"))
    found = table(made, {"node": Sheet(results=AUDITS), "resnet": Sheet(results=AUDITS[1:])})
    rows = {line["label"]: line for line in found["lines"]}
    assert (rows["node"]["below"], rows["node"]["status"]) == (1, "flagged: masking")
    assert (rows["resnet"]["below"], rows["resnet"]["status"]) == (0, "ok")
    assert [c["name"] for c in found["columns"]][:3] == ["rank", "model", "audits"]
    assert [name for name, _ in flags([found])] == ["audit", "expected"]


@pytest.mark.parametrize(("flagged", "unflagged"), [(0.9, 0.8), (0.7, 0.8)])
def test_no_value_that_another_row_beats_is_bold(flagged: float, unflagged: float):
    made = synthetic.records(("node", "resnet"), samples=30, threats=("gaussian", "pgd-linf"))
    audits = {"node": Sheet(results=AUDITS), "resnet": Sheet(results=AUDITS[1:])}
    found = table(made, audits, **{"gaussian@0.2": [unflagged, flagged]})
    assert [line["label"] for line in found["lines"]] == ["resnet", "node"]
    assert cell_of(found, 0, "gaussian@0.2")["best"] is (unflagged > flagged)
    assert not cell_of(found, 1, "gaussian@0.2")["best"]


def test_p_values_stand_with_the_rank():
    made = synthetic.records(("node", "resnet"), samples=30, threats=("gaussian", "pgd-linf"))
    found = table(made, p_leader=[np.nan, 0.0312], p_above=[np.nan, 0.5])
    assert cell_of(found, 0, "rank")["tip"] == ""
    assert (
        cell_of(found, 1, "rank")["tip"]
        == "p = 0.031 against the rank's first row, p = 0.5 against the row above"
    )


def test_a_row_that_was_not_asked_says_so_and_stands_where_it_stood():
    made = synthetic.records(("node", "resnet"), samples=30, threats=("gaussian", "pgd-linf"))
    found = table(made, {"node": Sheet(results=[], missing=["finite"])})
    rows = {line["label"]: line for line in found["lines"]}
    assert (rows["node"]["below"], rows["node"]["status"]) == (0, "ok")
    assert cell_of(found, list(rows).index("node"), "audits")["text"] == "not audited"
    assert (rows["node"]["flags"], rows["resnet"]["below"]) == (["unaudited"], 0)
    assert ("unaudited", "not fully audited") in flags([found])


def test_audits_stand_on_the_page(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(report_module, "draw_all", lambda *_, render: lambda: [])
    folder = synthetic.write(tmp_path, of("node") + of("resnet"))
    plain = write_report(folder).page.read_text(encoding="utf-8")
    assert "Gradient masking" not in plain
    assert plain.count(">not audited<") == 2
    assert '<option value="audit">' not in plain
    audited = {("digits", "node", "quick"): Sheet(results=AUDITS)}
    monkeypatch.setattr(
        report_module, "render", lambda **given: page_module.render(**{**given, "audited": audited})
    )
    text = write_report(folder).page.read_text(encoding="utf-8")
    assert 'data-name="audits"' in text
    assert '<option value="audit">flagged by an audit</option>' in text
    assert "Square finds 3.1 points more." in text
    assert "not applicable" in text
    assert re.search(r'data-label="node"[^>]*data-flags="audit', text)


# --- the data in the page ---------------------------------------------------------------------------


def test_embedded_data_cannot_end_its_element():
    data = {"name": "</script><script>alert(1)</script><!--", "symbol": "ε", "missing": None}
    text = str(embedded(data))
    assert "<" not in text
    assert json.loads(text) == data
    with pytest.raises(ValueError, match="JSON"):
        embedded(float("nan"))


def test_the_script_is_under_its_licence_and_whole():
    text, digest = script()
    assert text.startswith("/*\nThe MIT License")
    assert "</script" not in text
    assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", digest)


def test_certificates_say_which_samples_they_are_about():
    rows = [
        ("digits", "pixel", "m", "r", "lipschitz", "l2", 0.25, name, 0.5, 0.4, 0.6, samples, 2)
        for name, samples in (("certified_accuracy", 100), ("certified_accuracy_full", 450))
    ]
    (first, second) = certificates(pd.DataFrame(rows, columns=list(COLUMNS)))["digits", "m", "r"]
    assert (first["what"], first["how"], first["value"]) == ("ℓ₂, ε = 0.25", "Lipschitz bound", "50.0")
    assert (first["over"], first["samples"]) == ("attacked samples", "100")
    assert (second["over"], second["samples"]) == ("all test samples with a certificate", "450")
