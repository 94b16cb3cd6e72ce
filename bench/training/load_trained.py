"""Loading a trained model: built as its record says, with the weights of its checkpoint."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..._errors import CheckpointError
from ...attacks.core.modes import training_mode
from ...models import ModelSpec
from ..records.checkpoint import load_state, load_tensors
from ..records.record import Record
from ..records.store import Store
from ..runtime.construct import construct
from ..runtime.foreign_code import running
from ..runtime.network_hash import network_sha256
from ..runtime.opened_files import changed_files
from .check_statements import FEW_IMAGES, check_statements
from .same_answers import TOLERANCE, answers_of, difference


def check_version(training: Record, spec: ModelSpec) -> None:
    """Raise `CheckpointError` where `spec` is not of the version that was trained."""
    made = training.cell.model_version
    if spec.full_version == made:
        return
    if spec.file and spec.folder:
        raise CheckpointError(
            f"{training.cell.model}: its code has changed since; `robustode run --models "
            f"{spec.folder / spec.file}` trains it anew"
        )
    raise CheckpointError(
        f"{training.cell.model} was made by version {made} of {spec.name}, which is {spec.full_version} "
        "here: its code has changed since; `robustode run` trains it anew"
    )


def changed_since(training: Record | None, spec: ModelSpec) -> str:
    """Say which files that the code of `spec` read for `training` have changed since; empty if none have."""
    changed = changed_files(training.card.get("files", {}), spec) if training is not None else []
    what = f"{spec.file or spec.name} read {', '.join(changed)}, which has changed or is gone since"
    return what if changed else ""


def trained_model(
    store: Store, training: Record, spec: ModelSpec, *, images: Tensor | None = None
) -> nn.Module:
    """Return what `training` made, in eval mode on the CPU.

    Parameters
    ----------
    images
        Some training images, at which two statements of one field are compared; random ones by default.

    Raises
    ------
    CheckpointError
        When `spec` is not of the version that was trained or builds another network than it did, a file that
        it read has changed, or the weights are missing, do not match the hash in the record, or do not fit
        the model.
    ContractBroken
        When the model contradicts what it states, see `check_statements`.
    """
    check_version(training, spec)
    cell = training.cell
    if cell.network_sha256 is not None:
        shape, classes = _shape_and_classes(training)
        if network_sha256(spec, shape, classes, spec.arguments(cell.hyperparameters)) != cell.network_sha256:
            raise CheckpointError(
                f"{spec.file or spec.name} builds another network than the one that was trained: what it "
                "reads besides its own source has changed since; `robustode run` trains it anew"
            )
    if changed := changed_since(training, spec):
        raise CheckpointError(f"{changed}: put it back, or `robustode run` trains it anew")
    model = rebuilt_model(store, training, spec)
    if images is None:
        shape, _ = _shape_and_classes(training)
        images = torch.rand(FEW_IMAGES, *shape, generator=torch.Generator().manual_seed(0))
        check_statements(model, images, of="random images")
    else:
        check_statements(model, images)
    return model


def rebuilt_model(store: Store, training: Record, spec: ModelSpec) -> nn.Module:
    """Return the network that `spec` builds, with the weights of `training`; see `trained_model`.

    Raises
    ------
    CheckpointError
        When the weights cannot be had, or the network does not answer as the trained one did.
    """
    path = store.checkpoint_path(training.cell)
    tensors, sha256 = load_tensors(path)
    if sha256 != training.card["checkpoint_sha256"]:
        raise CheckpointError(f"{path} does not match its record: run `robustode run --fresh`")
    shape, classes = _shape_and_classes(training)
    arguments, seed = spec.arguments(training.cell.hyperparameters), training.cell.training_seed
    model = construct(spec.build, shape, classes, arguments, seed=seed)
    with running(model, seed), training_mode(model):
        load_state(model, tensors, path)
    check_answers(training, model)
    return model


def check_answers(training: Record, model: nn.Module) -> None:
    """Compare the answers of a loaded network with those of the trained one, where its record holds them.

    Raises
    ------
    CheckpointError
        When they differ.
    """
    trained = training.card.get("answers")
    if trained is None:
        return
    answers = answers_of(model, *_shape_and_classes(training))
    off = math.inf if answers is None else difference(trained, answers)
    if not off <= TOLERANCE:
        raise CheckpointError(
            f"{training.card.get('file') or training.cell.model}: built again with the trained weights, it "
            f"answers otherwise (logits off by {off:.0%}): keep what it answers by in parameters or buffers, "
            "or, where a file changed, `robustode run --fresh`"
        )


def _shape_and_classes(training: Record) -> tuple[tuple[int, int, int], int]:
    channels, height, width = training.card["input_shape"]
    return (channels, height, width), int(training.card["num_classes"])
