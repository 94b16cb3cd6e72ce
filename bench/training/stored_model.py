"""Load a model that a run has trained, from its results folder."""

from __future__ import annotations

import warnings
from pathlib import Path

from torch import nn

from ..._arguments import Whole
from ..._errors import InvalidArgument
from ..._registry import unknown_name
from ...models import MODELS
from ..plugins.entry_points import load_plugins
from ..plugins.model_file import resolve_model
from ..records.headline import preferred_keys
from ..records.latest import newest_training
from ..records.store import Store
from ..runtime.foreign_code import independent_of_caller
from .find_model import ModelFinder
from .load_trained import trained_model


@independent_of_caller
def load_model(
    folder: str | Path, name: str, *, seed: Whole = 0, recipe: str | None = None, model: str | None = None
) -> nn.Module:
    """Load a trained model from a results folder.

    Parameters
    ----------
    folder
        Results folder, such as ``results/quick``: the ``--out`` of ``robustode run``.
    name
        Name of the model in the leaderboard.
    seed
        Training seed.
    recipe
        Name of the training recipe, for a model that was trained by several; by default that of the last run.
    model
        ``FILE.py:factory``, for a model that is defined in a file which has moved since it was last run.

    Returns
    -------
    torch.nn.Module
        In eval mode on the CPU. It maps images in [0, 1], shape (N, C, H, W), to logits, shape (N, K).

    Raises
    ------
    UnknownName, InvalidArgument
        When the folder holds no such training.
    CheckpointError
        When the model's code has changed since, or its weights are missing or do not match the SHA-256 in
        the record.
    """
    load_plugins(lambda line: warnings.warn(line, stacklevel=3))
    external = resolve_model(model) if model else None
    store = Store(Path(folder))
    records, _ = store.load()
    trainings = [
        r
        for r in records
        if r.cell.kind == "training"
        and r.status == "ok"
        and (r.cell.model, r.cell.training_seed) == (name, seed)
    ]
    known = sorted({*MODELS.names(), *(r.cell.model for r in records)})
    if not trainings and not model and name not in known:
        raise unknown_name("model", name, known)
    newest = newest_training(trainings, preferred_keys(store.folder), recipe)
    if newest is None:
        have = ", ".join(sorted({f"{r.cell.model} {r.cell.training_seed}" for r in records})) or "nothing"
        raise InvalidArgument(
            f"{folder} holds no trained {name} with seed {seed}: train it with `robustode run`, or use one "
            f"of these models and seeds: {have}"
        )
    finder = ModelFinder(store.folder, how="model='{}'")
    return trained_model(store, newest, external or finder.find(newest))
