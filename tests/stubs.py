"""Models, presets and cells small enough that every number about them is known beforehand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from robustode.attacks import THREATS, Threat
from robustode.bench.data import Split
from robustode.bench.records.lines import line_key, read_line, read_record, write_record
from robustode.bench.records.predictions import predictions
from robustode.bench.records.record import Cell, Record
from robustode.bench.records.store import Store
from robustode.bench.runtime.progress import Quiet
from robustode.models import ModelSpec, ODEBlock, Solver
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")


class Still(ODEBlock):
    """A flow that stays where it is, in `steps` Euler steps."""

    def __init__(self, steps: int) -> None:
        super().__init__([Nothing()], final_time=1.0, solver=Solver(method="euler", steps=steps))

    def integrate(self, field: Any, state: Tensor, *, duration: float, steps: int) -> Tensor:
        for _ in range(steps):  # torchdiffeq would wait for a GPU
            state = state + field(state)
        return state


class Nothing(nn.Module):
    """x' = 0."""

    def forward(self, state: Tensor) -> Tensor:
        return 0 * state


class Linear(nn.Module):
    """Logits W x + b; with `nfe` they pass through that many Euler steps of x' = 0."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, nfe: int | None = None) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.head = nn.Linear(channels * height * width, num_classes)
        self.still = None if nfe is None else Still(nfe)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.head(images.flatten(1))
        return logits if self.still is None else self.still(logits)


class Faulty(Linear):
    """A linear model whose logits pass through `fault`."""

    def __init__(self, input_shape: Any, num_classes: int, fault: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__(input_shape, num_classes)
        self.fault = fault

    def forward(self, images: Tensor) -> Any:
        return self.fault(super().forward(images), images)


def linear(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Build a linear model."""
    return Linear(input_shape, num_classes)


def spec(name: str, build: Callable[..., Any] = linear, **attributes: Any) -> ModelSpec:
    """A model that is not in the registry."""
    return ModelSpec(name=name, build=build, **attributes)


def faulty(name: str, fault: Callable[[Tensor, Tensor], Any], **attributes: Any) -> ModelSpec:
    """A model that is not in the registry and whose logits pass through `fault`."""
    return spec(name, lambda shape, classes: Faulty(shape, classes, fault), **attributes)


def two_class(weight: Tensor, bias: float) -> Linear:
    """Logits (0, w.x + b) on images of `weight`'s shape: every optimum is known."""
    model = Linear(tuple(weight.shape), 2)
    with torch.no_grad():
        model.head.weight.copy_(torch.stack([torch.zeros(weight.numel()), weight.flatten()]))
        model.head.bias.copy_(torch.tensor([0.0, bias]))
    return model


def split_of(images: Tensor, labels: Tensor) -> Split:
    return Split(images=images, labels=labels, indices=np.arange(len(labels)))


def predicted(record: Record, split: Split) -> np.ndarray:
    """The classes (draws, samples) of an accuracy record on the first samples of `split`."""
    return predictions(record.outcomes, split.first(record.cell.samples).labels.cpu().numpy())


def lines_of(record: Record) -> bytes:
    """What is stored of a record, in a file that holds nothing else."""
    return write_record(record)[0]


def forget(store: Store, cell: Cell) -> None:
    """Remove the record of `cell` from its file."""
    path, key = store.path(cell), f'"key":"{line_key(cell)}"'.encode()
    path.write_bytes(b"".join(line for line in path.read_bytes().splitlines(True) if key not in line))


def stored_again(record: Record) -> Record:
    """A record as it is read again."""
    *shared, line = map(read_line, lines_of(record).splitlines())
    return read_record(line, {body["shared"]: body["content"] for body in shared})


def cell_for(threat: Threat | str, strength: float, samples: int, **changes: Any) -> Cell:
    """An accuracy cell for `threat`."""
    threat = THREATS.get(threat) if isinstance(threat, str) else threat
    cell = Cell(
        kind="accuracy",
        dataset="digits",
        index_sha256="0" * 64,
        model="stub",
        model_version="1",
        threat=threat.name,
        family=threat.family,
        norm=threat.norm if threat.family in ("gradient", "search") else None,
        parameters=dict(threat.parameters),
        strength=strength,
        samples=samples,
        batch_size=samples,
    )
    return dataclasses.replace(cell, **changes)


class Listening(Quiet):
    """Remembers what a run says of itself."""

    def __init__(self) -> None:
        self.total = self.done = 0.0
        self.lines: list[str] = []

    def start(self, total: float, seconds: float | None = None) -> None:
        self.total = total

    def advance(self, work: float) -> None:
        self.done += work

    def line(self, text: str) -> None:
        self.lines.append(text)

    def detail(self, text: str) -> None:
        if not text.startswith("  "):  # of other work on the machine, which a test cannot know
            self.lines.append(text)


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU if the tensors lay on one: reading a value, finding what is true."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_truth = func.overloadpacket is torch.ops.aten.index and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        waiting = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal)
        self.count += by_truth or func.overloadpacket in waiting
        return func(*args, **(kwargs or {}))


PRESET = """
title = "tiny"
cost = "seconds"
dataset = "digits"
models = ["resnet"]
batch_size = 20
rank = "linf"

[recipe]
epochs = 2
batch_size = 50
learning_rate = 0.02

[[threats]]
name = "clean"
strengths = [0.0]
samples = 40

[[threats]]
name = "gaussian"
strengths = [0.1, 0.3]
reported = 0.1
draws = 2
samples = 40

[[threats]]
name = "pgd-linf"
strengths = [0.05]
reported = 0.05
samples = 40
[threats.parameters]
steps = 3
restarts = 1

[throughput]
batch_sizes = [4]
seconds = 0.001
passes = 2

[time_limit]
training = 60
cell = 30
"""
CELLS = 9
"""Of one model and seed: training, clean, two Gaussian, PGD, certificate, dynamics, two timings."""
FLOW_CELLS = 2
"""Besides, of a model with an ODE block: its flow timed alone, without gradients and with them."""


def preset_file(folder: Path, text: str = PRESET) -> Path:
    path = folder / "tiny.toml"
    path.write_text(text, encoding="utf-8")
    return path
