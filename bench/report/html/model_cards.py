"""Model cards: one row of the leaderboard as JSON with a published schema, from records alone. No torch.

``schemas/model-card.schema.json`` is the JSON Schema of `ModelCard`, as
``python -m robustode.bench.report.html.model_cards`` prints it.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...records.latest import Entry, entry
from ...records.record import Record
from ...records.store import Store
from .reproduce_command import run_line

SCHEMA = "https://json-schema.org/draft/2020-12/schema"
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CardDataset(_Part):
    """What the model was evaluated on.

    `index_sha256` is the hash of which samples are for training, validation and test; `input_shape` is
    (channels, height, width).
    """

    name: str
    index_sha256: Sha256
    input_shape: tuple[int, int, int]
    num_classes: Annotated[int, Field(ge=2)]


class CardCheckpoint(_Part):
    """Weights of one training seed; `file` is relative to the results folder."""

    seed: int
    file: str
    sha256: Sha256


class ModelCard(_Part):
    """A model on a robustode leaderboard: its definition, its claims, and the command that reproduces it.

    `claims` are the model's own, each measured by `robustode check`; `expected_failures` are the checks that
    it is known to fail, with reasons. `recipe` is how it was trained, `given` for pretrained
    weights, as `weights` then says. `solver` is null where no solver was seen. `parameters` counts
    numbers, `seeds` lists training seeds. `file` names a model from a file and `plugin` a model from
    an installed package. `command` is run in the results folder.
    """

    schema_version: Literal[1] = 1
    name: str
    architecture: str
    version: str
    summary: str
    reference: str
    claims: list[str]
    expected_failures: dict[str, str]
    hyperparameters: dict[str, Any]
    recipe: dict[str, Any]
    weights: Literal["trained", "given"]
    solver: str | None
    parameters: Annotated[int, Field(ge=0)]
    dataset: CardDataset
    seeds: Annotated[list[int], Field(min_length=1)]
    checkpoints: Annotated[list[CardCheckpoint], Field(min_length=1)]
    file: str | None
    plugin: str | None
    command: str | None


def card_schema() -> dict[str, Any]:
    """The JSON Schema of a model card."""
    return {"$schema": SCHEMA, **ModelCard.model_json_schema(mode="serialization")}


def published_schema() -> dict[str, Any]:
    """The JSON Schema that ships with the package."""
    text = (files("robustode.bench") / "schemas" / "model-card.schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def cards(store: Store, used: Iterable[Record], preset: str) -> dict[str, str]:
    """The cards of all rows that have trained, or pretrained, weights: ``cards/<model>.json`` and its text.

    A model with several rows, of several recipes or datasets, has ``cards/<model>@<dataset>@<recipe>.json``.
    A row whose records do not say enough, as those of older versions may not, has none.

    Parameters
    ----------
    used
        The records that count.
    preset
        What the folder's last run was called.
    """
    rows: dict[Entry, list[Record]] = defaultdict(list)
    for record in used:
        if record.cell.kind == "training" and record.status == "ok":
            rows[entry(record.cell)].append(record)
    several = Counter(model for _, model, _ in rows)
    found = {}
    for (dataset, model, recipe), trainings in sorted(rows.items()):
        name = model if several[model] == 1 else f"{model}@{dataset}@{recipe}"
        try:
            card = model_card(store, sorted(trainings, key=lambda r: r.cell.training_seed), preset)
        except (LookupError, TypeError, ValueError):
            continue
        text = json.dumps(card.model_dump(), indent=1, ensure_ascii=False, allow_nan=False)
        found[f"cards/{name}.json"] = text + "\n"
    return found


def model_card(store: Store, trainings: Sequence[Record], preset: str) -> ModelCard:
    """The card of one row, from the records of its trainings."""
    cell, card = trainings[0].cell, trainings[0].card
    checkpoints = [
        CardCheckpoint(
            seed=record.cell.training_seed,
            file=store.checkpoint_path(record.cell).relative_to(store.folder).as_posix(),
            sha256=record.card["checkpoint_sha256"],
        )
        for record in trainings
    ]
    pretrained = "weights_sha256" in cell.recipe
    return ModelCard(
        name=cell.model,
        architecture=str(card.get("architecture", cell.model)),
        version=cell.model_version,
        summary=str(card.get("summary", "")),
        reference=str(card.get("reference", "")),
        claims=list(card.get("claims", [])),
        expected_failures=dict(card.get("expected_failures", {})),
        hyperparameters=_sorted(cell.hyperparameters),
        recipe=_sorted(cell.recipe),
        weights="given" if pretrained else "trained",
        solver=card.get("solver"),
        parameters=int(trainings[0].measures.get("parameters", 0)),
        dataset=CardDataset(
            name=cell.dataset,
            index_sha256=cell.index_sha256,
            input_shape=tuple(card["input_shape"]),
            num_classes=card["num_classes"],
        ),
        seeds=[record.cell.training_seed for record in trainings],
        checkpoints=checkpoints,
        file=card.get("file"),
        plugin=card.get("plugin"),
        command=run_line(preset, trainings, checkpoints[0].file if pretrained else None) or None,
    )


def _sorted(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in sorted(values)}


if __name__ == "__main__":
    json.dump(card_schema(), sys.stdout, indent=1)
    print()
