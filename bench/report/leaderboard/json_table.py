"""The leaderboard for programs: JSON with numbers as numbers and null for what is missing. No torch.

``schemas/leaderboard.schema.json`` is the JSON Schema of `Leaderboard`, as
``python -m robustode.bench.report.leaderboard.json_table`` prints it. Its version is raised when a field is
removed or changes its meaning.
"""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from ...records.headline import Headline
from ..text import missing
from .columns import AccuracyColumn, BoardColumns, Kind, Task, board_columns, entries
from .ranking import ALPHA

SCHEMA_VERSION: Literal[1] = 1
SCHEMA = "leaderboard.schema.json"

Fraction = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
Column = Annotated[
    str,
    Field(
        min_length=1,
        description="Column of leaderboard.csv: clean, <noise>@<strength>, <norm>@<eps>, "
        "certified-<norm>@<eps>.",
    ),
]
Of = Annotated[
    str | None,
    Field(description="The noise, or the norm of a worst case or certificate; null for clean accuracy."),
]
Strength = Annotated[
    float,
    Field(
        ge=0,
        description="In units of the pixel range [0, 1]: standard deviation, fraction of pixels, half-width "
        "or eps.",
    ),
]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RankedBy(_Part):
    """The accuracy that rows are ordered and ranked by."""

    column: Column
    kind: Kind
    of: Of
    strength: Strength


class Accuracy(_Part):
    """One reported accuracy: mean over training seeds, 95% Wilson interval over samples.

    `spread` is the standard deviation over training seeds, null for a single one; `rank` is by this accuracy.
    `no_answer` is the share of samples for which the model gave no finite answer, part of those that are not
    classified correctly; it is left out where all were answered.
    """

    column: Column
    kind: Kind
    of: Of
    strength: Strength
    value: Fraction | None
    low: Fraction | None
    high: Fraction | None
    spread: Fraction | None
    rank: Annotated[int, Field(ge=1)] | None
    no_answer: Fraction = 0.0


class Throughput(_Part):
    """Samples per second at the best batch size."""

    task: Task
    device: Text
    samples_per_second: Annotated[float, Field(gt=0)] | None


class Row(_Part):
    """One model, data set and training recipe.

    `rank` is shared by rows that cannot be told apart. `status` is ``ok``, or what puts the row below those
    that are. `p_leader` is McNemar's exact test against the row that opened the rank this one was compared
    with, `p_above` the same against the row just above. `busy` lists throughputs, as task@device, taken while
    other work used more than a tenth of the machine. `nfe` counts field evaluations per forward pass, `seeds`
    training seeds, `samples` the test samples behind the ranking value. `updated` is the day of the newest
    record. `audits` counts the results of the audits; `audited` says whether the row was asked all that its
    preset names; `audit_flags` are the audits that withhold a rank: flagged without a stated reason, or
    failed to run. `expected_failures` are checks that the model is known to fail.
    """

    rank: Annotated[int, Field(ge=1)]
    dataset: Text
    model: Text
    recipe: str
    status: Text
    p_leader: Fraction | None
    p_above: Fraction | None
    accuracies: list[Accuracy]
    throughput: list[Throughput]
    busy: list[Annotated[str, Field(pattern="^(inference|training-step)@")]] = []
    nfe: Annotated[float, Field(ge=0)] | None
    parameters: Annotated[int, Field(ge=0)] | None
    seeds: Annotated[int, Field(ge=1)]
    samples: Annotated[int, Field(ge=0)]
    updated: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")] | None
    reference: str | None
    paper: Annotated[str, Field(pattern="^https?://")] | None
    expected_failures: list[Text]
    audits: str | None
    audited: bool = False
    audit_flags: list[Text]


class Leaderboard(_Part):
    """report/leaderboard.json of a results folder: best row first within each data set.

    Accuracies are fractions. null is a value that failed, was not run, or does not exist. `preset` is the
    name of the preset that was run, empty if it is not known. A row opens a new rank when `p_leader` is below
    `alpha`.
    """

    schema_version: Literal[1]
    preset: str
    title: str
    ranked_by: RankedBy
    alpha: Annotated[float, Field(gt=0, lt=1)]
    rows: list[Row]


def leaderboard_schema() -> dict[str, Any]:
    """The JSON Schema of `leaderboard_json`, as the code says it."""
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, **Leaderboard.model_json_schema()}


def schema() -> dict[str, Any]:
    """The JSON Schema that ships with the package."""
    text = (files("robustode.bench") / "schemas" / SCHEMA).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def leaderboard_json(board: pd.DataFrame, headline: Headline) -> str:
    """Write the leaderboard as JSON: fractions for accuracies, samples per second, one object per row.

    Parameters
    ----------
    board
        What ``leaderboard.leaderboard`` returns.
    """
    columns = board_columns(board)
    body = Leaderboard(
        schema_version=SCHEMA_VERSION,
        preset=headline.preset,
        title=headline.title,
        ranked_by=RankedBy(**_what(columns.ranking)),
        alpha=ALPHA,
        rows=[_row(row, columns) for row in board.to_dict("records")],
    )
    plain = body.model_dump(exclude_unset=True)
    return json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _row(row: dict[Any, Any], columns: BoardColumns) -> Row:
    accuracies = [
        Accuracy(
            **_what(column),
            value=_number(row[column.name]),
            low=_number(row[column.low]),
            high=_number(row[column.high]),
            spread=_number(row.get(column.spread)),
            rank=_whole(row.get(column.rank)),
            **_no_answer(row.get(column.no_answer)),
        )
        for column in columns.accuracies
    ]
    throughput = [
        Throughput(task=each.task, device=each.device, samples_per_second=_number(row[each.name]))
        for each in columns.timings
    ]
    busy = entries(row.get("busy"))
    return Row(
        rank=int(row["rank"]),
        dataset=row["dataset"],
        model=row["model"],
        recipe=row["recipe"],
        status=row["status"],
        p_leader=_number(row["p_leader"]),
        p_above=_number(row["p_above"]),
        accuracies=accuracies,
        throughput=throughput,
        **({"busy": busy} if busy else {}),
        nfe=_number(row["nfe"]),
        parameters=_whole(row["parameters"]),
        seeds=int(row["seeds"]),
        samples=int(row["samples"]),
        updated=row["updated"] or None,
        reference=row["reference"] or None,
        paper=row["paper"] or None,
        expected_failures=entries(row["expected_failures"]),
        audits=row.get("audits") or None,
        audited=not entries(row.get("audit_missing")),
        audit_flags=entries(row.get("audit_flags")),
    )


def _what(column: AccuracyColumn) -> dict[str, Any]:
    """What an accuracy is of: its column, its kind, its noise or norm, its strength."""
    return {
        "column": column.name,
        "kind": column.kind,
        "of": column.of or None,
        "strength": column.strength,
    }


def _no_answer(value: Any) -> dict[str, Any]:
    share = _number(value)
    return {"no_answer": share} if share else {}


def _number(value: Any) -> float | None:
    return None if missing(value) or not np.isfinite(value) else float(f"{float(value):.10g}")


def _whole(value: Any) -> int | None:
    return None if missing(value) else int(value)


if __name__ == "__main__":
    json.dump(leaderboard_schema(), sys.stdout, indent=1)
    print()
