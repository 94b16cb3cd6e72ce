"""Loading a trained model: built as its record says, with the weights of its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..._errors import CheckpointError, UnknownName
from ...attacks.core.modes import training_mode
from ...models import MODELS, ModelSpec
from ..records.checkpoint import load_state, load_tensors
from ..records.record import Record
from ..records.store import Store
from ..runtime.construct import construct


def model_of(
    training: Record, specs: Mapping[str, ModelSpec] | None = None, *, how: str = "--models {}"
) -> ModelSpec:
    """Return the spec that `training` used: the one of its name in `specs`, else the registered one.

    Parameters
    ----------
    specs
        Specs of models from files, by name.
    how
        How the caller accepts a file, for the error message.

    Raises
    ------
    UnknownName
        When neither exists.
    CheckpointError
        When the model's code has changed since.
    """
    specs, cell = specs or {}, training.cell
    name, file = str(training.card.get("architecture", cell.model)), training.card.get("file")
    spec = specs.get(cell.model) or specs.get(name) or (MODELS.get(name) if name in MODELS else None)
    if spec is None:
        package = training.card.get("plugin")
        where = how.format(f"FOLDER/{file}" if file else "FILE.py:factory")
        advice = f"install {package}, which it came from" if package else f"give its file with {where}"
        raise UnknownName(f"{name} is no registered model: {advice}")
    return _as_trained(training, spec)


def _as_trained(training: Record, spec: ModelSpec) -> ModelSpec:
    made = training.cell.model_version
    if spec.full_version != made:
        raise CheckpointError(
            f"{training.cell.model} was made by version {made} of {spec.name}, which is {spec.full_version} "
            "here: its code has changed since; `robustode run` trains it anew"
        )
    return spec


def trained_model(store: Store, training: Record, spec: ModelSpec) -> nn.Module:
    """Return what `training` made, in eval mode on the CPU.

    Raises
    ------
    CheckpointError
        When `spec` is not of the version that was trained, or the weights are missing, do not match the
        hash in the record, or do not fit the model.
    """
    _as_trained(training, spec)
    path = store.checkpoint_path(training.cell)
    tensors, sha256 = load_tensors(path)
    if sha256 != training.card["checkpoint_sha256"]:
        raise CheckpointError(f"{path} does not match its record: run `robustode run --fresh`")
    shape: Any = tuple(training.card["input_shape"])
    cell, classes = training.cell, int(training.card["num_classes"])
    arguments = spec.arguments(cell.hyperparameters)
    model = construct(spec.build, shape, classes, arguments, seed=cell.training_seed)
    with training_mode(model):
        load_state(model, tensors, path)
    return model
