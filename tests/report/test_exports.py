"""The leaderboard for programs and for papers: JSON that keeps its schema, LaTeX that holds together."""

from __future__ import annotations

import copy
import json
import math
import re
from typing import Any

import pandas as pd
import pytest
import synthetic
from hypothesis import given
from hypothesis import strategies as st
from robustode.bench.records.headline import Headline
from robustode.bench.report.leaderboard.json_table import (
    SCHEMA_VERSION,
    leaderboard_json,
    leaderboard_schema,
    schema,
)
from robustode.bench.report.leaderboard.latex_table import latex
from robustode.bench.report.leaderboard.leaderboard import leaderboard
from robustode.bench.report.leaderboard.markdown_table import markdown
from robustode.bench.report.leaderboard.paper_link import paper_link
from robustode.bench.report.tex import tex_escaped

FAILURES = {("node", "pgd-linf", 0.1): synthetic.FAILURE}


def made(seeds: tuple[int, ...] = (0, 1), **changes: Any) -> pd.DataFrame:
    records = synthetic.records(
        models=("node", "resnet"),
        seeds=seeds,
        samples=30,
        threats=("gaussian", "pgd-linf"),
        devices=("cpu: A", "cuda: B"),
        failures=FAILURES,
        **changes,
    )
    return leaderboard(records, synthetic.HEADLINE)


def validator() -> Any:
    return pytest.importorskip("jsonschema").Draft202012Validator(schema())


@pytest.mark.parametrize(
    ("board", "headline"),
    [
        (made(), synthetic.HEADLINE),
        (made(seeds=(0,)), Headline()),
        (leaderboard([], Headline()), Headline()),
    ],
    ids=["seeds", "no plan", "no rows"],
)
def test_json_keeps_its_schema(board: pd.DataFrame, headline: Headline) -> None:
    check = validator()
    check.check_schema(schema())
    body = json.loads(leaderboard_json(board, headline))
    check.validate(body)
    assert len(body["rows"]) == len(board)
    assert body["schema_version"] == SCHEMA_VERSION == schema()["properties"]["schema_version"]["const"]


def test_the_published_schema_is_that_of_the_code() -> None:
    """Otherwise: write anew what python -m robustode.bench.report.leaderboard.json_table prints."""
    assert schema() == leaderboard_schema()


def test_schema_refuses_what_a_reader_could_not_use() -> None:
    check = validator()
    good = json.loads(leaderboard_json(made(), synthetic.HEADLINE))
    for path, value in (
        (("rows", 0, "accuracies", 0, "value"), "95.0"),
        (("rows", 0, "accuracies", 0, "value"), 95.0),
        (("rows", 0, "rank"), None),
        (("rows", 0, "updated"), "yesterday"),
        (("rows", 0, "surprise"), 1),
        (("schema_version",), 2),
    ):
        bad = copy.deepcopy(good)
        *way, last = path
        where = bad
        for step in way:
            where = where[step]
        where[last] = value
        assert not check.is_valid(bad), path


def test_json_says_what_the_leaderboard_says() -> None:
    board = made()
    rows = json.loads(leaderboard_json(board, synthetic.HEADLINE))["rows"]
    for row, (_, line) in zip(rows, board.iterrows(), strict=True):
        assert (row["model"], row["rank"], row["status"]) == (line["model"], line["rank"], line["status"])
        assert row["updated"] == "2026-01-01"
        for each in row["accuracies"]:
            for name, column in (("value", ""), ("low", "_low"), ("spread", "_spread")):
                value = line[each["column"] + column]
                expected = None if math.isnan(value) else pytest.approx(value, rel=1e-9)
                assert each[name] == expected
        assert {each["device"] for each in row["throughput"]} == {"cpu: A", "cuda: B"}
    by = {each["column"]: each for each in rows[1]["accuracies"]}
    assert rows[1]["model"] == "node"
    assert (by["linf@0.1"]["value"], by["linf@0.1"]["rank"]) == (None, None)
    assert (by["linf@0.1"]["kind"], by["linf@0.1"]["of"], by["linf@0.1"]["strength"]) == (
        "worst-case",
        "linf",
        0.1,
    )
    assert (by["gaussian@0.2"]["kind"], by["clean"]["of"]) == ("noise", None)
    assert rows[0]["expected_failures"] == ["batch-independence"]


