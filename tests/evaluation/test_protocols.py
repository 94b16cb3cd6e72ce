"""Noise under several protocols: a table each, and never a value of one in the table of another."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping

import numpy as np
import pytest
import stubs
import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st
from robustode.bench.records.record import Record
from robustode.bench.records.store import Store
from robustode.bench.report.figures import labelled
from robustode.bench.report.leaderboard.leaderboard import leaderboard
from robustode.bench.report.leaderboard.side_tables import (
    MEANINGS,
    SideTable,
    protocol_tables,
    protocols_markdown,
    smoothing_tables,
)
from robustode.bench.report.report import write_report
from robustode.bench.report.statistics import summarise, wilson

SAMPLES = 1000
MODELS = ("resnet", "ch-node")
PIXEL = (("gaussian", 0.1), ("gaussian", 0.3), ("salt-pepper", 0.1))
PAPER = (("paper-gaussian", 0.05), ("paper-gaussian", 0.2), ("paper-salt-pepper", 0.2))


def record(
    model: str, threat: str, strength: float, right: int, *, dataset: str = "mnist", seed: int = 0, **changes
) -> Record:
    """An accuracy of exactly right / SAMPLES."""
    family = "clean" if threat == "clean" else "noise"
    protocol = "paper-exact" if threat.startswith("paper") else "pixel"
    where = {"threat": threat, "family": family, "strength": strength, "protocol": protocol} | changes
    cell = synthetic.cell(model, seed, dataset=dataset, samples=SAMPLES, batch_size=100, **where)
    return synthetic.record_of(cell, np.arange(SAMPLES) < right)


def counts(questions: Iterable[tuple[str, float]], models: Iterable[str] = MODELS) -> dict[tuple, int]:
    """For each model and question a number of right samples that no other has."""
    asked = [("clean", 0.0), *questions]
    return {
        (model, *question): 111 + 37 * i
        for i, (model, question) in enumerate(itertools.product(models, asked))
    }


def records(numbers: Mapping[tuple, int], **changes) -> list[Record]:
    return [record(*where, right, **changes) for where, right in numbers.items()]


def tables(made: list[Record]) -> list[SideTable]:
    summary = summarise(made)
    return protocol_tables(summary, labelled(leaderboard(made, synthetic.HEADLINE, summary)))


def shown(table: SideTable) -> set[str]:
    return {cell[0] for _, cells in table.rows for cell in cells} - {""}


def percent(right: int) -> str:
    return f"{right / SAMPLES:.1%}".rstrip("%")


def test_two_protocols_are_two_tables():
    numbers = counts(PIXEL + PAPER)
    pixel, paper = tables(records(numbers))
    assert (pixel.protocol, paper.protocol) == ("pixel", "paper-exact")
    assert (pixel.dataset, paper.dataset) == ("mnist", "mnist")
    assert pixel.heads == [
        ("Clean", ""),
        ("Gaussian noise", "σ = 0.1"),
        ("Gaussian noise", "σ = 0.3"),
        ("Salt-and-pepper noise", "p = 0.1"),
    ]
    assert paper.heads == [
        ("Clean", ""),
        ("Gaussian noise", "v = 0.05"),
        ("Gaussian noise", "v = 0.2"),
        ("Salt-and-pepper noise", "p = 0.2"),
    ]
    for table, questions in ((pixel, PIXEL), (paper, PAPER)):
        assert sorted(label for label, _ in table.rows) == sorted(MODELS)
        for label, cells in table.rows:
            wanted = [numbers[(label, *question)] for question in (("clean", 0.0), *questions)]
            assert [cell[0] for cell in cells] == [percent(right) for right in wanted]
            assert {cell[2] for cell in cells} == {""}, "one seed has no spread"


def test_no_value_of_one_protocol_stands_in_the_table_of_another():
    numbers = counts(PIXEL + PAPER)
    found = {table.protocol: shown(table) for table in tables(records(numbers))}
    clean = {percent(numbers[model, "clean", 0.0]) for model in MODELS}
    assert found["pixel"] & found["paper-exact"] == clean
    assert len(found["pixel"] | found["paper-exact"]) == len(numbers)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, SAMPLES), min_size=14, max_size=14))
def test_every_accuracy_is_where_it_belongs(rights):
    numbers = dict(zip(counts(PIXEL + PAPER), rights, strict=True))
    by_protocol = {table.protocol: table for table in tables(records(numbers))}
    for (model, threat, strength), right in numbers.items():
        protocols = [
            p for p in by_protocol if threat == "clean" or threat.startswith("paper") == (p != "pixel")
        ]
        for protocol in protocols:
            table = by_protocol[protocol]
            questions = [("clean", 0.0), *(PIXEL if protocol == "pixel" else PAPER)]
            cell = dict(table.rows)[model][questions.index((threat, strength))]
            low, high = wilson(right, SAMPLES)
            assert cell[0] == f"{100 * right / SAMPLES:.1f}"
            assert cell[1] == f"{100 * float(low):.1f} – {100 * float(high):.1f}"


def test_rows_stand_as_on_the_leaderboard():
    numbers = counts(PIXEL + PAPER)
    made = records(numbers)
    board = leaderboard(made, synthetic.HEADLINE)
    for table in tables(made):
        assert [label for label, _ in table.rows] == list(board["model"])


def test_each_protocol_has_its_sentence():
    found = {table.protocol: table.meaning for table in tables(records(counts(PIXEL + PAPER)))}
    assert found == MEANINGS
    assert "clipped to [0, 1]" in found["pixel"]
    assert "clipped to [-1, 1], which in pixels is [-0.177, 0.439]" in found["paper-exact"]
    text = protocols_markdown(tables(records(counts(PIXEL + PAPER))))
    for meaning in MEANINGS.values():
        assert text.count(meaning) == 1


def test_a_protocol_without_a_sentence_has_a_table_all_the_same():
    made = records(counts(PIXEL)) + [record(m, "snow", 1.0, 500, protocol="outdoors") for m in MODELS]
    found = {table.protocol: table for table in tables(made)}
    assert set(found) == {"pixel", "outdoors"}
    assert found["outdoors"].meaning == ""
    assert found["outdoors"].heads == [("Clean", ""), ("snow", "s = 1")]


@pytest.mark.parametrize("questions", [PIXEL, PAPER, ()])
def test_one_protocol_needs_no_tables(questions):
    made = records(counts(questions))
    assert tables(made) == []
    assert smoothing_tables(summarise(made), labelled(leaderboard(made, synthetic.HEADLINE))) == []


def test_attacks_and_timings_make_no_second_protocol():
    timing = synthetic.throughput_record("resnet", "inference", 8, "cpu", "2026", dataset="mnist")
    attack = record("resnet", "pgd-linf", 0.1, 10, family="gradient", norm="linf", protocol="normalised")
    assert tables([*records(counts(PIXEL)), timing, attack]) == []
    made = [*records(counts(PIXEL + PAPER)), timing, attack]
    assert [table.heads for table in tables(made)] == [
        t.heads for t in tables(records(counts(PIXEL + PAPER)))
    ]


def test_what_a_model_was_not_asked_or_failed_at_is_blank():
    numbers = counts(PIXEL + PAPER)
    made = records({k: v for k, v in numbers.items() if k != ("resnet", "paper-gaussian", 0.2)})
    made = [
        synthetic.failed(r) if (r.cell.model, r.cell.threat) == ("ch-node", "salt-pepper") else r
        for r in made
    ]
    pixel, paper = tables(made)
    assert dict(paper.rows)["resnet"][2] == ("", "", "")
    assert dict(paper.rows)["ch-node"][2][0] == percent(numbers["ch-node", "paper-gaussian", 0.2])
    assert dict(pixel.rows)["ch-node"][3] == ("", "", "")
    assert dict(pixel.rows)["resnet"][3][0] == percent(numbers["resnet", "salt-pepper", 0.1])
    lines = protocols_markdown([pixel, paper]).splitlines()
    (line,) = (line for line in lines if line.startswith("| ch-node") and "|  |" in line)
    assert line.endswith("|  |")


def test_a_dataset_with_one_protocol_is_left_out():
    made = [*records(counts(PIXEL + PAPER)), *records(counts(PIXEL), dataset="digits")]
    assert [(t.dataset, t.protocol) for t in tables(made)] == [("mnist", "pixel"), ("mnist", "paper-exact")]


def test_recipes_of_one_model_are_rows_of_their_own():
    numbers = counts(PIXEL + PAPER, ["resnet"])
    other = {where: right + 5 for where, right in numbers.items()}
    made = records(numbers) + records(other, recipe={"name": "long"})
    for table in tables(made):
        assert [label for label, _ in table.rows] == ["resnet (long)", "resnet (quick)"]
        assert len(shown(table)) == 2 * len(table.heads)


# --- seeds --------------------------------------------------------------------------------------


def test_seeds_give_a_mean_and_a_spread():
    numbers = counts(PIXEL + PAPER, ["resnet"])
    made = [
        r for seed in range(3) for r in records({k: v + 10 * seed for k, v in numbers.items()}, seed=seed)
    ]
    for table in tables(made):
        ((_, cells),) = table.rows
        questions = [("clean", 0.0), *(PIXEL if table.protocol == "pixel" else PAPER)]
        for question, cell in zip(questions, cells, strict=True):
            assert (cell[0], cell[2]) == (percent(numbers[("resnet", *question)] + 10), "1.0")
    text = protocols_markdown(tables(made))
    assert text.count(" ± 1.0 |") == 8


def test_a_value_that_some_seed_lacks_is_blank_as_on_the_leaderboard():
    numbers = counts(PIXEL + PAPER, ["resnet"])
    made = [r for seed in range(2) for r in records(numbers, seed=seed)]
    made = [
        synthetic.failed(r) if (r.cell.threat, r.cell.training_seed) == ("paper-salt-pepper", 1) else r
        for r in made
    ]
    _, paper = tables(made)
    assert paper.rows[0][1][3] == ("", "", "")


# --- as text ------------------------------------------------------------------------------------


def parse(text: str) -> list[list[list[str]]]:
    """The tables in a Markdown text, as rows of cells."""
    found: list[list[list[str]]] = []
    for in_table, lines in itertools.groupby(text.splitlines(), key=lambda line: line.startswith("|")):
        if in_table:
            found.append([[cell.strip() for cell in line.strip("|").split("|")] for line in lines])
    return found


@pytest.mark.parametrize("missing", [(), (("resnet", "gaussian", 0.1), ("ch-node", "paper-gaussian", 0.05))])
def test_the_markdown_has_rows_of_equal_width_and_the_same_values(missing):
    numbers = {k: v for k, v in counts(PIXEL + PAPER).items() if k not in missing}
    made = tables(records(numbers))
    text = protocols_markdown(made)
    parsed = parse(text)
    assert len(parsed) == len(made) == 2
    for rows, table in zip(parsed, made, strict=True):
        assert {len(row) for row in rows} == {1 + len(table.heads)}
        assert rows[0][:3] == ["Model", "Clean", f"Gaussian noise ({table.heads[1][1]})"]
        assert rows[1] == ["---", *["---:"] * len(table.heads)]
        assert rows[2:] == [[label, *(cell[0] for cell in cells)] for label, cells in table.rows]
    assert text.endswith("over training seeds.\n")
    assert not re.search(r"nan|None|<NA>", text)


def test_tables_of_two_datasets_are_told_apart():
    made = [
        *records(counts(PIXEL + PAPER), dataset="mnist"),
        *records(counts(PIXEL + PAPER), dataset="digits"),
    ]
    found = tables(made)
    assert len(found) == 4
    text = protocols_markdown(found)
    assert "mnist" in text
    assert "digits" in text


def test_the_report_writes_and_removes_the_tables(tmp_path):
    both = records(counts(PIXEL + PAPER))
    folder = synthetic.write(tmp_path / "both", both)
    report = write_report(folder)
    text = (folder / "report" / "noise.md").read_text(encoding="utf-8")
    assert text == protocols_markdown(tables(both))
    page = report.page.read_text(encoding="utf-8")
    assert "paper-exact" in page
    store = Store(folder)
    for made in both:
        if made.cell.threat.startswith("paper"):
            stubs.forget(store, made.cell)
    write_report(folder)
    assert not (folder / "report" / "noise.md").exists()


# --- the smoothed classifier --------------------------------------------------------------------


def certificate(model: str, threat: str, radius: float, **changes) -> Record:
    cell = synthetic.cell(
        model, kind="certificate", dataset="mnist", threat=threat, family="certificate", norm="l2",
        samples=10, **changes,
    )  # fmt: skip
    return Record(
        cell=cell,
        outcomes={"radius": np.linspace(0, radius, 10, dtype=np.float32)},
        measures={"pixels": 784.0},
        environment={"created": "2026"},
    )


def test_smoothed_certificates_stand_apart_from_noise_and_from_the_models_own():
    attacks = [record("resnet", "pgd-l2", s, 300, family="gradient", norm="l2") for s in (0.25, 0.5)]
    made = [
        *records(counts(PIXEL + PAPER)),
        *attacks,
        certificate("resnet", "lipschitz", 0.3),
        certificate(
            "resnet", "smoothing", 0.9, strength=0.25, parameters={"n0": 10, "n": 100, "alpha": 0.001}
        ),
    ]
    summary = summarise(made)
    board = labelled(leaderboard(made, synthetic.HEADLINE, summary))
    (table,) = smoothing_tables(summary, board)
    assert [head[1] for head in table.heads] == ["ℓ₂ radius = 0.25", "ℓ₂ radius = 0.5"]
    assert [cell[0] for cell in dict(table.rows)["resnet"]] == ["70.0", "40.0"]
    assert dict(table.rows)["ch-node"] == [("", "", "")] * 2
    assert "smoothed classifier" in table.meaning
    assert [t.heads for t in protocol_tables(summary, board)] == [t.heads for t in tables(made[:14])]
