"""The leaderboard's rows in order and numbered: complete ones first, then by value, ties shared. No torch."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from ...records.latest import Entry
from .columns import AccuracyColumn
from .ranking import Outcomes, ranks
from .row_status import order_class


def ranked(
    board: pd.DataFrame, ranking: AccuracyColumn, found: Mapping[AccuracyColumn, Mapping[Entry, Outcomes]]
) -> pd.DataFrame:
    """Sort within each dataset by `order_class`, then by `ranking`; number rows by it and each other column.

    Parameters
    ----------
    found
        By column, what the rows did on each sample (`row_outcomes.outcomes`).
    """
    board = board.assign(_below=order_class(board))
    board = board.loc[_order(board, ranking.name)].reset_index(drop=True)
    columns = dict.fromkeys((ranking, *found))
    numbers = {column: _numbers(board, column.name, found.get(column, {})) for column in columns}
    board["rank"] = numbers[ranking]["rank"]
    board[["p_leader", "p_above"]] = numbers[ranking][["p_leader", "p_above"]]
    for column in found:
        rank = numbers[column]["rank"].astype("Int64")
        board[column.rank] = rank.where(board[column.name].notna())
    return board.drop(columns="_below")


def _order(board: pd.DataFrame, by: str) -> pd.Index[int]:
    """Labels of the rows, dataset by dataset, best first."""
    keyed = board.assign(_value=-board[by].round(9).fillna(-1.0))
    return keyed.sort_values(["dataset", "_below", "_value", "model", "recipe"], kind="stable").index


def _numbers(board: pd.DataFrame, by: str, found: Mapping[Entry, Outcomes]) -> pd.DataFrame:
    """Ranks by one column and the p-values behind them, with the labels of `board`."""
    ordered = board.loc[_order(board, by)]
    parts = []
    for _, rows in ordered.groupby("dataset", sort=False):
        names = rows[["dataset", "model", "recipe"]].itertuples(index=False, name=None)
        outcomes = [
            found.get(name) if known else None for name, known in zip(names, rows[by].notna(), strict=True)
        ]
        numbers = ranks(rows[by].tolist(), rows["_below"].tolist(), outcomes)
        columns = dict(zip(("rank", "p_leader", "p_above"), numbers, strict=True))
        parts.append(pd.DataFrame(columns, index=rows.index))
    return pd.concat(parts)
