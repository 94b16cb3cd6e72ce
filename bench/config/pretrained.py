"""Weights that someone brings instead of having them trained here: read, checked, kept as the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..._errors import CheckpointError
from ..records.checkpoint import Checkpoint, load_tensors, save_facts
from ..records.store import write_atomically

RECIPE = "given"
"""Name of the recipe of weights that were not trained here; no other recipe may be called so."""
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Given:
    """A safetensors file of weights; two with one hash are the same weights.

    Attributes
    ----------
    path
        Absolute.
    sha256
        Of the file.
    """

    path: Path
    sha256: str

    @classmethod
    def read(cls, path: Path) -> Given:
        """Take `path`; raises `CheckpointError` when it cannot be read or is no safetensors file."""
        try:
            _, sha256 = load_tensors(path)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(": delete it to train again", "")) from None
        return cls(path=path.resolve(), sha256=sha256)

    def recipe(self) -> dict[str, Any]:
        """What stands for the training recipe in a cell: other weights make other cells."""
        return {"name": RECIPE, "weights_sha256": self.sha256}

    def check(self, model: nn.Module) -> None:
        """Hold the tensors against those of `model`; nothing is loaded.

        Raises
        ------
        CheckpointError
            When a name, a shape or a dtype differs, or the file has changed; one line with the first of them.
        """
        ours, sha256 = load_tensors(self.path)
        if sha256 != self.sha256:
            raise CheckpointError(f"{self.path} has changed since it was first read: run again")
        theirs = model.state_dict()
        wrong = [
            *_named("it lacks", [name for name in theirs if name not in ours]),
            *_named("the model has no", [name for name in ours if name not in theirs]),
        ]
        for name in theirs.keys() & ours.keys():
            for what in ("shape", "dtype"):
                mine, its = (_told(getattr(tensors[name], what)) for tensors in (ours, theirs))
                if mine != its:
                    wrong.append(f"{name} has {what} {mine}, in the model {its}")
        if wrong:
            raise CheckpointError(
                f"{self.path.name} does not fit the model: {'; '.join(sorted(wrong)[:_SHOWN])}"
            )

    def keep(self, path: Path, facts: Mapping[str, Any]) -> Checkpoint:
        """Copy the file to `path`, byte for byte, and write `facts` beside it."""
        data = self.path.read_bytes()
        path.with_suffix(".json").unlink(missing_ok=True)
        write_atomically(path, data)
        return save_facts(path, {**facts, "given": self.path.name}, self.sha256)


def _named(what: str, names: list[str]) -> list[str]:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{what} {', '.join(names[:_SHOWN])}{more}"] if names else []


def _told(value: Any) -> str:
    return str(value).removeprefix("torch.") if not isinstance(value, tuple) else str(tuple(value))
