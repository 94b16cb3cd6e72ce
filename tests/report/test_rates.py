"""The figure of contraction rates: which rows make a line, and what it shows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import synthetic
from robustode.bench.records.record import Record
from robustode.bench.report.leaderboard.columns import CLEAN, BoardColumns
from robustode.bench.report.plots.contraction_rates import draw_rates


def trained(model: str, rho: float) -> Record:
    """A record of training of the one architecture, contracting at `rho`."""
    record = synthetic.training_record(model, 0, "2026-01-01T00:00:00Z")
    return dataclasses.replace(record, card={"architecture": "ch-node"}, measures={"rho": rho})


def board(recipes: dict[str, str]) -> pd.DataFrame:
    clean = np.linspace(0.8, 0.9, len(recipes))
    rows = {"label": list(recipes), "recipe": list(recipes.values()), "clean": clean}
    table = pd.DataFrame(rows | {"clean_low": clean - 0.01, "clean_high": clean + 0.01})
    table.attrs["columns"] = BoardColumns(accuracies=(CLEAN,), timings=(), ranking=CLEAN)
    return table


def lines(rates: dict[str, float], recipes: dict[str, str]) -> list[list[float]]:
    records = {label: [trained(label, rho)] for label, rho in rates.items()}
    return [
        np.asarray(line.get_xdata(), float).tolist()
        for _, draw in draw_rates(records, board(recipes))
        for line in draw().axes[0].get_lines()
    ]


def test_rows_of_one_architecture_make_a_line_in_the_order_of_their_rates():
    rates = {"a": 0.4, "b": 0.1, "c": 0.2}
    assert lines(rates, dict.fromkeys(rates, "plain")) == [[0.1, 0.2, 0.4]]


def test_a_line_joins_rows_of_the_commonest_recipe_alone():
    rates = {"a": 0.4, "b": 0.1, "c": 0.2, "d": 0.3}
    recipes = dict.fromkeys(rates, "plain") | {"d": "gaussian"}
    assert lines(rates, recipes) == [[0.1, 0.2, 0.4]]


def test_rows_of_different_recipes_make_no_line():
    rates = {"a": 0.4, "b": 0.1, "c": 0.2}
    assert lines(rates, {"a": "plain", "b": "gaussian", "c": "adversarial"}) == []


def test_a_row_that_does_not_contract_has_no_place_on_the_axis():
    rates = {"a": 0.4, "b": 0.1, "c": -0.2}
    assert lines(rates, dict.fromkeys(rates, "plain")) == []
