"""The state of a training after an epoch: its history, and the file from which it is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..._errors import CheckpointError
from ..records.checkpoint import load_state, load_tensors, partial_path, save_tensors
from ..runtime.opened_files import FilesRead


@dataclass(frozen=True, kw_only=True)
class History:
    """Losses, accuracies and seconds of every epoch so far."""

    train_loss: list[float]
    validation_loss: list[float]
    validation_accuracy: list[float]
    seconds: list[float] = field(default_factory=list, compare=False)

    def selected(self, select: Literal["validation", "last"]) -> int:
        """Return the index of the selected epoch: best validation accuracy, then loss; or the last."""
        if select == "last":
            return len(self.train_loss) - 1
        scores = list(zip(self.validation_accuracy, (-x for x in self.validation_loss), strict=True))
        return max(range(len(scores)), key=lambda i: (scores[i], -i))


class PartialTraining:
    """A file ``<stem>.partial.safetensors`` with the state after an epoch, from which a training is resumed.

    Parameters
    ----------
    path
        Of the checkpoint that the training will write.
    facts
        Of the checkpoint; a state is loaded only for the same ``facts["cell"]``.
    files
        What the model's code reads; a state is loaded only while that is as it was.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], files: FilesRead | None = None) -> None:
        self.path, self.files = partial_path(path), files
        self.cell = json.loads(json.dumps(facts["cell"], sort_keys=True))

    def save(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, history: History, best: Mapping[str, Tensor]
    ) -> None:
        """Write weights, optimiser, history and the best weights so far, atomically."""
        tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in best.items()}
        for index, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
        about = {"cell": self.cell, "history": vars(history)}
        if self.files is not None:
            about["files"] = self.files.so_far()
        body = json.dumps(about, sort_keys=True).encode()
        tensors["about"] = torch.frombuffer(bytearray(body), dtype=torch.uint8)
        save_tensors(self.path, tensors)

    def load(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[History, dict[str, Tensor]]:
        """Restore `model` and `optimiser`; return history and best weights: both empty without a file."""
        empty: tuple[History, dict[str, Tensor]] = (
            History(train_loss=[], validation_loss=[], validation_accuracy=[], seconds=[]),
            {},
        )
        if not self.path.exists():
            return empty
        try:
            tensors, _ = load_tensors(self.path)
            about = json.loads(bytes(tensors["about"].tolist()))
        except (CheckpointError, KeyError, ValueError):
            return empty
        if about["cell"] != self.cell:
            return empty
        if self.files is not None and not self.files.are_still(about.get("files", {})):
            return empty

        def tensors_of(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        load_state(model, tensors_of("model."), self.path)
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors_of("optimiser.").items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = value
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
        return History(**about["history"]), tensors_of("best.")

    def remove(self) -> None:
        """Delete the file, if there is one."""
        self.path.unlink(missing_ok=True)
