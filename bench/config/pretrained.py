"""Pretrained weights, evaluated instead of training a model: read, checked, stored as its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..._errors import CheckpointError
from ...attacks.core.modes import training_mode
from ..records.checkpoint import Checkpoint, load_bytes, load_tensors, save_bytes

PRETRAINED_RECIPE = "given"
"""The recipe's name in records of pretrained weights; reserved. Stored records hold it, so it stays."""
MAX_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class PretrainedWeights:
    """A safetensors file of weights, identified by its hash.

    Attributes
    ----------
    path
        Absolute path of the file.
    sha256
        Hash of the file, decompressed where it is one of ``.safetensors.xz``.
    """

    path: Path
    sha256: str

    @classmethod
    def read(cls, path: Path) -> PretrainedWeights:
        """Read the file at `path`.

        Raises
        ------
        CheckpointError
            When it cannot be read or is not a safetensors file.
        """
        try:
            _, sha256 = load_tensors(path)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(": delete it to train again", "")) from None
        return cls(path=path.resolve(), sha256=sha256)

    def recipe(self) -> dict[str, Any]:
        """Return the recipe of a cell: part of its key, so other weights make other cells."""
        return {"name": PRETRAINED_RECIPE, "weights_sha256": self.sha256}

    def check(self, model: nn.Module) -> None:
        """Compare names, shapes and dtypes with those of `model`, left in eval mode; nothing is loaded.

        Raises
        ------
        CheckpointError
            When one differs, or the file has changed; one line with the first differences.
        """
        tensors, sha256 = load_tensors(self.path)
        if sha256 != self.sha256:
            raise CheckpointError(f"{self.path} has changed since it was first read: run again")
        with training_mode(model):
            expected = model.state_dict()
        wrong = [
            *_list_names("it lacks", [name for name in expected if name not in tensors]),
            *_list_names("the model has no", [name for name in tensors if name not in expected]),
        ]
        for name in expected.keys() & tensors.keys():
            for what in ("shape", "dtype"):
                found, wanted = (_text(getattr(source[name], what)) for source in (tensors, expected))
                if found != wanted:
                    wrong.append(f"{name} has {what} {found}, in the model {wanted}")
        if wrong:
            raise CheckpointError(
                f"{self.path.name} does not fit the model: {'; '.join(sorted(wrong)[:MAX_SHOWN])}"
            )

    def store(self, path: Path, facts: Mapping[str, Any]) -> Checkpoint:
        """Store the weights at `path`, the same bytes once decompressed, with the checkpoint's `facts`."""
        sha256 = save_bytes(path, load_bytes(self.path))
        return Checkpoint(path=path, sha256=sha256, facts={**facts, "given": self.path.name})


def _list_names(what: str, names: list[str]) -> list[str]:
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return [f"{what} {', '.join(names[:MAX_SHOWN])}{more}"] if names else []


def _text(value: Any) -> str:
    return str(value).removeprefix("torch.") if not isinstance(value, tuple) else str(tuple(value))
