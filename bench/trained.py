"""A trained model again: built as its record says, its weights from the checkpoint beside the records."""

from __future__ import annotations

from typing import Any

from torch import nn

from .._errors import CheckpointError
from ..models import ModelSpec
from .checkpoint import load_state, load_tensors
from .records import Record
from .store import Store
from .work import checkpoint_path


def trained_model(store: Store, training: Record, spec: ModelSpec) -> nn.Module:
    """Return what `training` made, in eval mode on the CPU.

    Raises
    ------
    CheckpointError
        When `spec` is not of the version that was trained, or the weights are missing, do not match the
        hash in the record, or do not fit the model.
    """
    made = training.cell.model_version
    if spec.full_version != made:
        raise CheckpointError(
            f"{training.cell.model} was made by version {made} of {spec.name}, which is {spec.full_version} "
            "here: its code has changed since, so run it again"
        )
    path = checkpoint_path(store, training.cell)
    tensors, sha256 = load_tensors(path)
    if sha256 != training.card["checkpoint_sha256"]:
        raise CheckpointError(f"{path} does not match its record: run `robustode run --fresh`")
    shape: Any = tuple(training.card["input_shape"])
    model = spec.build(shape, int(training.card["num_classes"]), **training.cell.hyperparameters)
    load_state(model, tensors, path)
    return model.eval()