def test_a_share_without_an_answer_is_in_the_table_and_the_json() -> None:
    records = synthetic.records(("node", "resnet"), samples=30, threats=("gaussian", "pgd-linf"))
    plain = leaderboard(records, synthetic.HEADLINE)
    board = leaderboard(synthetic.without_answers(records, ("node",)), synthetic.HEADLINE)
    names = ["gaussian@0.2_no_answer", "linf@0.1_no_answer"]  # all are correct as they are
    assert [name for name in board if name not in plain] == names
    assert board.drop(columns=names).equals(plain)
    body = json.loads(leaderboard_json(board, synthetic.HEADLINE))
    validator().validate(body)
    for row in body["rows"]:
        line = board[board["model"] == row["model"]].iloc[0]
        for each in row["accuracies"]:
            share = line.get(f"{each['column']}_no_answer", 0.0)
            assert each.get("no_answer", 0.0) == pytest.approx(share, rel=1e-9)
            assert ("no_answer" in each) == (row["model"] == "node" and each["column"] != "clean")
            assert each["value"] + share <= 1 + 1e-9
    assert "no_answer" not in leaderboard_json(plain, synthetic.HEADLINE)


def groups_balance(text: str) -> bool:
    """Whether every { that is not escaped has its }."""
    depth = 0
    for brace in re.findall(r"(?<!\\)(?:\\\\)*([{}])", re.sub(r"\\[{}]", "", text)):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


@given(st.text())
def test_any_text_is_escaped(text: str) -> None:
    done = tex_escaped(text)
    assert groups_balance(done)
    assert done == done.strip()
    assert "\n" not in done
    assert not re.search(r"(?<!\\)[%#&]", done)
    assert done.count("$") == done.count(r"\$") + 2 * len(re.findall(r"(?<!\\)\$\\", done))
    # Nothing but the commands that escaping itself writes.
    known = r"textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar"
    rest = re.sub(
        rf"\\(?:{known})\{{\}}|\\[{{}}&%$#_]|\$\\(?:ell_\\infty|ell_\d|varepsilon|sigma|pm)\$", "", done
    )
    assert not set(rest) & set('\\{}$&%#_~^<>|"')


def test_escaping_by_hand() -> None:
    assert tex_escaped(r"50% of $x_1 & {y}\z~^") == (
        r"50\% of \$x\_1 \& \{y\}\textbackslash{}z\textasciitilde{}\textasciicircum{}"
    )
    assert tex_escaped("ℓ∞ and\nε") == r"$\ell_\infty$ and $\varepsilon$"


@pytest.mark.parametrize("name", ["node", r"a_b & 100% {x \input{y}", "ℓ∞-net~^#$"])
def test_latex_holds_together(name: str) -> None:
    board = made()
    text = latex(board.assign(model=board["model"].replace("resnet", name)), "Title {unclosed & 5%")
    assert groups_balance(text)
    assert tex_escaped(name) in text
    for environment in ("table", "tabular"):
        begun, ended = (text.count(f"\\{word}{{{environment}}}") for word in ("begin", "end"))
        assert begun == ended == 1
    (align,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", text)
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 3 + len(board)
    for line in lines:
        cells = len(re.findall(r"(?<!\\)&", line)) + 1
        spans = [int(n) for n in re.findall(r"\\multicolumn\{(\d+)\}", line)]
        assert cells + sum(spans) - len(spans) == len(align)
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(f"\\{rule}") == 1


@pytest.mark.parametrize(
    ("reference", "link"),
    [
        (
            "Zakwan, Xu, L-CSS 2022, arXiv 2203.11805; Other, arXiv 1706.00001",
            "https://arxiv.org/abs/2203.11805",
        ),
        ("A, B, 10.1109/LCSYS.2022.3186959.", "https://doi.org/10.1109/LCSYS.2022.3186959"),
        ("see https://example.org/paper.pdf, arXiv 2203.11805", "https://example.org/paper.pdf"),
        ("<script> javascript:alert(1)", ""),
        ("https://x.org/a)|<b>", "https://x.org/a"),
        ("", ""),
    ],
)
def test_paper_link(reference: str, link: str) -> None:
    assert paper_link(reference) == link


def test_markdown_is_compact_and_leads_to_papers() -> None:
    board = made()
    text = markdown(board, "t")
    assert "Training step" not in text
    assert "[**" not in text
    assert "[node](https://arxiv.org/abs/2106.00001)" in text
    assert re.search(r"\d ± \d+\.\d \[", text)
    assert " ± " not in markdown(made(seeds=(0,)), "t")
