"""The leaderboard's rows in order and numbered: complete ones first, then by value, ties shared. No torch."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from ...records.latest import Entry
from .columns import AccuracyColumn
from .ranking import Outcomes, ranks
from .row_status import cleared


def _below(board: pd.DataFrame) -> pd.Series[int]:
    """What rows are ordered by before their values: 0, 1 where not cleared, 2 where not complete."""
    doubted = (~cleared(board)).astype(int)
    return doubted.where(board["status"] == "ok", 2)


def ranked(
    board: pd.DataFrame, ranking: AccuracyColumn, found: Mapping[AccuracyColumn, Mapping[Entry, Outcomes]]
) -> pd.DataFrame:
    """Sort within each dataset by `_below`, then by `ranking`; number the rows by it and each other column.

    Parameters
    ----------
    found
        By column, what the rows did on each sample (`row_outcomes.outcomes`).
    """
    board = board.assign(_below=_below(board))
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
