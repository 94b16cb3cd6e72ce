"""Pretrained weights, evaluated instead of training a model: read, fitted, stored as its checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..._errors import CheckpointError
from ...attacks.core.modes import training_mode
from ..records.checkpoint import Checkpoint, save_bytes
from .weights_names import fit, require_fit
from .weights_reader import hash_of, plain_file, read_weights

PRETRAINED_RECIPE = "given"
"""The recipe's name in records of pretrained weights; reserved. Stored records hold it, so it stays."""


@dataclass(frozen=True, kw_only=True)
class PretrainedWeights:
    """A file of weights, identified by the hash of the checkpoint that it becomes.

    Attributes
    ----------
    path
        Absolute path of the file.
    sha256
        Hash of the plain safetensors file that holds these weights under the names of the model: the file
        itself, decompressed, where it is one already. Before `fitted`, under the names in the file.
    """

    path: Path
    sha256: str

    @classmethod
    def read(cls, path: Path) -> PretrainedWeights:
        """Read the file at `path`.

        Raises
        ------
        CheckpointError
            When it cannot be read or holds more than tensors.
        """
        tensors, plain = read_weights(path)
        return cls(path=path.resolve(), sha256=hash_of(plain or plain_file(tensors)))

    def recipe(self) -> dict[str, Any]:
        """Return the recipe of a cell: part of its key, so other weights make other cells."""
        return {"name": PRETRAINED_RECIPE, "weights_sha256": self.sha256}

    def fitted(self, model: nn.Module) -> tuple[PretrainedWeights, str]:
        """Return these weights as those of `model`, left in eval mode, and a note of what was changed.

        Nothing is loaded. See `weights_names.fit`.

        Raises
        ------
        CheckpointError
            When a name, shape or dtype differs; one line with the first differences.
        """
        plain, note = self._plain(model)
        return dataclasses.replace(self, sha256=hash_of(plain)), note

    def store(self, path: Path, facts: Mapping[str, Any], model: nn.Module) -> Checkpoint:
        """Store the weights of `model` at `path`, with the checkpoint's `facts`.

        Raises
        ------
        CheckpointError
            When they do not fit, or the file has changed.
        """
        plain, _ = self._plain(model)
        if hash_of(plain) != self.sha256:
            raise CheckpointError(f"{self.path} has changed since it was first read: run again")
        return Checkpoint(path=path, sha256=save_bytes(path, plain), facts={**facts, "given": self.path.name})

    def _plain(self, model: nn.Module) -> tuple[bytes, str]:
        tensors, plain = read_weights(self.path)
        with training_mode(model):
            expected = model.state_dict()
        found, note = fit(tensors, expected)
        require_fit(found, expected, self.path.name)
        if plain is None or found.keys() != tensors.keys():
            plain = plain_file(found)
        return plain, note
